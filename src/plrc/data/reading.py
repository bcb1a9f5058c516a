"""The report of what was read from a source: what was repaired, clipped, dropped and left out, counted by reason."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from plrc.text import printable

Outcome = Literal["read", "repaired", "clipped", "dropped", "left out"]
"""What happened to a case: read as it is, changed where the meaning is certain, cut, or not used.

A label that cannot be used, or an image with labels, is "dropped". A label that is not used because of its meaning (a
crowd, a difficult object) is "left out", as is any other file.
"""

OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
_SHOWN = 3  # names that are shown for each reason
_SENTENCES = "sentences"


@dataclass
class _Cases:
    """The cases of a reason: their locations, and the number of those whose location was not stored."""

    locations: set[str] = field(default_factory=set)
    unnamed: int = 0

    @property
    def number(self) -> int:
        return len(self.locations) + self.unnamed

    def first(self) -> list[str]:
        return heapq.nsmallest(_SHOWN, self.locations)


class ReadingReport:
    """What a user should know about a source that was read: sentences, and cases counted by outcome and reason.

    Examples:
        >>> reading = ReadingReport()
        >>> reading.count("dropped", "boxes without width or height", "a.xml object 2")
        >>> reading.lines()
        ('boxes without width or height, dropped: 1 (a.xml object 2)',)
    """

    def __init__(self) -> None:
        self._sentences: dict[str, None] = {}  # in order, each once
        self._cases: dict[tuple[Outcome, str], _Cases] = {}

    def add(self, *sentences: str) -> None:
        """Add sentences; a sentence that was added before is not repeated."""
        self._sentences.update(dict.fromkeys(sentences))

    def count(self, outcome: Outcome, reason: str, location: str) -> None:
        """Count a case; a location that two splits share counts once.

        Args:
            outcome: What happened.
            reason: What the cases have in common, a plural such as "boxes without width or height".
            location: The file, and the place in it.
        """
        self._cases.setdefault((outcome, reason), _Cases()).locations.add(location)

    def extend(self, other: ReadingReport) -> None:
        """Add the sentences and cases of another report."""
        self.add(*other._sentences)
        for key, cases in other._cases.items():
            mine = self._cases.setdefault(key, _Cases())
            mine.locations |= cases.locations
            mine.unnamed += cases.unnamed

    def total(self, outcome: Outcome) -> int:
        """Return the number of cases of an outcome."""
        return sum(cases.number for (which, _), cases in self._cases.items() if which == outcome)

    def lines(self) -> tuple[str, ...]:
        """Return the sentences, then "reason, outcome: number (first three locations)", sorted by outcome."""
        lines = list(self._sentences)
        for (outcome, reason), cases in sorted(self._cases.items(), key=_by_outcome):
            shown = ", ".join(map(printable, cases.first()))
            if cases.number > _SHOWN:
                shown += ", ..."
            lines.append(f"{reason}, {outcome}: {cases.number} ({shown})")
        return tuple(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON: "sentences", and outcome -> reason -> {"count", "first": names}."""
        values: dict[str, Any] = {_SENTENCES: list(self._sentences)}
        for (outcome, reason), cases in self._cases.items():
            values.setdefault(outcome, {})[reason] = {"count": cases.number, "first": cases.first()}
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ReadingReport:
        """Build a report with the lines of the one whose `to_dict` returned these values.

        Raises:
            TypeError, ValueError, KeyError, AttributeError: Other values.
        """
        report = cls()
        report.add(*map(str, values[_SENTENCES]))
        for outcome in OUTCOMES:
            for reason, stored in values.get(outcome, {}).items():
                locations = set(map(str, stored["first"]))
                report._cases[outcome, str(reason)] = _Cases(locations, int(stored["count"]) - len(locations))
        return report


def _by_outcome(item: tuple[tuple[Outcome, str], _Cases]) -> int:
    return OUTCOMES.index(item[0][0])
