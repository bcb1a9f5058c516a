"""The model of docs/SCALING.md: seconds per step from measured parts, for any number of processes.

`python -m benchmarks.scaling_model` prints the tables of that page.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """Resources of one process: measured (benchmarks `step` and `loader`) or assumed; the page says which."""

    images_per_second: float  # one process alone, with its batch
    exchange: float  # bytes per second between processes, for each process
    flops: float  # of matrix products, for the point term's affinities
    storage: float  # bytes per second of the images' store, for all processes together
    disk: float  # bytes per second when a checkpoint is written
    latency: float = 0.0  # seconds of a collective of a few bytes


@dataclass(frozen=True)
class Run:
    """What is trained; numbers are per process."""

    batch: int
    gradient: float  # bytes of the trained parameters
    checkpoint: float  # bytes
    size: int = 224
    points: int = 256
    width: int = 128
    file: float = 110e3  # bytes of an image in its file
    every: int = 500  # steps between checkpoints
    negatives: str = "batch"


def parts(machine: Machine, run: Run, processes: int) -> dict[str, float]:
    """Return the seconds of each part of a step. No overlap is assumed, so their sum is an upper bound."""
    others = (processes - 1) / processes
    shuffled = 2 * run.batch * (3 * run.size**2 + (run.width + 256) * 49) * 4  # two views sent, their features returned
    keys = run.batch * run.points * run.width * 4 if run.negatives == "batch" else 0
    queries = run.batch * run.points
    far = (processes - 1) * queries if run.negatives == "batch" else 0  # keys of other processes
    return {
        "compute": run.batch / machine.images_per_second,
        "gradients": 2 * others * run.gradient / machine.exchange,
        "shuffle": others * shuffled / machine.exchange,
        "keys": (processes - 1) * keys / machine.exchange + 6 * queries * far * run.width / machine.flops,
        "flags": 0.0 if processes == 1 else 3 * machine.latency * processes.bit_length(),
        "checkpoint": run.checkpoint / machine.disk / run.every,
    }


def step(machine: Machine, run: Run, processes: int) -> float:
    """Return the seconds per step: its parts, or reading its images if that takes longer."""
    return max(sum(parts(machine, run, processes).values()), processes * run.batch * run.file / machine.storage)


# Measured: ResNet-18, 16 images of 128 px per process, two gloo processes of one core each (docs/SCALING.md).
CPU = Machine(15.7, 332e6, 86e9, 1e9, 1e9, 0.8e-3)
RESNET18 = Run(16, 73e6, 240e6, size=128)

# Assumed, not measured: a data-center GPU with a 200 Gbit/s network port, a parallel file system, bfloat16 products.
GPU = Machine(1000, 25e9, 200e12, 100e9, 1e9, 20e-6)
RESNET50 = Run(32, 148e6, 480e6)


def main() -> None:
    for processes in (1, 2):
        print(f"CPU, {processes} processes: {step(CPU, RESNET18, processes):.2f} s per step")
    for negatives in ("batch", "image"):
        print(f"\nobjectives.negatives {negatives}: GPUs, milliseconds per step by part, images per second, efficiency")
        for processes in (1, 8, 64, 256, 1024):
            run = Run(**{**RESNET50.__dict__, "negatives": negatives})
            durations = parts(GPU, run, processes)
            seconds = step(GPU, run, processes)
            rate = processes * run.batch / seconds
            shown = "  ".join(f"{name} {1000 * value:.2f}" for name, value in durations.items())
            print(f"{processes:5d}  ms: {shown}  rate {rate:,.0f}  efficiency {step(GPU, run, 1) / seconds:.2f}")
            hours = {images: images / rate / 3600 for images in (1e6, 1e8, 1e9)}
            print("       an epoch of", ", ".join(f"{n:.0e} images {h:.3g} h" for n, h in hours.items()))


if __name__ == "__main__":
    main()
