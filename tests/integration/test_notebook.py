"""`plrc.pretrain` in real notebook kernels: its output, twice and in a thread, and the stop button."""

from __future__ import annotations

import os
import queue
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.processes import HANGS, ROOT

nbformat = pytest.importorskip("nbformat", reason="needs nbformat (extra dev)")
nbclient = pytest.importorskip("nbclient", reason="needs nbclient (extra dev)")
manager = pytest.importorskip("jupyter_client.manager", reason="needs jupyter_client (extra dev)")
pytest.importorskip("ipykernel", reason="needs ipykernel (extra dev)")

# jupyter_client calls its own deprecated functions, and pyzmq closes sockets late
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

SETUP = """
import asyncio, logging, threading
import plrc
from tests.tiny import TINY

def config(out, **settings):
    own = {{"data.source": {scenes!r}, "data.held_out": 4, "run.out": out, "optim.steps": 4, "run.log_every_steps": 1}}
    own |= {{name.replace("__", "."): value for name, value in settings.items()}}
    return plrc.preset("debug_cpu").with_values(TINY | own)
"""
THREAD = """
results = []
thread = threading.Thread(target=lambda: results.append(plrc.pretrain(config("third"))))
thread.start()
thread.join()
results[0]
"""


@pytest.fixture
def kernel_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    paths = [str(ROOT / "src"), str(ROOT)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")


def texts(cell: Any, kind: str) -> list[str]:
    """The plain texts of a cell's outputs of a kind."""
    return [output["data"]["text/plain"] for output in cell.outputs if output.output_type == kind]


def test_progress_is_shown_once_in_each_of_several_calls(
    scenes: Path, tmp_path: Path, kernel_environment: None
) -> None:
    cells = [
        SETUP.format(scenes=str(scenes)),
        "asyncio.get_running_loop().is_running()",
        "plrc.pretrain(config('first'))",
        "plrc.pretrain(config('second'))",
        THREAD,
        "logger = logging.getLogger('plrc')\n(logger.handlers, logger.level, logger.propagate)",
        "logging.basicConfig(level=logging.INFO)\nplrc.pretrain(config('fourth'))",
        "plrc.pretrain(config('fifth', optim__lr=-1.0))",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    client = nbclient.NotebookClient(
        notebook, timeout=HANGS, kernel_name="python3", allow_errors=True, resources={"metadata": {"path": tmp_path}}
    )
    client.execute()
    setup, loop, first, second, third, loggers, fourth, refused = notebook.cells
    assert setup.outputs == [] and texts(loop, "execute_result") == ["True"]
    for cell, name in ((first, "first"), (second, "second"), (third, "third")):
        assert [output.output_type for output in cell.outputs] == ["display_data", "execute_result"], cell.outputs
        shown = texts(cell, "display_data")[0].splitlines()
        assert shown[0].startswith("48 images (folder): 44 to train on")
        assert shown[-1].startswith("4/4  image ")
        assert sum(bool(re.match(r"\d/4  image ", line)) for line in shown) == 1
        result = texts(cell, "execute_result")[0]
        assert result.startswith(f"Run('{name}', finished at step 4, 2 health checks, the last with effective rank ")
        assert len(result) < 120
        assert (tmp_path / name / "exported" / "backbone.safetensors").exists()
    assert texts(loggers, "execute_result") == ["([], 0, True)"]
    assert texts(fourth, "display_data") == []  # the user's own handlers show it
    log = "".join(output.text for output in fourth.outputs if output.output_type == "stream")
    assert log.count("4/4  image ") == 1
    assert [output.ename for output in refused.outputs if output.output_type == "error"] == ["ConfigError"]


class Kernel:
    """A kernel whose cells are executed while this process watches."""

    def __init__(self, folder: Path) -> None:
        self.manager = manager.KernelManager(kernel_name="python3")
        self.manager.start_kernel(cwd=str(folder))
        self.client = self.manager.blocking_client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=HANGS)

    def execute(self, source: str, when: Callable[[str], bool] = bool, interrupt: bool = False) -> list[dict[str, Any]]:
        """Execute a cell; the stop button is pressed once an output meets a condition. Returns its messages."""
        request = self.client.execute(source)
        messages: list[dict[str, Any]] = []
        deadline = time.monotonic() + HANGS
        while time.monotonic() < deadline:
            try:
                message = self.client.get_iopub_msg(timeout=1)
            except queue.Empty:
                continue
            if message["parent_header"].get("msg_id") != request:
                continue
            messages.append(message)
            content = message["content"]
            if interrupt and when(content.get("data", {}).get("text/plain", "")):
                self.manager.interrupt_kernel()
                interrupt = False
            if content.get("execution_state") == "idle":
                return messages
        raise AssertionError("the kernel hangs")


@pytest.fixture
def kernel(tmp_path: Path, kernel_environment: None) -> Iterator[Kernel]:
    started = Kernel(tmp_path)
    yield started
    started.client.stop_channels()
    started.manager.shutdown_kernel(now=True)


def result_of(messages: list[dict[str, Any]]) -> str:
    results = [
        message["content"]["data"]["text/plain"] for message in messages if message["msg_type"] == "execute_result"
    ]
    assert len(results) == 1, [message["content"] for message in messages if message["msg_type"] == "error"]
    return str(results[0])


def test_the_stop_button_saves_and_the_run_can_be_resumed(scenes: Path, tmp_path: Path, kernel: Kernel) -> None:
    kernel.execute(SETUP.format(scenes=str(scenes)))
    long = "config('run', optim__steps=2000, run__checkpoint_every_steps=2000)"
    messages = kernel.execute(
        f"run = plrc.pretrain({long})\nrun",
        when=lambda text: "3/2000  image" in text or "4/2000" in text,
        interrupt=True,
    )
    stopped = re.match(r"Run\('run', stopped at step (\d+), ", result_of(messages))
    assert stopped is not None and 3 <= int(stopped[1]) < 2000
    step = int(stopped[1])
    shown = [m["content"]["data"]["text/plain"] for m in messages if m["msg_type"] == "update_display_data"]
    assert f"stopped at step {step} of 2000 and saved; resume with --resume" in shown[-1]
    assert (tmp_path / "run" / "checkpoints" / f"step_{step:08d}.pt").exists()
    assert (tmp_path / "run" / "exported" / "backbone.safetensors").exists()
    more = f"config('run', optim__steps={step + 2}, run__resume=True, run__allow_changes=True)"
    assert result_of(kernel.execute(f"plrc.pretrain({more})")).startswith(f"Run('run', finished at step {step + 2}, ")


def test_the_stop_button_before_the_first_step_interrupts_at_once(scenes: Path, tmp_path: Path, kernel: Kernel) -> None:
    kernel.execute(SETUP.format(scenes=str(scenes)))
    slow = """
import time
from plrc.engine import setup
listed = setup.find_images
def slowly(data):
    print("listing", flush=True)
    time.sleep(600)
setup.find_images = slowly
"""
    kernel.execute(slow)
    messages: list[dict[str, Any]] = []
    request = kernel.client.execute("plrc.pretrain(config('early'))")
    while True:
        message = kernel.client.get_iopub_msg(timeout=HANGS)
        if message["parent_header"].get("msg_id") == request:
            messages.append(message)
            if message["msg_type"] == "stream":
                kernel.manager.interrupt_kernel()
            if message["content"].get("execution_state") == "idle":
                break
    assert [message["content"]["ename"] for message in messages if message["msg_type"] == "error"] == [
        "KeyboardInterrupt"
    ]
    assert not (tmp_path / "early").exists()
    assert result_of(kernel.execute("setup.find_images = listed\nplrc.pretrain(config('early'))")).startswith("Run(")
