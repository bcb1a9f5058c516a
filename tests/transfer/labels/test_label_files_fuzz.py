"""Label files of any content: an error is a sentence, and what is lost is counted."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests.transfer.labels.test_yolo import put, yolo_source
from tests.transfer.sources import blank, read

from plrc.errors import PlrcError
from plrc.transfer.labels.splits import Splits

QUICK = settings(max_examples=60, deadline=2000, suppress_health_check=[HealthCheck.too_slow])

NUMBER = st.one_of(
    st.sampled_from(
        ["0", "1", "2", "0.5", "0.1", ".9", "1e0", "-0.1", "1.5", "nan", "inf", "1e400", "0x1", "12", "cat"]
    ),
    st.floats(0, 1).map(str),
)
LINE = st.one_of(
    st.lists(NUMBER, max_size=10).map(" ".join),
    st.lists(st.floats(0, 1).map(str), min_size=4, max_size=4).map(lambda values: " ".join(["1", *values])),
    st.text(max_size=12),
)
YAML = st.one_of(
    st.sampled_from(["", "names: [a, b]", "names: {0: a}", "a: &a [*a]", "[" * 5000, "train: images/train", "path: /"]),
    st.text(max_size=40),
    st.lists(
        st.tuples(st.sampled_from(["path", "train", "val", "test", "names", "nc"]), st.text(max_size=8)).map(
            lambda pair: f"{pair[0]}: {pair[1]}"
        ),
        max_size=5,
    ).map("\n".join),
)
VALUE = st.one_of(NUMBER, st.integers(-3, 40).map(str), st.just(""), st.text("ab<&\x00é", max_size=4))
OBJECT = st.tuples(st.sampled_from(["dog", "cat", ""]), VALUE, VALUE, VALUE, VALUE)


def try_to_read(root: Path) -> Splits | None:
    """The splits; None if they are refused with a sentence."""
    try:
        return read(root, val="none")
    except PlrcError:
        return None


def lost(splits: Splits) -> int:
    """Number of labels that were counted as dropped."""
    counts = splits.reading.to_dict().get("dropped", {})
    return sum(entry["count"] for entry in counts.values())


@QUICK
@given(st.lists(LINE, max_size=6))
@example(["1 0.5 0.5 0.2 0.4", "1 0.5 0.5 0.2 0.4", "", "cat"])
def test_yolo_label_files(lines: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = yolo_source(
            Path(folder), "0 0.5 0.5 0.5 0.5", yaml="train: images/train\nval: images/val\nnames: [a, b]\n"
        )
        text = "\n".join(lines).encode("utf-8", "surrogatepass")
        (root / "labels" / "train" / "a1.txt").write_bytes(text)
        splits = try_to_read(root)
        if splits is not None:
            written = sum(bool(line.strip()) for line in re.split("\r\n|\r|\n", text.decode()))
            kept = len(next(image for image in splits.train.images if image.name.endswith("a1.jpg")).classes)
            assert kept + lost(splits) == written


@QUICK
@given(YAML)
def test_data_yaml(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = yolo_source(Path(folder))
        (root / "data.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
        try_to_read(root)


@QUICK
@given(st.lists(OBJECT, max_size=4), st.tuples(VALUE, VALUE), st.booleans())
def test_voc_annotation_files(objects: list[tuple[str, ...]], size: tuple[str, str], cut: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for split in ("train", "test"):
            blank(root / split / f"{split}.png")
            put(
                root / split / f"{split}.xml",
                "<annotation><object><name>dog</name><bndbox><xmin>1</xmin><ymin>1</ymin>"
                "<xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>",
            )
        text = f"<annotation><size><width>{size[0]}</width><height>{size[1]}</height></size>"
        for name, x0, y0, x1, y1 in objects:
            corners = f"<xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax>"
            text += f"<object><name>{name}</name><bndbox>{corners}</bndbox></object>"
        blank(root / "train" / "any.png")
        put(root / "train" / "any.xml", text if cut else text + "</annotation>")
        splits = try_to_read(root)
        if splits is not None:
            kept = [len(image.classes) for image in splits.train.images if image.name.endswith("any.png")]
            assert sum(kept) + lost(splits) == len(objects) + (not kept)  # an image of another size is lost as well


@pytest.mark.parametrize(
    "content", [b"\xff\xfe0\x00", b"\x00", b"\x80 0.5 0.5 0.2 0.2", b"0 0.5 0.5 0.2 0.2\n" * 20000]
)
def test_label_files_of_odd_bytes_end_quickly(content: bytes, tmp_path: Path) -> None:
    root = yolo_source(tmp_path)
    (root / "labels" / "train" / "a1.txt").write_bytes(content)
    try_to_read(root)
