"""Storage faults, real ones: damaged checkpoints, a full disk, a read-only or vanished folder, two runs in one folder.

Every run that can go on must end as a run without the fault does, bit for bit.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engine.runs import after_steps, assert_same, assert_same_end, curve, final, power_cut
from tests.killed import kill_at_first_file

from plrc.cli import main
from plrc.config import Config
from plrc.engine.checkpoint import FORMAT, KEYS, checkpoint_damage, checkpoints, load_checkpoint, save_checkpoint
from plrc.engine.pretrain import pretrain
from plrc.engine.setup import prepare
from plrc.errors import PlrcError
from plrc.files import FolderLock

Tiny = Callable[..., Config]
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's
RESUME = {"run.resume": True}
STEPS = {"optim__steps": 6, "run__checkpoint_every_steps": 2, "optim__name": "sgd"}


@pytest.fixture(scope="module")
def undisturbed(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Where the run without a fault lies, once it was needed."""
    return {"out": tmp_path_factory.mktemp("undisturbed") / "run"}


@pytest.fixture
def whole(tiny: Tiny, undisturbed: dict[str, Path]) -> Path:
    out = undisturbed["out"]
    if not out.exists():
        pretrain(tiny(**STEPS, run__out=str(out)))
    return out


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """mount(options) -> a folder that is a file system of its own; again: with other options."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = False

    def mount(options: str) -> Path:
        nonlocal mounted
        command = ["mount", "-t", "tmpfs", "-o", f"remount,{options}" if mounted else options, "tmpfs", str(folder)]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        if found.returncode:
            pytest.skip(f"needs the right to mount a tmpfs: {found.stderr.strip()}")
        mounted = True
        return folder

    yield mount
    if mounted:
        subprocess.run(["umount", str(folder)], check=True)


def log(out: str | Path) -> str:
    return (Path(out) / "log.txt").read_text()


def flip_bit(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 16]))


# Damaged checkpoints


def small_state(step: int = 1) -> dict[str, Any]:
    torch.manual_seed(0)
    state: dict[str, Any] = dict.fromkeys(KEYS, 0) | {"format": FORMAT, "step": step, "config": {"seed": 3}}
    return state | {name: {"weight": torch.randn(40, 20)} for name in ("student", "teacher")}


def test_every_flipped_bit_and_every_cut_is_noticed_or_harmless(tmp_path: Path) -> None:
    """400 single bits anywhere in the file (weights, names, directory, padding) and 60 lengths."""
    path = save_checkpoint(tmp_path / "checkpoints", small_state(), keep=0)
    whole, draw, noticed = path.read_bytes(), random.Random(0), 0
    for _ in range(400):
        place = draw.randrange(len(whole))
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << draw.randrange(8)]) + whole[place + 1 :])
        if checkpoint_damage(path):
            noticed += 1
            with pytest.raises(PlrcError, match="cannot be read"):
                load_checkpoint(path)
        else:
            assert_same(small_state(), load_checkpoint(path))
    assert noticed > 200
    for length in (0, 1, *(draw.randrange(len(whole)) for _ in range(58))):
        path.write_bytes(whole[:length])
        assert checkpoint_damage(path)
        with pytest.raises(PlrcError, match="cannot be read"):
            load_checkpoint(path)


@pytest.mark.parametrize("file_format", [1, FORMAT + 1])
def test_a_checkpoint_of_another_format_says_so(tmp_path: Path, file_format: int) -> None:
    torch.save(small_state() | {"format": file_format, "new": 1}, tmp_path / "other.pt")
    with pytest.raises(PlrcError, match=f"has checkpoint format {file_format}; this version of plrc reads"):
        load_checkpoint(tmp_path / "other.pt")


def test_a_file_that_is_no_checkpoint_says_so(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(PlrcError, match="is not a plrc checkpoint"):
        load_checkpoint(tmp_path / "other.pt")


def test_a_checkpoint_that_may_not_be_read_is_not_damaged() -> None:
    """Root may read everything, so somebody else looks."""
    look = (
        "import os, pathlib, sys; from plrc.engine.checkpoint import checkpoint_damage; "
        "os.getuid() or os.setuid(65534); "
        "checkpoint_damage(pathlib.Path(sys.argv[1]))"
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "step_00000001.pt"
        torch.save(small_state(), path)
        path.chmod(0)
        path.parent.chmod(0o711)
        found = subprocess.run([sys.executable, "-c", look, str(path)], capture_output=True, text=True, check=False)
    assert "PermissionError" in found.stderr


@pytest.mark.slow
def test_damaged_checkpoints_are_set_aside_and_what_killed_runs_left_is_removed(tiny: Tiny, whole: Path) -> None:
    config = tiny(**STEPS).with_values(RESUME)
    with after_steps(5, power_cut), pytest.raises(RuntimeError, match="power cut"):
        pretrain(config)
    out = Path(config.run.out)
    first, second = checkpoints(out)
    flip_bit(second)
    left = [out / "checkpoints" / f".{second.name}.4711", out / ".config.toml.12"]
    for file in left:
        file.write_bytes(b"half")
    assert pretrain(config).finished
    said = f"warning: the checkpoint {second.name} is damaged (the checksum of its record "
    assert said in log(out) and f"it is renamed to {second.name}.damaged, and {first.name} is used instead" in log(out)
    assert "resuming at step 2" in log(out) and second.with_name(f"{second.name}.damaged").exists()
    assert not any(file.exists() for file in left)
    assert_same_end(whole, out)


def test_where_all_checkpoints_are_damaged_nothing_is_touched(tiny: Tiny) -> None:
    config = tiny(optim__steps=2, run__checkpoint_every_steps=1, optim__name="sgd")
    out = pretrain(config).path
    flip_bit(checkpoints(out)[0])
    checkpoints(out)[1].write_bytes(b"")
    before = checkpoints(out)
    sentence = r"step_00000002\.pt cannot be read \(File is not a zip .*, and .* holds no other checkpoint"
    with pytest.raises(PlrcError, match=sentence):
        pretrain(config.with_values(RESUME))
    assert checkpoints(out) == before


def test_an_old_checkpoint_that_cannot_be_deleted_ends_no_save(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A folder in its place: the system refuses to delete it as a file."""
    folder = tmp_path / "checkpoints"
    first = folder / "step_00000001.pt"
    first.mkdir(parents=True)
    for step in (2, 3):
        save_checkpoint(folder, small_state(step), keep=1)
        assert [path.name for path in checkpoints(tmp_path)] == [first.name, f"step_0000000{step}.pt"]
        assert caplog.messages[-1] == f"cannot delete the old checkpoint {first}: Is a directory"
    first.rmdir()
    first.touch()
    save_checkpoint(folder, small_state(4), keep=1)
    assert [path.name for path in checkpoints(tmp_path)] == ["step_00000004.pt"]


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_was_killed_while_it_wrote_its_first_file_can_be_started_again(tiny: Tiny, resume: bool) -> None:
    config = tiny(optim__steps=1).with_values({"run.resume": resume})
    out = Path(config.run.out)
    config.save(out.with_name("settings.toml"))
    code = "import sys; from plrc.cli import main; main(['pretrain', '--config', sys.argv[1]])"
    kill_at_first_file(code, out.with_name("settings.toml"))
    (partial,) = out.glob(".config.toml.*")
    assert pretrain(config).finished
    assert not partial.exists()


# A full disk


def test_a_save_that_fails_ends_no_run_and_no_line_of_the_metrics_is_lost(tiny: Tiny, whole: Path) -> None:
    """The system refuses every write from step 3 to 5, also those of the log, TensorBoard and standard output."""
    config = tiny(**STEPS)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def refuse() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))

    def allow() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    try:
        with after_steps(3, refuse), after_steps(5, allow):
            run = pretrain(config)
    finally:
        allow()
    said = "step_00000004.pt: File too large; the checkpoints before it are untouched; training continues"
    assert run.finished and f"warning: cannot save {run.path}/checkpoints/{said}" in log(run.path)
    assert [path.name for path in checkpoints(run.path)] == ["step_00000002.pt", "step_00000006.pt"]
    assert not list(run.path.rglob(".step*"))
    assert_same_end(whole, run.path)


@pytest.mark.slow
def test_a_reader_of_the_output_that_goes_away_ends_no_run(tiny: Tiny, whole: Path, tmp_path: Path) -> None:
    """As in `plrc pretrain ... | head -1`, or where the terminal that shows a log is closed."""
    config = tiny(**STEPS).with_values({"run.threads": 1})  # as here: more threads add in another order
    config.save(tmp_path / "settings.toml")
    command = [sys.executable, "-m", "plrc", "pretrain", "--config", str(tmp_path / "settings.toml")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline()
        process.stdout.close()
        assert process.wait(timeout=3600) == 0
    assert_same_end(whole, config.run.out)


@pytest.mark.slow
def test_a_full_disk_at_the_end_is_one_sentence_and_nothing_is_lost(
    tiny: Tiny, scenes: Path, whole: Path, small_disk: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """A file system with room for one checkpoint and a half, later for more; then one that is read-only."""
    size = checkpoints(whole)[0].stat().st_size
    out = small_disk(f"size={size * 3 // 2}") / "run"
    config = tiny(**STEPS, run__out=str(out))
    config.save(Path(config.run.out).parents[1] / "settings.toml")
    command = ["pretrain", "--config", str(out.parents[1] / "settings.toml"), "--run.resume"]
    assert main(command) == 2
    sentence = "step_00000006.pt: No space left on device; the checkpoints before it are untouched; when this is fixed"
    error = capsys.readouterr().err
    assert error.startswith(f"plrc: cannot save {out}/checkpoints/{sentence}") and error.count("\n") == 1
    assert [path.name for path in checkpoints(out)] == ["step_00000002.pt"]
    assert "step_00000004.pt: No space left on device" in log(out)
    small_disk(f"size={size * 6}")
    assert main(command) == 0
    assert_same_end(whole, out)
    small_disk("ro")
    capsys.readouterr()
    assert main(command) == 2
    error = capsys.readouterr().err
    assert error == f"plrc: cannot use {out}/lock: Read-only file system; make it writable, or name another --out\n"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into every folder; the file system above is read-only")
def test_a_folder_without_the_right_to_write(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir(mode=0o555)
    with pytest.raises(PlrcError, match="Permission denied; make it writable, or name another --out"):
        pretrain(tiny(run__out=str(tmp_path / "theirs" / "run")))


# Slow storage, and a folder that is gone


@pytest.mark.slow
def test_slow_storage_changes_nothing(tiny: Tiny, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every flush to the disk takes a fifth of a second longer."""
    flush, flushed = os.fsync, 0

    def slowly(file: int) -> None:
        nonlocal flushed
        time.sleep(0.2)
        flush(file)
        flushed += 1

    monkeypatch.setattr(os, "fsync", slowly)
    run = pretrain(tiny(**STEPS))
    assert run.finished and flushed >= 8
    assert_same_end(whole, run.path)


def test_a_folder_that_is_away_for_a_while(tiny: Tiny, whole: Path, tmp_path: Path) -> None:
    config = tiny(**STEPS)
    out, away = Path(config.run.out), tmp_path / "away"
    with after_steps(3, lambda: out.rename(away)), after_steps(5, lambda: away.rename(out)):
        run = pretrain(config)
    assert run.finished and f"cannot save to {out}: the folder was removed or replaced while it was in use" in log(out)
    assert_same_end(whole, out)


def test_a_folder_that_is_gone_is_not_made_again_and_another_one_is_left_alone(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(optim__steps=2, optim__name="sgd")
    out = Path(config.run.out)
    sentence = f"^cannot save to {out}: the folder was removed or replaced while it was in use; when this is fixed"
    with after_steps(1, lambda: shutil.rmtree(out)), pytest.raises(PlrcError, match=sentence):
        pretrain(config)
    assert not out.exists()

    def replace() -> None:
        out.rename(tmp_path / "old")
        prepare(config, FolderLock())

    with after_steps(1, replace), pytest.raises(PlrcError, match=sentence):
        pretrain(config)
    assert not (out / "checkpoints").exists()


# Two runs in one folder


def test_a_second_run_is_refused_while_the_first_is_at_work(tiny: Tiny) -> None:
    config = tiny(optim__steps=2, optim__name="sgd")
    refused: list[str] = []

    def second() -> None:
        before = sorted(Path(config.run.out).rglob("*"))
        for resume in (False, True):
            with pytest.raises(PlrcError) as caught:
                pretrain(config.with_values({"run.resume": resume}))
            refused.append(str(caught.value))
        assert sorted(Path(config.run.out).rglob("*")) == before

    with after_steps(1, second):
        assert pretrain(config).finished
    assert refused[0].endswith("is not empty; add --resume to continue it, or name another --out")
    assert refused[1] == f"another run is using {config.run.out}; wait for its end, or name another --out"
    assert len(curve(config.run.out)) == 2 and final(config.run.out)["step"] == 2


def test_of_two_that_start_at_once_one_is_refused(tiny: Tiny) -> None:
    """The other one comes between the look at the empty folder and the lock."""
    config = tiny(optim__steps=1, optim__name="sgd")

    class Late(FolderLock):
        def take(self, folder: Path) -> bool:
            assert pretrain(config).finished
            return super().take(folder)

    for resume, sentence in ((False, "is not empty; add --resume"), (True, "another run has just used .*; repeat")):
        shutil.rmtree(config.run.out, ignore_errors=True)
        late = Late()
        with pytest.raises(PlrcError, match=sentence):
            prepare(config.with_values({"run.resume": resume}), late)
        late.release()


def test_a_killed_process_gives_the_folder_back_though_its_children_live(tmp_path: Path) -> None:
    code = """
import os, sys, time
from pathlib import Path
from plrc.files import FolderLock
lock = FolderLock()
assert lock.take(Path(sys.argv[1]))
if os.fork() == 0:
    print(os.getpid(), flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        child, lock = int(other.stdout.readline()), FolderLock()
        assert not lock.take(tmp_path)
        other.kill()
        other.wait()
        os.kill(child, 0)  # it lives
        assert lock.take(tmp_path)
        os.kill(child, signal.SIGKILL)
    lock.release()
