"""What the values in label maps mean: read where it is certain, asked for where it is not, and always counted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.transfer.sources import blank, mask_folders, read

from plrc.errors import DataError
from plrc.transfer.labels.label_maps import MapEncoding
from plrc.transfer.labels.splits import Splits

COLORS = np.array([[0, 0, 0], [220, 60, 50], [50, 90, 220]], dtype=np.uint8)
BINARY = [[0, 0, 255, 255]]
THREE = [[0, 1, 2, 2]]
Write = Callable[[Any], Image.Image]


def gray(values: Any) -> Image.Image:
    return Image.fromarray(np.array(values, dtype=np.uint8))


def bits(values: Any) -> Image.Image:
    return Image.fromarray(np.array(values) > 0)


def deep(values: Any) -> Image.Image:
    return Image.fromarray(np.array(values, dtype=np.uint16))


def as_rgb(values: Any) -> Image.Image:
    return gray(values).convert("RGB")


def as_rgba(values: Any) -> Image.Image:
    return gray(values).convert("RGBA")


def colored(values: Any) -> Image.Image:
    return Image.fromarray(COLORS[np.array(values)])


def colored_with_alpha(values: Any) -> Image.Image:
    return colored(values).convert("RGBA")


def with_palette(values: Any, colors: Any = COLORS[[2, 0, 1]]) -> Image.Image:
    image = Image.fromarray(np.array(values, dtype=np.uint8))
    image.putpalette(np.array(colors).ravel().tolist())
    return image


def source(root: Path, id_map: Image.Image, ending: str = ".png", suffix: str = "") -> Path:
    """Two splits of three images that all have this label map."""
    for split in ("train", "val"):
        (root / "labels" / split).mkdir(parents=True)
        for i in range(3):
            blank(root / "images" / split / f"p{i}.jpg", id_map.height, id_map.width)
            id_map.save(root / "labels" / split / f"p{i}{suffix}{ending}")
    return root


def classes_of(splits: Splits) -> list[int]:
    return splits.test.read_classes(splits.test.images[0])[0].tolist()


@pytest.mark.parametrize(
    ("write", "values", "names", "classes"),
    [
        (gray, BINARY, "background foreground", [0, 0, 1, 1]),
        (bits, BINARY, "background foreground", [0, 0, 1, 1]),
        (as_rgb, BINARY, "background foreground", [0, 0, 1, 1]),
        (as_rgba, BINARY, "background foreground", [0, 0, 1, 1]),
        (gray, [[0, 1, 1, 0]], "0 1", [0, 1, 1, 0]),
        (gray, [[0, 1, 255, 1]], "0 1", [0, 1, 255, 1]),
        (gray, [[0, 80, 160, 240]], "0 80 160 240", [0, 1, 2, 3]),
        (deep, [[0, 300, 600, 600]], "0 300 600", [0, 1, 2, 2]),
        (with_palette, THREE, "0 1 2", [0, 1, 2, 2]),
    ],
)
def test_values_without_names(write: Write, values: Any, names: str, classes: list[int], tmp_path: Path) -> None:
    splits = read(source(tmp_path, write(values)), "semantic")
    assert " ".join(splits.train.classes).replace("class ", "") == names
    assert classes_of(splits) == classes


def test_bits_next_to_gray_maps_of_small_ids_are_ones(tmp_path: Path) -> None:
    source(tmp_path, gray([[0, 1, 2, 2]]))
    bits([[0, 1, 1, 1]]).save(tmp_path / "labels" / "val" / "p0.png")
    splits = read(tmp_path, "semantic")
    assert splits.train.classes == ("class 0", "class 1", "class 2")
    assert classes_of(splits) == [0, 1, 1, 1]


def test_the_line_of_a_name_is_its_id(tmp_path: Path) -> None:
    root = source(tmp_path, gray([[0, 1, 1, 255]]))
    (root / "classes.txt").write_text("#1 sky\nroad\n\n")
    assert read(root, "semantic").train.classes == ("#1 sky", "road")
    (root / "classes.txt").write_text("sky\n\nroad\n")
    with pytest.raises(DataError, match=r"classes.txt: line 2 is empty"):
        read(root, "semantic")


def test_the_pixels_of_each_class_and_the_ignored_ones_are_counted(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("sky\nroad\nrare\n")
    notes = read(source(tmp_path, gray([[0, 1, 1, 255]])), "semantic").reading.lines()
    assert notes == (
        "classes: 3 of classes.txt",
        "train: split train; 2 images; pixels: road 50.0%, sky 25.0%, none of rare, ignored 25.0% (ids 255)",
        (
            "val: a fifth of train, left out of train, the same for every seed; 1 images; pixels: road 50.0%, "
            "sky 25.0%, none of rare, ignored 25.0% (ids 255)"
        ),
        "test: split val; 3 images; pixels: road 50.0%, sky 25.0%, none of rare, ignored 25.0% (ids 255)",
    )


LISTS = {
    "classes.txt": "sky:0,0,0\ncar:220,60,50\nroad:50,90,220\n",
    "labelmap.txt": "# label:color_rgb:parts:actions\nsky:0,0,0::\ncar:220,60,50::\nroad:50,90,220:wheel,door:\n",
    "label_colors.txt": "0 0 0\tsky\n220 60 50 \t car\n50 90 220\t\troad\n",
    "class_dict.csv": "name,r,g,b\nsky,0,0,0\ncar,220, 60, 50\nroad,50,90,220\n",
}


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("write", [colored, colored_with_alpha, gray])
def test_a_list_of_colors_reads_colored_maps_and_maps_of_line_numbers(name: str, write: Write, tmp_path: Path) -> None:
    (tmp_path / name).write_text(LISTS[name])
    splits = read(source(tmp_path, write(THREE)), "semantic")
    assert splits.train.classes == ("sky", "car", "road")
    assert classes_of(splits) == [0, 1, 2, 2]
    assert splits.reading.lines()[0] == f"classes: 3 of {name}"


def test_palette_entries_are_read_by_color_where_colors_are_named(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("ignore:0,0,0\nlane:220,60,50\nsky:50,90,220\n")
    splits = read(source(tmp_path, with_palette(THREE)), "semantic")
    assert (splits.train.classes, classes_of(splits)) == (("lane", "sky"), [1, 255, 0, 0])


def test_names_with_ids_and_two_names_for_maps_of_0_and_255(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("ground: 0\nroad: 80\nvoid: 160\nsky: 255\n")
    splits = read(source(tmp_path, gray([[0, 80, 160, 255]])), "semantic")
    assert (splits.train.classes, classes_of(splits)) == (("ground", "road", "sky"), [0, 1, 255, 2])
    two = source(tmp_path / "two", gray(BINARY))
    (two / "classes.txt").write_text("ground\nroad\n")
    assert classes_of(read(two, "semantic")) == [0, 0, 1, 1]


REFUSED: dict[str, tuple[Image.Image, str, str]] = {
    "colors": (
        colored(THREE),
        "",
        (
            r"have 3 colors, 50,90,220 \(50.0%\), 0,0,0 \(25.0%\), 220,60,50 \(25.0%\), such as .*p0.png, and no file "
            r"names their classes: write .*classes.txt with a line name:R,G,B or ignore:R,G,B for each"
        ),
    ),
    "colors and bare names": (colored(THREE), "sky\ncar\nroad\n", r"no file names their classes"),
    "a color more": (
        colored(THREE),
        "sky:0,0,0\ncar:220,60,50\n",
        (
            r"does not name the colors 50,90,220, which 50.0% of all label pixels have, such as in .*p0.png; add a "
            r"line such as name:50,90,220 or ignore:50,90,220 for each"
        ),
    ),
    "an id more": (
        gray([[0, 1, 80, 80]]),
        "sky\ncar\n",
        r"not name the ids 80, which 50.0% of .*; write its lines as name:ID, such as sky:0, and name:80 or",
    ),
    "0 and 255 with three names": (gray(BINARY), "sky\ncar\nroad\n", r"does not name the ids 255, which 50.0%"),
    "steps up to 255": (
        gray([[0, 85, 170, 255]]),
        "",
        (
            r"have the ids 0, 85, 170, 255, and whether 255 is a class or unlabelled is not certain: name them in "
            r".*classes.txt with lines such as name:170, and name:255 or ignore:255"
        ),
    ),
    "many ids": (gray([range(0, 240, 6)]), "", r"40 different ids \(0, 6, .*\) without names: .*blurred, scaled"),
    "nothing labelled": (
        gray([[255] * 4]),
        "",
        r"split train, read for train, show no class \(ignored 100.0% \(ids 255\)",
    ),
    "one class": (gray([[0, 0, 255, 0]]), "sky:0\nignore:255\n", r"no class but sky \(ignored 25.0% \(ids 255\)\)"),
    "mixed lines": (gray(THREE), "sky:0\ncar\nroad:2\n", r"the line 'car' has no id; .* such as road:7"),
    "mixed colors": (gray(THREE), "sky:0,0,0\ncar\n", r"the line 'car' has no color; .* such as road:128,64,128"),
    "one color twice": (
        colored(THREE),
        "a:0,0,0\nb:0,0,0\n",
        r"gives the color 0,0,0 to a and to b; remove one of them",
    ),
    "one id twice": (gray(THREE), "a:1\nb:1\n", r"gives the id 1 to a and to b"),
    "a color above 255": (colored(THREE), "a:0,0,300\n", r"'a:0,0,300' has a color above 255"),
    "an empty list": (gray(THREE), "\n", r"classes.txt names no class; write one in each line"),
    "too many names": (gray(THREE), "\n".join(f"c{i}" for i in range(256)), r"names 256 classes; at most 255"),
    "negative ids": (Image.fromarray(np.array([[-1, 3, 3, 3]], np.int32)), "", r"values from -1 to 3; ids are whole"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_told_is_asked_for(case: str, tmp_path: Path) -> None:
    id_map, names, message = REFUSED[case]
    source(tmp_path, id_map, ".tif" if id_map.mode == "I" else ".png")
    if names:
        (tmp_path / "classes.txt").write_text(names)
    with pytest.raises(DataError, match=message):
        read(tmp_path, "semantic")


def test_files_that_do_not_keep_ids(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"p0.jpg is a JPEG file, which does not keep ids exactly; write it as PNG"):
        read(source(tmp_path / "jpeg", gray(BINARY), ".jpg"), "semantic")
    noise = np.random.default_rng(0).integers(0, 256, (80, 80, 3), dtype=np.uint8)
    with pytest.raises(DataError, match=r"p0.png has more than 4096 colors, as photos"):
        read(source(tmp_path / "photo", Image.fromarray(noise)), "semantic")
    damaged = source(tmp_path / "damaged", gray(np.arange(400).reshape(20, 20) % 3))
    file = damaged / "labels" / "train" / "p1.png"
    file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(DataError, match=r"the label map .*p1.png cannot be read \(.*\); fix or remove it"):
        read(damaged, "semantic")


def test_palettes_that_disagree(tmp_path: Path) -> None:
    source(tmp_path, with_palette(THREE))
    with_palette(THREE, COLORS).save(tmp_path / "labels" / "val" / "p2.png")
    message = r"index 0 is 50,90,220 in .*p0.png and 0,0,0 in .*p2.png; name the classes by color in .*classes.txt"
    with pytest.raises(DataError, match=message):
        read(tmp_path, "semantic")
    (tmp_path / "classes.txt").write_text(LISTS["classes.txt"])
    assert classes_of(read(tmp_path, "semantic")) == [2, 0, 1, 1]


def test_public_tables_count_what_they_ignore(tmp_path: Path) -> None:
    mask_folders(tmp_path, "train", "test", ids=((0, 10, 11, 255),), prefix="Seq05VD_")
    notes = read(tmp_path, "semantic").reading.lines()
    assert notes[1].endswith("and 4 more, ignored 50.0% (ids 11, 255)")


def test_validation_maps_without_a_class_are_said(tmp_path: Path) -> None:
    source(tmp_path, gray([[0, 1, 1, 2]]))
    for i in range(3):
        blank(tmp_path / "images" / "test" / f"q{i}.jpg", 1, 4)
        (tmp_path / "labels" / "test").mkdir(exist_ok=True)
        gray([[0, 1, 2, 2]]).save(tmp_path / "labels" / "test" / f"q{i}.png")
        gray([[255] * 4]).save(tmp_path / "labels" / "val" / f"p{i}.png")
    lines = read(tmp_path, "semantic").reading.lines()
    assert "val: none of its labels counts, so its scores are not defined" in lines


def test_a_label_map_is_turned_as_its_exif_data_say(tmp_path: Path) -> None:
    values = np.arange(6, dtype=np.uint8).reshape(2, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn to the right
    Image.fromarray(values).save(tmp_path / "map.png", exif=exif)
    assert MapEncoding().read(str(tmp_path / "map.png")).tolist() == np.rot90(values, -1).tolist()
