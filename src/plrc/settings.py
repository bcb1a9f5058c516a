"""What every configuration of ours is: nested frozen dataclasses, to and from TOML, with one sentence for each mistake.

Layer 0: imports files alone. A configuration has sections (dataclasses) and plain values; "optim.lr" is the value
`lr` of the section `optim`. The section `run` says *how* (where to write, how many workers) and is left out where two
configurations are compared.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_origin, get_type_hints

import tomli_w
import tyro

from plrc.errors import ConfigError
from plrc.files import write_text
from plrc.text import nearest

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover - Python 3.10 has no tomllib
    import tomli as tomllib

S = TypeVar("S", bound="Settings")


def require(ok: bool, message: str) -> None:
    if not ok:
        raise ConfigError(message)


def require_range(name: str, value: tuple[float, float], low: float, high: float) -> None:
    message = f"{name} is {value[0]} {value[1]}; write two numbers a b with {low} <= a <= b <= {high}"
    require(low <= value[0] <= value[1] <= high, message)


@dataclass(frozen=True)
class Settings:
    """Base of a whole configuration: sections and values, addressed by dotted names.

    Attributes:
        RENAMED: Settings that had another name in an earlier version: old dotted name -> new one.
        pinned: Dotted names of the settings that the user chose. Nothing adapts them to the data. Not a setting itself:
            it is neither compared nor stored.
    """

    RENAMED: ClassVar[Mapping[str, str]] = {}

    pinned: tyro.conf.Suppress[frozenset[str]] = field(default=frozenset(), compare=False, repr=False, kw_only=True)

    def with_values(self: S, values: Mapping[str, Any], *, pin: bool = True) -> S:
        """Return a copy with other values.

        Args:
            values: Dotted name -> value, such as {"optim.lr": 0.06, "seed": 1}, in any order.
            pin: Whether the user chose these values, so that nothing adapts them to the data. Write False for values
                that a program derives.

        Raises:
            ConfigError: A name is unknown, a value has the wrong type, or the result is not usable.
        """
        known = self.flat()
        sections: dict[str, dict[str, Any]] = {}
        for name, value in values.items():
            if name not in known:
                raise unknown_setting(name, known, self.RENAMED)
            section, _, key = name.rpartition(".")
            hints = get_type_hints(type(getattr(self, section) if section else self))
            sections.setdefault(section, {})[key] = _typed(name, value, known[name], hints[key])
        changes = sections.pop("", {})
        for section, new in sections.items():
            changes[section] = replace(getattr(self, section), **new)
        if pin:
            changes["pinned"] = self.pinned.union(values)
        return replace(self, **changes)

    def flat(self) -> dict[str, Any]:
        """Return all settings by dotted name."""
        values = dataclasses.asdict(self)
        del values["pinned"]
        return flatten(values)

    def numbers(self) -> dict[str, Any]:
        """Those of them that change numbers: all but the section `run`."""
        return {name: value for name, value in self.flat().items() if not name.startswith("run.")}

    def differences(self, other: Settings) -> list[tuple[str, Any, Any]]:
        """(name, mine, other's) of every setting that changes numbers."""
        mine, theirs = self.numbers(), other.numbers()
        return [(k, mine[k], theirs[k]) for k in mine if mine[k] != theirs[k]]

    def changes(self, stored: Settings) -> dict[str, str]:
        """`differences` in words, by the setting's name, where `stored` is what a run was started with."""
        return {name: f"{name}: stored {old}, now {new}" for name, new, old in self.differences(stored)}

    def to_dict(self) -> dict[str, Any]:
        """Return a nested dict of strings, numbers, booleans and lists, as TOML, JSON and checkpoints hold it."""
        values = dataclasses.asdict(self, dict_factory=_with_lists)
        del values["pinned"]
        return values

    @classmethod
    def from_dict(cls: type[S], values: dict[str, Any], base: S | None = None) -> S:
        """Build a configuration from nested tables, the inverse of `to_dict`.

        Settings that are not named keep the value of `base` (or the default); those that are named are pinned.
        """
        return (base or cls()).with_values(flatten(values))

    def save(self, path: str | Path) -> None:
        """Write as TOML; the file appears whole or not at all."""
        write_text(Path(path), tomli_w.dumps(self.to_dict()))

    @classmethod
    def load(cls: type[S], path: str | Path, base: S | None = None) -> S:
        """Read a TOML file written by hand or by `save`. The settings that it names are pinned."""
        return cls.from_dict(read_toml(path), base)


def read_toml(path: str | Path) -> dict[str, Any]:
    """The tables of a TOML file, or one clear ConfigError."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from error
    except RecursionError as error:
        raise ConfigError(f"{path} is nested too deeply to be a configuration") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error


def flatten(values: dict[str, Any]) -> dict[str, Any]:
    """{"optim": {"lr": 1}} -> {"optim.lr": 1}."""
    out: dict[str, Any] = {}
    for name, value in values.items():
        out |= {f"{name}.{key}": v for key, v in value.items()} if isinstance(value, dict) else {name: value}
    return out


def unknown_setting(name: str, known: Iterable[str], renamed: Mapping[str, str]) -> ConfigError:
    """Return the error for a name that is no setting, with the name that was probably meant.

    Args:
        name: Dotted name, as the user wrote it.
        known: Dotted names of all settings.
        renamed: Old dotted name -> new one (`Settings.RENAMED`).
    """
    if name in renamed:
        return ConfigError(f"{name} is now called {renamed[name]}")
    return ConfigError(f"unknown setting {name}; did you mean {nearest(name, known)}?")


def _with_lists(items: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in items}


def _typed(name: str, value: Any, known: Any, hint: Any) -> Any:
    """Bring a TOML value to the setting's type (2 -> 2.0, [a, b] -> (a, b)) or say what it must be."""
    if get_origin(hint) is Literal:
        fits = any(type(value) is type(choice) and value == choice for choice in get_args(hint))
        require(fits, f"{name} is {value!r}; write one of {', '.join(map(str, get_args(hint)))}")
        return value
    if isinstance(known, tuple):
        pair = isinstance(value, (list, tuple)) and len(value) == 2 and all(map(_is_number, value))
        require(pair, f"{name} is {value!r}; write two numbers [a, b]")
        return (float(value[0]), float(value[1]))
    if isinstance(known, float):
        require(_is_number(value), f"{name} is {value!r}; write a number")
        return float(value)
    require(type(value) is type(known), f"{name} is {value!r}; write a value of type {type(known).__name__}")
    return value


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
