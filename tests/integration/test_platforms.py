"""Other systems, as far as Linux can stand for them: no POSIX-only module, spawned processes, Apple's GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torchvision
from tests.integration.processes import HANGS, ROOT
from torch.utils._python_dispatch import TorchDispatchMode

import plrc
from plrc import runtime
from plrc.config import Config
from plrc.data.loader import DeviceLoader
from plrc.data.workers import IMPORTS_SCRIPT, UNGUARDED
from plrc.engine import metrics
from plrc.engine.checks import check_precision
from plrc.engine.pretrain import pretrain
from plrc.errors import ConfigError
from plrc.measures.features import feature_statistics
from plrc.runtime import choose_device, choose_precision, choose_workers
from plrc.scenes import write_scenes
from plrc.transfer.finetune import transfer

PORTABLE = Path(__file__).with_name("portable")


def run_portable(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run Python without fork and POSIX-only modules."""
    paths = [str(PORTABLE), str(ROOT / "src"), str(ROOT)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, timeout=HANGS, check=False)


@pytest.mark.slow
def test_the_quick_path_needs_neither_fork_nor_posix_modules(tmp_path: Path) -> None:
    done = run_portable("-m", "tests.integration.quick_path", str(tmp_path / "quick"), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("the quick path works\n")
    assert {"config.toml", "manifest.json", "log.txt", "exported"} <= {
        p.name for p in (tmp_path / "quick/run").iterdir()
    }


@pytest.mark.slow
def test_a_script_without_the_main_guard_ends_in_one_sentence(scenes: Path, tmp_path: Path) -> None:
    """The list of images is longer than the pipe to a new process holds."""
    images = tmp_path / "images"
    images.mkdir()
    for number in range(1000):
        (images / f"{number:0100}.jpg").hardlink_to(next(scenes.glob("*.jpg")))
    script = tmp_path / "script.py"
    script.write_text(
        "import plrc\n"
        "from tests.tiny import TINY\n"
        "own = {'data.source': 'images', 'run.out': 'run', 'run.workers': 2, 'optim.steps': 2}\n"
        "plrc.pretrain(plrc.preset('debug_cpu').with_values(TINY | own))\n"
        "print('trained')\n"
    )
    done = run_portable(str(script), cwd=tmp_path)
    assert done.returncode == 1 and "trained" not in done.stdout
    assert done.stderr.splitlines()[-1] == f"plrc.errors.RunError: {UNGUARDED}", done.stderr
    assert done.stderr.count("Traceback") == 1  # that of the script itself; its loader processes end silently


COMPARISON = """
from pathlib import Path
import plrc
settings = {
    "data.source": "scenes", "data.train": "train", "data.val": "val", "data.test": "test", "run.out": "compare",
    "run.workers": 1, "optim.steps": 1, "optim.batch_size": 2, "input.crop": (32, 32), "model.width": 8,
    "evaluations": 1,
}
config = plrc.protocol("small_semantic", "semantic").with_values(settings)
plrc.compare_weights(config, [Path("weights.pth")], seeds=1, lrs=[0.01], processes=PROCESSES)
print("compared")
"""


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_comparison_without_the_main_guard_ends_in_one_sentence(processes: int, tmp_path: Path) -> None:
    write_scenes(tmp_path / "scenes", {"train": 4, "val": 2, "test": 2}, seed=0, size=64)
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "weights.pth")
    script = tmp_path / "script.py"
    script.write_text(COMPARISON.replace("PROCESSES", str(processes)))
    done = run_portable(str(script), cwd=tmp_path)
    assert done.returncode == 1 and "compared" not in done.stdout
    assert done.stderr.splitlines()[-1] == f"plrc.errors.RunError: {UNGUARDED}", done.stderr
    assert done.stderr.count("Traceback") == 1


def test_a_new_process_whose_parent_has_ended_ends(tmp_path: Path) -> None:
    code = (
        "import multiprocessing\n"
        "from plrc.data.workers import end_if_importing_main\n"
        "multiprocessing.current_process()._inheriting = True\n"
        "end_if_importing_main()\n"
    )
    reads, writes = os.pipe()
    os.write(writes, b"what the parent could still send")
    os.close(writes)
    command = [sys.executable, "-c", code, f"pipe_handle={reads}"]
    done = subprocess.run(command, cwd=tmp_path, pass_fds=[reads], timeout=HANGS, check=False)
    os.close(reads)
    assert done.returncode == IMPORTS_SCRIPT


CRASH = """
import os
import signal
from torch.utils.data import Dataset
from plrc.data.workers import load_batches, reading

class Images(Dataset):
    def __getitem__(self, name):
        with reading(f"{name}.jpg"):
            if name == "bad":
                os.kill(os.getpid(), signal.SIGSEGV)
        return name

if __name__ == "__main__":
    with load_batches(Images(), [["good"], ["bad"], ["other"]], list, workers=2) as batches:
        print(list(batches))
"""


def test_a_spawned_process_that_crashes_names_the_image(tmp_path: Path) -> None:
    script = tmp_path / "crash.py"
    script.write_text(CRASH)
    done = run_portable(str(script), cwd=tmp_path)
    sentence = (
        "plrc.errors.RunError: a loader process crashed (SIGSEGV) while it was reading bad.jpg: "
        "remove or replace this file, then resume with --resume"
    )
    assert done.returncode == 1 and done.stderr.splitlines()[-1] == sentence, done.stderr


@pytest.fixture
def apple(monkeypatch: pytest.MonkeyPatch) -> None:
    """A computer with an Apple GPU and no other."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(runtime, "cores", lambda: 8)


def test_the_apple_gpu_is_chosen_and_trains_in_float32(apple: None) -> None:
    device = choose_device("auto")
    assert device == choose_device("mps") == torch.device("mps")
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_precision("auto", device) == torch.float32
    assert choose_workers(-1, device) == 7
    with pytest.raises(ConfigError, match=r"float16 does not work on mps; write --optim.precision float32"):
        check_precision(Config().with_values({"optim.precision": "float16"}), device.type)


def test_several_processes_do_not_use_the_apple_gpu(apple: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert choose_device("auto") == torch.device("cpu")
    with pytest.raises(ConfigError, match="mps works with a single process only; write --devices 1"):
        choose_device("mps")


def test_a_missing_apple_gpu_is_a_sentence() -> None:
    with pytest.raises(ConfigError, match=r"run.device is mps but PyTorch finds no Apple GPU here"):
        choose_device("mps")


class _Float64(TorchDispatchMode):
    """Records the functions of plrc in which an operation gives a float64 tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.places: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.dtype == torch.float64:
            self.places.add(_place())
        return result


def _place() -> str:
    """The innermost function of plrc that is running."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        module = frame.f_globals.get("__name__", "")
        if module.startswith("plrc."):
            return f"{module}.{frame.f_code.co_name}"
        frame = frame.f_back
    return ""


@contextmanager
def cpu_as_mps() -> Iterator[None]:
    """The sums of metrics are as narrow as on mps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "_widest", torch.Tensor.float)
        yield


@pytest.mark.parametrize("method", ["plrc", "pixel", "region"])
def test_training_computes_nothing_in_float64_on_the_device(method: str, tiny: Callable[..., Config]) -> None:
    """Apple's GPU has no float64. On a CPU, its places are listed: all others would fail there."""
    config = tiny(method, run__workers=1, run__loggers=(), optim__steps=2, run__health_every_steps=1)
    with cpu_as_mps(), _Float64() as wide:
        pretrain(config)
    assert wide.places <= {
        "plrc.data.photometric.__init__",  # constants, made on the CPU
        "plrc.measures.features.feature_statistics",  # moved to the CPU first
        "plrc.objectives.kernels._verdict",  # the kernels of CPU and CUDA
        "plrc.model.fingerprint.fingerprint",  # exports, on the CPU
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("protocol", "task", "settings"),
    [
        ("small_semantic", "semantic", {"input.crop": (32, 32), "model.width": 8}),
        ("small_detection", "detection", {"input.train_size": (64, 64), "input.test_size": 64, "input.max_size": 64}),
    ],
)
def test_fine_tuning_computes_nothing_in_float64_on_the_device(
    protocol: str, task: str, settings: dict[str, object], tmp_path: Path
) -> None:
    if task == "detection":
        pytest.importorskip("faster_coco_eval", reason="the detector needs faster-coco-eval (extra transfer)")
    write_scenes(tmp_path / "scenes", {"train": 4, "test": 2}, seed=0, size=64)
    data = {"data.source": str(tmp_path / "scenes"), "data.train": "train", "data.val": "none", "data.test": "test"}
    run = {"run.out": str(tmp_path / "out"), "run.workers": 0, "optim.steps": 1, "optim.batch_size": 2}
    config = plrc.protocol(protocol, task).with_values(data | run | settings)
    with _Float64() as wide:
        assert transfer(config) is not None
    assert wide.places <= {
        "plrc.data.photometric.__init__",  # constants, made on the CPU
        "plrc.transfer.metrics._match_image",  # scores, on the CPU
    }


def test_metrics_and_statistics_leave_an_apple_gpu_before_they_need_more(monkeypatch: pytest.MonkeyPatch) -> None:
    on_mps = SimpleNamespace(device=torch.device("mps"), float=lambda: "float32", double=None)
    assert metrics._widest(on_mps) == "float32"  # type: ignore[arg-type]
    assert metrics._widest(torch.ones(1)).dtype == torch.float64
    expected = feature_statistics(torch.eye(4))

    class OnMps:
        device = torch.device("mps")

        def __len__(self) -> int:
            return 4

        def isfinite(self) -> torch.Tensor:
            return torch.ones(1, dtype=torch.bool)

        def cpu(self) -> torch.Tensor:
            return torch.eye(4)

    assert feature_statistics(OnMps()) == expected  # type: ignore[arg-type]


def test_batches_are_moved_to_an_apple_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[torch.device] = []
    batch = SimpleNamespace(to=lambda device: moved.append(device) or "moved")
    loader = DeviceLoader(None, None, 0, torch.device("mps"))  # type: ignore[arg-type]
    monkeypatch.setattr(loader, "_host_batches", lambda: (b for b in [batch]))
    assert list(loader) == ["moved"] and moved == [torch.device("mps")]
