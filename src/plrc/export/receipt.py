"""The receipt of every exported file: what was written, and what was checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Receipt:
    """What was exported and what was checked; `NAME.receipt.json` holds these fields.

    Attributes:
        file: Path of the exported file.
        sha256: SHA-256 of the file.
        content_sha256: SHA-256 of the tensors under the backbone's own names: the same in every target.
        target: The library, and its version where the file was loaded into it.
        networks: Networks of the target that the file was loaded into; empty if it was not verified in the target.
        note: Why it was not verified in the target; else empty.
        backbone: The run's `model.backbone`.
        tensors: Number of tensors in the file, each equal to the run's bit for bit.
        absent: Tensors of the backbone that this format leaves out by rule.
        largest_difference: Between features of the target's networks and of plrc's, relative to the largest feature;
            None if they were not compared.
        tolerance: The largest difference that is allowed.
        left_random: Tensors of the target's networks that a backbone does not have.
        settings: Pixels as the run saw them, and what has to be set in the target.
        step: Step of the checkpoint.
        steps: Steps of the whole run; 0 if unknown.
        plrc_version: Version of plrc that trained the run.
        checkpoint: Path of the checkpoint.
    """

    file: str
    sha256: str
    content_sha256: str
    target: str
    networks: tuple[str, ...]
    note: str
    backbone: str
    tensors: int
    absent: tuple[str, ...]
    largest_difference: float | None
    tolerance: float
    left_random: tuple[str, ...]
    settings: dict[str, Any]
    step: int
    steps: int
    plrc_version: str
    checkpoint: str

    def line(self) -> str:
        """The receipt in one line."""
        position = f"at step {self.step}"
        if self.step < self.steps:
            position += f" of {self.steps} (the run is not finished)"
        if self.largest_difference is None:
            checked = f"all equal in the file, {self.note}"
        else:
            checked = (
                f"all equal in {self.target}, features differ by {self.largest_difference:.1e} "
                f"(allowed {self.tolerance:.0e})"
            )
        return (
            f"{self.file}: {self.tensors} tensors of {self.backbone} {position}, {checked}; "
            f"sha256 {self.sha256[:12]}, of the content {self.content_sha256[:12]}"
        )

    def advice(self) -> str:
        """The settings as lines to read."""
        pixels = self.settings
        head = (
            f"pixels: {pixels['channels']}, {pixels['pixels']}, mean {pixels['mean']}, std {pixels['std']}; "
            f"with {self.target}:"
        )
        return "\n  ".join([head, *pixels["set"]])
