"""Processes that die or hang: torchrun starts anew from the last checkpoint, and who is silent is named. All real."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from tests.integration.processes import ROOT, free_port
from tests.soak.processes import children

from plrc.config import Config
from plrc.engine.checkpoint import load_checkpoint, newest_checkpoint

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc to find the worker processes"),
]
HANGS = 1800  # seconds after which something is taken to hang, however busy the machine is
STALL = 12  # seconds; the default is 600


@contextmanager
def started(*commands: list[str], folder: Path, **env: str) -> Iterator[list[subprocess.Popen[str]]]:
    """These processes, each with a log in the folder; all that is left of them ends with the block."""
    processes = []
    for number, command in enumerate(commands):
        with (folder / f"{number}.log").open("w") as log:
            variables = os.environ | {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"} | env
            processes.append(
                subprocess.Popen(command, env=variables, stdout=log, stderr=subprocess.STDOUT, text=True, cwd=ROOT)
            )
    try:
        yield processes
    finally:
        for process in processes:
            for child in children(process.pid):
                os.kill(child, signal.SIGKILL)
            process.kill()
            process.wait()


def worker(agent: int) -> int:
    """The training process of a torchrun that has one."""
    return next(p for p in children(agent) if b"pretrain" in Path(f"/proc/{p}/cmdline").read_bytes())


def wait_for(ready: Callable[[], bool], folder: Path, seconds: float = HANGS) -> None:
    until = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < until, "\n".join(path.read_text() for path in folder.glob("*.log"))
        time.sleep(0.05)


def steps(out: Path) -> list[int]:
    """The steps in the run's metrics, whole lines only."""
    if not (out / "metrics.jsonl").exists():
        return []
    lines = (out / "metrics.jsonl").read_text().splitlines(keepends=True)
    records = [json.loads(line) for line in lines if line.endswith("}\n")]
    return [record["step"] for record in records if record["kind"] == "train"]


@pytest.fixture
def config(tiny: Callable[..., Config], tmp_path: Path) -> Path:
    """30 steps, a checkpoint every 5."""
    path = tmp_path / "config.toml"
    small = {"model__bn_groups": 1, "run__checkpoint_every_steps": 5, "run__threads": 1, "optim__lr": 1e-4}
    tiny(optim__steps=30, run__stall_seconds=20, **small).save(path)
    return path


def test_a_worker_killed_on_one_of_two_hosts(config: Path, tmp_path: Path) -> None:
    """Two torchruns with one worker each, as on two hosts; -9 to one worker after a checkpoint. The run ends with every
    step once, and with the weights of a run that nothing happened to."""
    agent = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--max-restarts=2",
             "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}", "--local-addr=127.0.0.1"]  # fmt: skip
    plain = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    train = ["-m", "plrc", "pretrain", "--config", str(config), "--resume", "--out"]
    hurt, whole = tmp_path / "hurt", tmp_path / "whole"
    with started([*agent, *train, str(hurt)], [*agent, *train, str(hurt)], folder=tmp_path) as agents:
        wait_for(lambda: max(steps(hurt), default=0) >= 8, tmp_path)
        os.kill(worker(agents[1].pid), signal.SIGKILL)
        assert [a.wait(timeout=HANGS) for a in agents] == [0, 0], (tmp_path / "1.log").read_text()
    log = (hurt / "log.txt").read_text()
    resumed = [line for line in log.splitlines() if "resuming at step" in line]
    assert len(resumed) == 1 and int(resumed[0].split("step ")[1].split()[0]) % 5 == 0
    assert steps(hurt) == list(range(1, 31))
    with started([*plain, *train, str(whole)], folder=tmp_path) as (one,):
        assert one.wait(timeout=HANGS) == 0
    a, b = (load_checkpoint(path) for path in map(newest_checkpoint, (hurt, whole)) if path is not None)
    assert a["step"] == b["step"] == 30
    for part in ("student", "teacher", "queue"):
        assert all(torch.equal(a[part][name], b[part][name]) for name in a[part]), part


@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL])
def test_a_silent_process_is_named(how: signal.Signals, config: Path, tmp_path: Path) -> None:
    """One of two hangs (SIGSTOP) or dies; the other says which one it was, within the time that is set."""
    train = [sys.executable, "-m", "plrc", "pretrain", "--config", str(config), "--run.stall-seconds", str(STALL)]
    train += ["--out", str(tmp_path / "run"), "--optim.steps", "100000"]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [["env", f"RANK={rank}", f"LOCAL_RANK={rank}", *train] for rank in range(2)]
    with started(*ranks, folder=tmp_path, **shared) as (first, second):
        wait_for(lambda: len(steps(tmp_path / "run")) >= 2, tmp_path)
        second.send_signal(how)
        before = time.monotonic()
        assert first.wait(timeout=HANGS) == 2
        waited = time.monotonic() - before
    said = (tmp_path / "0.log").read_text().splitlines()[-1]
    host = os.uname().nodename
    assert said.startswith(f"plrc: no answer from process 1 of 2 (on {host}): it exited or hung"), said
    assert waited < STALL + 5 + 120, "the stall, five seconds of grace, and two minutes for a busy machine to end in"


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_slurm_file_starts_one_torchrun_a_host(config: Path, tmp_path: Path) -> None:
    """The file as it is, with an `srun` and an `scontrol` that do on this machine what Slurm's do on two hosts."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "srun").write_text('#!/bin/bash\nshift\n"$@" &\n"$@" &\nwait -n && wait -n\n')
    (tools / "scontrol").write_text("#!/bin/bash\nprintf '127.0.0.1\\n127.0.0.2\\n'\n")
    (tools / "torchrun").write_text(
        f'#!/bin/bash\nexec {sys.executable} -m torch.distributed.run --local-addr=127.0.0.1 "$@"\n'
    )
    for tool in tools.iterdir():
        tool.chmod(0o755)
    settings = {
        "PATH": f"{tools}:{os.environ['PATH']}", "SLURM_JOB_NODELIST": "host[1-2]", "SLURM_NNODES": "2",
        "SLURM_JOB_ID": "7", "GPUS": "1", "PORT": str(free_port()), "OUT": str(tmp_path / "run"),
        "DATA": Config.load(config).data.source,
    }  # fmt: skip
    more = ["--config", str(config), "--optim.steps", "3"]
    with started(["bash", "examples/slurm.sbatch", *more], folder=tmp_path, **settings) as (job,):
        assert job.wait(timeout=HANGS) == 0, (tmp_path / "0.log").read_text()
    assert steps(tmp_path / "run") == [1, 2, 3]
    assert (tmp_path / "0.log").read_text().count("finished; the backbone is") == 1
