"""Text for people: printable names, counted lists, aligned rows, the nearest known name."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Sequence

SHOWN_FAILURES = 10
SIMILAR = 0.6  # smallest similarity, from 0 to 1, at which a name is suggested


def printable(text: str) -> str:
    """Escape what a terminal or a log may not show: control characters, changes of the writing direction, raw bytes.

    Args:
        text: Any text, such as the name of a file.

    Returns:
        The text on one line.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def printable_lines(text: str) -> str:
    """Apply `printable` to each line of a text."""
    return "\n".join(map(printable, text.split("\n")))


def note(what: str, names: Collection[str]) -> list[str]:
    """Return one line that counts names and shows the first three, or no line if there are no names."""
    if not names:
        return []
    shown = ", ".join(map(printable, sorted(names)[:3]))
    if len(names) > 3:
        shown += ", ..."
    return [f"{what}: {len(names)} ({shown})"]


def some(names: Iterable[str], shown: int = 5) -> str:
    """Return the first names, separated by commas, and how many more there are."""
    names = list(names)
    text = ", ".join(names[:shown])
    if len(names) > shown:
        text += f" and {len(names) - shown} more"
    return text


def list_failures(failures: Sequence[tuple[str, str]]) -> list[str]:
    """List the first (name, reason) pairs, one per line, and how many more there are."""
    lines = [f"{printable(name)}: {reason}" for name, reason in failures[:SHOWN_FAILURES]]
    if len(failures) > SHOWN_FAILURES:
        lines.append(f"and {len(failures) - SHOWN_FAILURES} more")
    return lines


def aligned(rows: Iterable[tuple[str, str]], width: int = 12) -> str:
    """Return a table of (name, text) rows; the column of names is `width` characters wide."""
    return "\n".join(f"{name:<{width}}{text}" for name, text in rows)


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a line for each row of a table; its columns are aligned at the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        line = "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True))
        lines.append(line.rstrip())
    return lines


def nearest(word: str, names: Iterable[str]) -> str:
    """Return the name that is most similar to a word.

    Dotted names are compared as a whole and by their last part, where initials count as equal (lr, learning_rate).
    """

    def similarity(name: str) -> float:
        word_end = word.rpartition(".")[2]
        name_end = name.rpartition(".")[2]
        if _initials(word_end) == name_end or word_end == _initials(name_end):
            return _ratio(word, name) + 1
        return _ratio(word, name) + _ratio(word_end, name_end)

    return max(names, key=similarity)


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """Return " (did you mean NAME?)" for the most similar name, or an empty text if no name is similar."""
    name = nearest(word, names)
    if _ratio(word, name) < SIMILAR:
        return ""
    return f" (did you mean {name}?)"


def _ratio(word: str, name: str) -> float:
    return difflib.SequenceMatcher(None, word, name).ratio()


def _initials(words: str) -> str:
    return "".join(word[:1] for word in words.split("_"))
