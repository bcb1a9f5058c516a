"""The records of a run, thinned: however long metrics.jsonl is, only a limited number of lines is in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plrc.files import iterate_json_lines

MAX_LINES = 1024
"""Lines of a kind that are kept; a chart shows fewer."""

Record = Mapping[str, Any]


def read_records(path: Path) -> list[Record]:
    """Read metrics.jsonl, by kind and in the order of the steps.

    Up to `MAX_LINES` lines of a kind are returned as they are. More lines of training are averaged over equal numbers
    of neighbors. Of more lines of another kind, such as health checks, neighbors are left out; the first and the last
    are always there.

    Args:
        path: The file; it need not exist.
    """
    training = _Means()
    others: dict[str, list[Record]] = {}
    for line in iterate_json_lines(path):
        if line.get("kind") == "train":
            training.add(line)
            continue
        same_kind = others.setdefault(line.get("kind", ""), [])
        same_kind.append(line)
        if len(same_kind) > MAX_LINES:
            same_kind[1:] = [_later(same_kind[i : i + 2]) for i in range(1, len(same_kind), 2)]
    records: list[Record] = []
    for same_kind in others.values():
        records += same_kind
    return records + training.lines()


class _Means:
    """Means over equal numbers of consecutive lines of training, at most `MAX_LINES` of them."""

    def __init__(self) -> None:
        self._means: list[Record] = []
        self._lines_per_mean = 1
        self._pending: list[Record] = []

    def add(self, line: Record) -> None:
        """Add the next line."""
        self._pending.append(line)
        if len(self._pending) < self._lines_per_mean:
            return
        self._means.append(_mean(self._pending))
        self._pending = []
        if len(self._means) == MAX_LINES:
            self._means = [_mean(self._means[i : i + 2]) for i in range(0, MAX_LINES, 2)]
            self._lines_per_mean *= 2

    def lines(self) -> list[Record]:
        """Return the means; the last one may be of fewer lines."""
        if not self._pending:
            return self._means
        return [*self._means, _mean(self._pending)]


def _mean(lines: Sequence[Record]) -> Record:
    """Average lines of training. Steps and used time are those of the last line, skipped steps are added up."""
    last = lines[-1]
    if len(lines) == 1:
        return last
    mean: dict[str, Any] = {}
    for name, value in last.items():
        numbers = [line[name] for line in lines if isinstance(line.get(name), (int, float))]
        if name in ("step", "seconds_used") or not numbers:
            mean[name] = value
        elif name == "skipped_steps":
            mean[name] = sum(numbers)
        elif name == "images_per_second":  # of the images and the seconds of all lines
            mean[name] = len(numbers) / sum(1 / max(number, 1e-12) for number in numbers)
        else:
            mean[name] = sum(numbers) / len(numbers)
    return mean


def _later(lines: Sequence[Record]) -> Record:
    """Return the last of the lines, with the seconds that all of them took."""
    last = lines[-1]
    if len(lines) == 1 or "seconds" not in last:
        return last
    return {**last, "seconds": sum(line.get("seconds", 0.0) for line in lines)}
