"""Options -> typed values; whatever is wrong with them becomes one sentence. Layer 6."""

from __future__ import annotations

import contextlib
import inspect
import io
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import dropwhile, takewhile
from typing import Annotated, Any, TypeVar, get_origin, get_type_hints

import tyro

from plrc.errors import PlrcError
from plrc.text import nearest

ALIASES = {
    "data": "data.source", "out": "run.out", "resume": "run.resume", "devices": "run.devices",
    "schedule": "optim.schedule",
}  # fmt: skip

T = TypeVar("T")


def parse(verb: str, options: type[T], arguments: Sequence[str], about: str, **given: Any) -> T:
    """The options of a verb, typed, with `about` above its help. tyro's boxed complaint becomes one sentence."""
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            parsed: T = tyro.cli(options, args=list(arguments), prog=f"plrc {verb}", description=about, **given)
            return parsed
    except SystemExit as end:
        if not end.code:
            raise
        lines = [line.strip("│ ") for line in re.sub(r"\x1b\[[0-9;]*m", "", box.getvalue()).splitlines()[1:]]
        body = takewhile(_is_text, dropwhile(lambda line: not _is_text(line), lines))
        raise PlrcError(f"{_plainly(' '.join(body).rstrip('. '))}; see: plrc {verb} --help") from None


def parse_plain(verb: str, options: type[T], arguments: Sequence[str], about: str) -> T:
    """`parse` for a verb whose options are the fields of one dataclass."""
    hints = get_type_hints(options, include_extras=True).items()
    written(arguments, [name for name, hint in hints if get_origin(hint) is not Annotated])  # Annotated: positional
    return parse(verb, options, arguments, about)


def written(arguments: Sequence[str], names: Iterable[str]) -> dict[str, str]:
    """{name: what stands after it} of the options among the arguments; an unknown one raises with the nearest name."""
    names, found = [*names, "help"], {}
    for token, after in zip(arguments, [*arguments[1:], ""], strict=False):
        written, equals, value = ("--help" if token == "-h" else token).partition("=")
        if not written.startswith("--"):
            continue
        plain = written[2:].replace("-", "_")
        section, dot, key = plain.rpartition(".")
        positive = f"{section}{dot}{key.removeprefix('no_')}"
        candidates = plain, ALIASES.get(plain), positive, ALIASES.get(positive)
        known = [name for name in candidates if name in names]
        if not known:
            near = nearest(plain, [*names, *(a for a, name in ALIASES.items() if name in names)])
            raise PlrcError(f"unknown option {written}; did you mean --{near.replace('_', '-')}?")
        found[known[0]] = value if equals else after
    return found


def subcommand(
    verb: str, word: str, arguments: Sequence[str], names: Iterable[str], overview: Callable[[], str]
) -> str | None:
    """The first argument, which must be one of `names`, a `word`; None where help was wanted, and is printed."""
    given, known = arguments[0] if arguments else "--help", list(names)
    if given in ("-h", "--help"):
        print(f"{overview()}\n\nEach {word} explains itself: plrc {verb} {known[0]} --help")
        return None
    if given not in known:
        raise PlrcError(f"there is no {word} {given!r}; did you mean plrc {verb} {nearest(given, known)}?")
    return given


def about(verb: Callable[..., object]) -> str:
    """What a verb does and how it is called: its docstring."""
    return inspect.cleandoc(verb.__doc__ or "")


def _plainly(complaint: str) -> str:
    """tyro's words about what is missing or no choice, without the help texts and brackets in them."""
    if found := re.fullmatch(r"Missing from (plrc [\w ]+): (.*)", complaint):
        needed = [re.match(r"--\S+(?: [A-Z]+\b)?|\S+", item.strip()) for item in found[2].split("(required)")]
        return f"{found[1]} needs {' and '.join(name[0] for name in needed if name)}"
    if found := re.fullmatch(r"invalid choice (.+) for argument '(.+)'\. Expected one of \((.+)\)", complaint):
        return f"{found[2]} cannot be {found[1]}; write one of {found[3].replace(chr(39), '')}"
    return complaint


def _is_text(line: str) -> bool:
    return bool(line.strip("─-"))
