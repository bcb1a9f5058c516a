"""Shards: written whole, read by range from anywhere, every sample once per epoch; faults are named and survived."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image
from tests.engine.runs import after_steps
from tests.killed import kill_at_first_file

from plrc.config import Config, DataConfig, RegionConfig
from plrc.data import shards
from plrc.data.image_errors import DecodeError
from plrc.data.loader import ViewDataset, _substitute_step
from plrc.data.regions import Regions
from plrc.data.sampler import StepSampler, epoch_order
from plrc.data.scan import scan
from plrc.data.shard_writer import ShardReport, write_shards
from plrc.data.sources import ImageList, find_images
from plrc.engine.checkpoint import load_checkpoint, newest_checkpoint
from plrc.engine.pretrain import pretrain
from plrc.errors import ConfigError, DataError, PlrcError

webdataset = pytest.importorskip("webdataset", reason="the extra shards is not installed")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "RETRY_WAITS", (0.01, 0.01))


def listed(source: str | Path, **settings: Any) -> ImageList:
    return find_images(DataConfig(source=str(source), **settings))


def shard(source: str | Path, out: Path, maps: str = "", megabytes: float = 0.008) -> ShardReport:
    return write_shards(listed(source), out, maps, megabytes)


def contents(images: ImageList) -> dict[str, bytes]:
    """Member name -> bytes."""
    return {name.partition("/")[2]: images.read(i) for i, name in enumerate(images.names)}


@pytest.fixture(scope="module")
def packed(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 48 scenes in shards of a few images, read-only for all tests."""
    out = tmp_path_factory.mktemp("shards") / "out"
    shard(scenes, out)
    return out


class Ranges(SimpleHTTPRequestHandler):
    """Python's file server, and byte ranges as every object store answers them."""

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        path = Path(self.translate_path(self.path))
        if wanted is None or not path.is_file():
            super().do_GET()
            return
        first, last = map(int, wanted.groups())
        part = path.read_bytes()[first : last + 1]
        self.send_response(206)
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)


@pytest.fixture
def served(packed: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Ranges, directory=str(packed))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


# ------------------------------------------------------------------------------------------------------------ writing


def test_shards_hold_the_original_bytes_and_webdataset_reads_them(scenes: Path, packed: Path) -> None:
    original = {path.name: path.read_bytes() for path in scenes.iterdir()}
    assert contents(listed(packed)) == original
    files = sorted(map(str, packed.glob("*.tar")))
    assert len(files) > 5
    with contextlib.ExitStack() as opened:
        streams = [{"url": file, "stream": opened.enter_context(open(file, "rb"))} for file in files]
        parts = webdataset.tariterators.tar_file_expander(streams)
        read = {f"{s['__key__']}.jpg": s["jpg"] for s in webdataset.tariterators.group_by_keys(parts)}
    assert read == original


def test_the_same_images_give_the_same_files(scenes: Path, packed: Path, tmp_path: Path) -> None:
    shard(scenes, tmp_path / "again")
    for path in packed.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_killed_while_writing_it_resumes_with_what_is_whole(scenes: Path, packed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code = (
        "import os, signal, sys; from pathlib import Path; from plrc.config import DataConfig\n"
        "from plrc.data.shard_writer import write_shards; from plrc.data.sources import find_images\n"
        "stop = lambda done, total: os.kill(os.getpid(), signal.SIGKILL) if done == 4 else None\n"
        "write_shards(find_images(DataConfig(source=sys.argv[1])), Path(sys.argv[2]), '', 0.008, stop)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(scenes), str(out)], capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr
    with pytest.raises(DataError, match="are unfinished; give the same plrc shard command again"):
        listed(out)
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    assert len(before) == 4
    assert shard(scenes, out).present == 4
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert contents(listed(out)) == contents(listed(packed))
    with pytest.raises(DataError, match="shards of other images or settings \\(megabytes\\)"):
        shard(scenes, out, megabytes=1)
    with pytest.raises(DataError, match=r"is not empty and holds no shards\.json"):
        shard(packed, scenes)


def test_killed_while_writing_its_first_file_it_can_be_started_again(
    scenes: Path, packed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    code = (
        "import sys; from pathlib import Path; from plrc.config import DataConfig\n"
        "from plrc.data.shard_writer import write_shards; from plrc.data.sources import find_images\n"
        "write_shards(find_images(DataConfig(source=sys.argv[1])), Path(sys.argv[2]), '', 0.008)"
    )
    kill_at_first_file(code, scenes, out)
    (partial,) = out.iterdir()
    assert partial.name.startswith(".shards.json.")
    shard(scenes, out)
    assert contents(listed(out)) == contents(listed(packed))


def test_awkward_names_unreadable_files_and_id_maps(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    for name in ("a.jpg", "a.png", "x.y.jpg", "x_y.jpg", "deep/er/b.JPG"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "in" / name)
    (tmp_path / "in" / "empty.jpg").touch()
    ids = np.arange(64, dtype=np.uint8).reshape(8, 8)
    (tmp_path / "maps" / "deep" / "er").mkdir(parents=True)
    Image.fromarray(ids).save(tmp_path / "maps" / "deep" / "er" / "b.png")
    done = shard(tmp_path / "in", tmp_path / "out", maps=str(tmp_path / "maps"))
    assert (done.images, done.maps, done.unusable) == (5, 1, (("empty.jpg", "the file is empty"),))
    images = listed(tmp_path / "out")
    assert len(set(images.names)) == 5
    config = Config().with_values({"regions.source": "shards", "regions.map_size": 8})
    from plrc.data.regions import RegionError, Regions

    regions = Regions(config, images)
    at = next(i for i, name in enumerate(images.names) if "deep/er/b" in name)
    assert torch.equal(regions(at), torch.from_numpy(ids.astype(np.int16) - 1))
    with pytest.raises(RegionError, match="no id map in its shard"):
        regions((at + 1) % 5)
    with pytest.raises(ConfigError, match="names no shards with id maps"):
        Regions(config, listed(tmp_path / "in"))


# ------------------------------------------------------------------------------------------------------------ reading


def test_id_maps_of_stored_pixels_are_turned_and_an_image_is_fetched_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("photos", "maps"):
        (tmp_path / folder).mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = np.repeat(np.array([[1, 2]], dtype=np.uint8), 30, axis=0).repeat(30, axis=1)  # [30, 60]: left 1, right 2
    Image.fromarray(stored * 100).convert("RGB").save(tmp_path / "photos" / "a.jpg", exif=exif)
    Image.fromarray(stored).save(tmp_path / "maps" / "a.png")
    shard(tmp_path / "photos", tmp_path / "out", str(tmp_path / "maps"))
    images = listed(tmp_path / "out")
    reads: list[str] = []
    read_range = shards.Shards._read_range

    def count(self: shards.Shards, name: str, offset: int, length: int) -> bytes:
        reads.append(name)
        return read_range(self, name, offset, length)

    monkeypatch.setattr(shards.Shards, "_read_range", count)
    regions = Regions(Config(regions=RegionConfig(source="shards", map_size=4)), images)
    assert regions(0).tolist() == [[0] * 4, [0] * 4, [1] * 4, [1] * 4]
    shown = images.decode(0, DataConfig())[0]
    assert shown[:20].float().mean() < 120 < shown[40:].float().mean()
    assert len(reads) == 2  # the id map, and the image


def test_every_address_gives_the_same_images(packed: Path, served: str) -> None:
    expected = contents(listed(packed))
    memory = fsspec.filesystem("memory")
    memory.put(str(packed), "/bucket", recursive=True)
    last = len(list(packed.glob("*.tar"))) - 1
    pattern = f"shard-{{000000..{last:06d}}}.tar"
    addresses = [f"file://{packed}", "memory://bucket", served, f"{served}/{pattern}", f"simplecache::{served}"]
    try:
        for source in (packed / "*.tar", packed / pattern, *addresses):
            assert contents(listed(source)) == expected, source
    finally:
        memory.rm("/bucket", recursive=True)
    assert len(listed(packed / "shard-000000.tar")) < 48
    with pytest.raises(DataError, match=r"mine-\*\.tar matches no \.tar file"):  # no fall-back to all shards
        listed(packed / "mine-*.tar")


def test_shards_of_others_are_read_from_their_headers(scenes: Path, tmp_path: Path, served: str) -> None:
    """Written by webdataset itself, with other members next to the image and no index."""
    with webdataset.ShardWriter(str(tmp_path / "o-%03d.tar"), maxcount=20, verbose=0) as out:
        for path in sorted(scenes.iterdir()):
            out.write({"__key__": path.stem, "jpg": path.read_bytes(), "cls": b"7", "json": b"{}"})
    images = listed(tmp_path, layout="shards")
    assert contents(images) == {path.name: path.read_bytes() for path in scenes.iterdir()}
    assert "read the headers of 3 shards that are not in shards.json" in images.notes
    assert listed(tmp_path / "o-{000..002}.tar").names == images.names


def test_members_never_leave_their_folder(scenes: Path, tmp_path: Path) -> None:
    data = next(scenes.iterdir()).read_bytes()
    names = ["good.jpg", "./dot.jpg", "../up.jpg", "/abs.jpg", "a/../../b.jpg", "c\\..\\d.jpg", "C:e.jpg"]
    with tarfile.open(tmp_path / "s.tar", "w") as out:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            out.addfile(member, io.BytesIO(data))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
            member = tarfile.TarInfo(f"link{kind.decode()}.jpg")
            member.type, member.linkname = kind, "/etc/passwd"
            out.addfile(member)
    images = listed(tmp_path / "s.tar")
    assert images.names == ("s.tar/dot.jpg", "s.tar/good.jpg")
    assert [note for note in images.notes if "are not regular files or have unsafe names, left out: 8 (" in note]
    for shards_of in ({"../s.tar": [["good.jpg", 512, 10, -1, -1]]}, {"s.tar": [["../../x.jpg", 512, 10, -1, -1]]}):
        (tmp_path / "shards.json").write_text(json.dumps({"version": 1, "shards": shards_of}))
        with pytest.raises(DataError, match="may lie outside of its folder"):
            listed(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is damaged"),
        ("[]", "is not an index of plrc shard"),
        ('{"version": 9, "shards": {}}', "of version 9, this plrc reads 1"),
        ('{"version": 1, "shards": {"a.tar": [["b.jpg", -5, 1, -1, -1]]}}', "is not an index of plrc shard"),
        ('{"version": 1, "shards": {"a.tar": [["b.jpg"]]}}', "is not an index of plrc shard"),
        (
            '{"version": 1, "shards": {"a.tar": [["b.jpg", 1000000000000000000000, 1, -1, -1]]}}',
            "is not an index of plrc shard",
        ),
        ("[" * 200_000, "nested too deeply"),
    ],
)
def test_a_wrong_index_is_one_sentence(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "shards.json").write_text(text)
    with pytest.raises(DataError, match=message):
        listed(tmp_path)


def test_a_member_may_claim_no_more_than_an_image_can_be(tmp_path: Path) -> None:
    """Image and id map of 30 GB, in a sparse file that does hold as much: refused before anything is read."""
    (tmp_path / "shards.json").write_text('{"version": 1, "shards": {"a.tar": [["b.jpg", 512, 30e9, 512, 30e9]]}}')
    with (tmp_path / "a.tar").open("wb") as file:
        file.truncate(31 * 10**9)
    hostile = listed(tmp_path).shards
    assert hostile is not None
    reads: list[Callable[[int], bytes | None]] = [hostile.read, hostile.read_map]
    for read in reads:
        with pytest.raises(DecodeError, match=r"30 GB, more than data\.max_megapixels = 200 can take"):
            read(0)


def test_scan_looks_into_shards(packed: Path) -> None:
    report = scan(DataConfig(source=str(packed)))
    assert (report.files, report.usable, report.index) == (48, 48, "")


# ----------------------------------------------------------------------------------------------------- order and resume


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_every_sample_once_an_epoch_over_ranks_also_after_a_stop(world: int, packed: Path) -> None:
    groups = listed(packed).shards.samples[:, 0]  # type: ignore[union-attr]

    def keys(start: int, stop: int) -> list[tuple[int, int]]:
        ranks = (StepSampler(48, 12, 1, 5, start, stop, rank, world, groups) for rank in range(world))
        return [key for sampler in ranks for part in sampler for key in part]

    whole = Counter(keys(0, 8))
    assert set(whole) == {(epoch, i) for epoch in (0, 1) for i in range(48)} and set(whole.values()) == {1}
    assert Counter(keys(0, 3)) + Counter(keys(3, 8)) == whole


def test_an_epoch_keeps_to_few_shards_at_a_time() -> None:
    groups = np.repeat(np.arange(1000), 7)
    order = epoch_order(7000, 0, 3, groups)
    assert sorted(order) == list(range(7000)) and not np.array_equal(order, epoch_order(7000, 0, 4, groups))
    for start in range(0, 7000, 64 * 7):
        assert len(set(groups[order[start : start + 64 * 7]])) <= 64
    assert len(set(groups[order[:20]])) > 10


def weights(out: Path) -> dict[str, torch.Tensor]:
    path = newest_checkpoint(out)
    assert path is not None
    state = load_checkpoint(path)
    return {
        f"{part}.{name}": tensor for part in ("student", "teacher", "queue") for name, tensor in state[part].items()
    }


@pytest.mark.slow
def test_stop_and_resume_in_the_middle_of_an_epoch_bit_for_bit(
    packed: Path, served: str, tiny: Callable[..., Config], tmp_path: Path
) -> None:
    """5 steps per epoch, over HTTP with loader processes, stopped at the third and resumed into the second epoch: the
    same numbers as one run on the folder without any of this."""
    base = tiny(optim__steps=8)
    pretrain(base.with_values({"run.out": str(tmp_path / "whole"), "data.source": str(packed)}))
    parts = base.with_values({"run.out": str(tmp_path / "parts"), "data.source": served, "run.workers": 2})
    with after_steps(3, lambda: os.kill(os.getpid(), signal.SIGTERM)):
        stopped = pretrain(parts)
    assert (stopped.step, stopped.finished) == (3, False)
    assert pretrain(parts.with_values({"run.resume": True})).finished
    a, b = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert len(a) > 100 and a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# -------------------------------------------------------------------------------------------------------------- faults


def test_a_missing_and_a_broken_shard_are_skipped_counted_and_named(
    packed: Path, tiny: Callable[..., Config], tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in packed.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    (copy / "shard-000001.tar").unlink()
    cut = copy / "shard-000002.tar"
    cut.write_bytes(cut.read_bytes()[:600])
    config = tiny(data__source=str(copy), data__held_out=0, data__max_unreadable_fraction=0.9, optim__steps=6)
    assert pretrain(config).finished
    log = (tmp_path / "run" / "log.txt").read_text()
    assert log.count("cannot read shard-000001.tar: does not exist (tried 3 times); another image takes its place") == 1
    assert log.count("cannot read shard-000002.tar: the shard ends before byte") == 1
    lost = sum(name.startswith(("shard-000001", "shard-000002")) for name in listed(packed).names)
    strict = config.with_values({"data.max_unreadable_fraction": (lost - 1) / 48, "run.out": str(tmp_path / "strict")})
    with pytest.raises(PlrcError, match=f"^{lost} of 48 images cannot be read, .*such as shard-000001.tar"):
        pretrain(strict)


def test_a_substitute_comes_from_another_shard(packed: Path, tiny: Callable[..., Config], tmp_path: Path) -> None:
    images = listed(packed)
    assert images.shards is not None
    first = [i for i in range(48) if images.shards.samples[i, 0] == 0]
    (tmp_path / "copy").mkdir()
    for path in packed.iterdir():
        if path.name != "shard-000000.tar":
            (tmp_path / "copy" / path.name).write_bytes(path.read_bytes())
    data = ViewDataset(listed(tmp_path / "copy"), np.arange(48), tiny(data__source=str(tmp_path / "copy")))
    chosen = {i: data[0, i] for i in first}
    assert all([name for name, _ in batch.failures] == ["shard-000000.tar"] for batch in chosen.values())
    assert len({batch.images.sum().item() for batch in chosen.values()}) == len(first)


def test_substitutes_in_a_single_shard_are_other_images() -> None:
    step = _substitute_step(48, np.zeros(48, dtype=np.int64))
    assert {(7 + attempt * step) % 48 for attempt in range(48)} == set(range(48))
    assert _substitute_step(48, np.repeat([0, 1, 2], 16)) == 16


def test_the_images_of_an_overwritten_shard_are_named_one_by_one(
    packed: Path, tiny: Callable[..., Config], tmp_path: Path
) -> None:
    for path in packed.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    struck = tmp_path / "shard-000001.tar"
    struck.write_bytes(bytes(struck.stat().st_size))
    data = ViewDataset(listed(tmp_path), np.arange(48), tiny(data__source=str(tmp_path)))
    for i, name in enumerate(data.images.names):
        sample = data.load_sample(0, i)
        assert (sample if isinstance(sample, str) else "").startswith("not an image") == name.startswith(struck.name)
        assert data.failed_name(i) == name


def test_a_store_that_fails_now_and_then_is_asked_again(packed: Path, tmp_path: Path) -> None:
    asked: Counter[str] = Counter()

    class Flaky(Ranges):
        def do_GET(self) -> None:
            what = f"{self.path} {self.headers.get('Range')}"
            asked[what] += 1
            if asked[what] <= 2 and ".tar" in what:
                self.send_error(503)
            else:
                super().do_GET()

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Flaky, directory=str(packed))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        images = listed(f"http://127.0.0.1:{server.server_address[1]}")
        assert contents(images) == contents(listed(packed))
        server.shutdown()
    assert images.shards is not None and not images.shards.broken
    assert {count for what, count in asked.items() if ".tar" in what} == {3}


def test_a_server_without_ranges_is_named(packed: Path) -> None:
    class Plain(SimpleHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Plain, directory=str(packed))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        with pytest.raises(DecodeError, match="sends whole files, not ranges of them; write simplecache::"):
            listed(address).read(0)
        assert contents(listed(f"simplecache::{address}")) == contents(listed(packed))
        server.shutdown()


def test_unusable_addresses(tmp_path: Path) -> None:
    for source, message in {
        "nowhere://bucket/x.tar": "is not a URL that can be read",
        "memory://empty/": "has no shards",
        str(tmp_path / "gone-{0..2}.tar"): r"none of the 3 shards of .* does not exist \(tried 3 times\)",
    }.items():
        with pytest.raises(PlrcError, match=message):
            listed(source)
