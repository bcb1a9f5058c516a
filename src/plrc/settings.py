"""What every configuration of ours is: nested frozen dataclasses, to and from TOML, with one sentence for each mistake.

Layer 0: imports files alone. A configuration has sections (dataclasses) and plain values; "optim.lr" is the value
`lr` of the section `optim`. The section `run` says *how* (where to write, how many workers) and is left out where two
configurations are compared.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import tomli_w

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
    """Base of a whole configuration: sections and values, addressed by dotted names."""

    def with_values(self: S, values: dict[str, Any]) -> S:
        """A copy with dotted names set, such as {"optim.lr": 0.06, "seed": 1}, in any order.

        Raises ConfigError for an unknown name, a wrong type, and a result that cannot be used.
        """
        known = self.flat()
        changes: dict[str, dict[str, Any]] = {}
        for name, value in values.items():
            if name not in known:
                raise _unknown(name, known)
            section, _, key = name.rpartition(".")
            hints = get_type_hints(type(getattr(self, section) if section else self))
            changes.setdefault(section, {})[key] = _typed(name, value, known[name], hints[key])
        top = changes.pop("", {})
        return replace(self, **top, **{name: replace(getattr(self, name), **new) for name, new in changes.items()})

    def flat(self) -> dict[str, Any]:
        """All settings by dotted name."""
        return flatten(dataclasses.asdict(self))

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
        """Plain nested dict of strings, numbers, booleans and lists (what TOML, JSON and checkpoints hold)."""
        return dataclasses.asdict(self, dict_factory=lambda kv: {k: list(v) if type(v) is tuple else v for k, v in kv})

    @classmethod
    def from_dict(cls: type[S], values: dict[str, Any], base: S | None = None) -> S:
        """The inverse of `to_dict`; settings that are not named keep the value of `base` (or the default)."""
        return (base or cls()).with_values(flatten(values))

    def save(self, path: str | Path) -> None:
        """Write as TOML; the file appears whole or not at all."""
        write_text(Path(path), tomli_w.dumps(self.to_dict()))

    @classmethod
    def load(cls: type[S], path: str | Path, base: S | None = None) -> S:
        """Read a TOML file written by hand or by `save`."""
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


def _unknown(name: str, known: dict[str, Any]) -> ConfigError:
    return ConfigError(f"unknown setting {name}; did you mean {nearest(name, known)}?")


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
