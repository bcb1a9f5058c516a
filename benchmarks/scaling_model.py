"""The model of docs/SCALING.md: seconds of a step from measured parts, for any number of processes.

python benchmarks/scaling_model.py            the tables of the document
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """What one process has: measured (`plrc bench step`, `loader`) or assumed, and the document says which."""

    images_per_second: float  # of a process alone, with its batch
    exchange: float  # bytes a second between processes, for each of them
    flops: float  # of matrix products, for the point term's affinities
    storage: float  # bytes a second of the images' store, for all processes together
    disk: float  # bytes a second when a checkpoint is written
    latency: float = 0.0  # seconds of a collective of a few bytes


@dataclass(frozen=True)
class Run:
    """What is trained, per process where not said otherwise."""

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
    """Seconds of each part of a step. Nothing is taken to overlap, so the sum is an upper bound."""
    others = (processes - 1) / processes
    shuffled = 2 * run.batch * (3 * run.size**2 + (run.width + 256) * 49) * 4  # two views out, their features back
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
    """Seconds of a step: its parts, or what its images take to be read."""
    return max(sum(parts(machine, run, processes).values()), processes * run.batch * run.file / machine.storage)


# Measured: ResNet-18, 16 images of 128 px a process, two gloo processes of one core each (docs/SCALING.md).
CPU = Machine(15.7, 332e6, 86e9, 1e9, 1e9, 0.8e-3)
RESNET18 = Run(16, 73e6, 240e6, size=128)

# Assumed, not measured: a data-centre GPU with a 200 Gbit/s network port, a parallel file system, bfloat16 products.
GPU = Machine(1000, 25e9, 200e12, 100e9, 1e9, 20e-6)
RESNET50 = Run(32, 148e6, 480e6)


def main() -> None:
    for processes in (1, 2):
        print(f"CPU, {processes} processes: {step(CPU, RESNET18, processes):.2f} s a step")
    for negatives in ("batch", "image"):
        print(f"\nobjectives.negatives {negatives}: GPUs, seconds of a step by part, images a second, efficiency")
        for processes in (1, 8, 64, 256, 1024):
            run = Run(**{**RESNET50.__dict__, "negatives": negatives})
            found = parts(GPU, run, processes)
            seconds = step(GPU, run, processes)
            rate = processes * run.batch / seconds
            shown = "  ".join(f"{name} {1000 * value:.2f}" for name, value in found.items())
            print(f"{processes:5d}  ms: {shown}  rate {rate:,.0f}  efficiency {step(GPU, run, 1) / seconds:.2f}")
            hours = {images: images / rate / 3600 for images in (1e6, 1e8, 1e9)}
            print("       an epoch of", ", ".join(f"{n:.0e} images {h:.3g} h" for n, h in hours.items()))


if __name__ == "__main__":
    main()
