"""Text for people: printable names, counted lists, aligned rows, the nearest known name."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Sequence


def printable(text: str) -> str:
    """`text`, such as a file's name, on one line that any terminal and any log can take: control characters, what turns
    the direction of writing, and bytes that are no text are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def printable_lines(text: str) -> str:
    """`printable` for each of the lines of a text of ours that may hold foreign names."""
    return "\n".join(map(printable, text.split("\n")))


def note(what: str, names: Collection[str]) -> list[str]:
    """One note that counts names and shows the first three; none where there are no names."""
    shown = ", ".join(map(printable, sorted(names)[:3])) + (", ..." if len(names) > 3 else "")
    return [f"{what}: {len(names)} ({shown})"] if names else []


def some(names: Iterable[str], shown: int = 5) -> str:
    """The first of many names, and how many more there are."""
    names = list(names)
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")


def list_failures(failures: Sequence[tuple[str, str]], shown: int = 10) -> list[str]:
    """List the first (name, reason) pairs, one per line, and how many more there are."""
    lines = [f"{printable(name)}: {reason}" for name, reason in failures[:shown]]
    if len(failures) > shown:
        lines.append(f"and {len(failures) - shown} more")
    return lines


def aligned(rows: Iterable[tuple[str, str]], width: int = 12) -> str:
    """(name, text) of a report, one below the other; `width`: of the column of names."""
    return "\n".join(f"{name:<{width}}{text}" for name, text in rows)


def nearest(word: str, names: Iterable[str]) -> str:
    """The name that is most like the word, in whole and after its last dot, where initials are as good (lr)."""

    def likeness(name: str) -> float:
        ends = word.rpartition(".")[2], name.rpartition(".")[2]
        whole, end = (difflib.SequenceMatcher(None, a, b).ratio() for a, b in ((word, name), ends))
        return whole + (1 if _initials(ends[0]) == ends[1] or ends[0] == _initials(ends[1]) else end)

    return max(names, key=likeness)


def _initials(words: str) -> str:
    return "".join(word[:1] for word in words.split("_"))
