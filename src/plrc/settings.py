"""The base of all configurations: nested frozen dataclasses that are addressed by dotted names and stored as TOML.

A configuration has sections (dataclasses) and plain values: "optim.lr" is the value `lr` of the section `optim`. The
section `run` says where and how a run is executed, so it is left out when two configurations are compared.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_origin, get_type_hints

import tomli_w

from plrc.errors import ConfigError
from plrc.files import write_text
from plrc.text import nearest

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover - Python 3.10 has no tomllib
    import tomli as tomllib

TYPE_NAMES = {bool: "true or false", int: "an integer", str: "a string"}

S = TypeVar("S", bound="Settings")
T = TypeVar("T")


def setting(default: T, *, alias: str = "", metavar: str = "", hidden: bool = False) -> T:
    """Declare a field of a settings dataclass that needs more than a default for its command-line option.

    Args:
        default: Value of the field.
        alias: Short name of the option, such as "data" for --data.
        metavar: What the help prints for the value.
        hidden: Whether the command line has no option for the field.
    """
    # typed as the value, like `dataclasses.field` itself, so that `x: int = setting(0)` passes the type checker
    declared: T = field(default=default, metadata={"alias": alias, "metavar": metavar, "hidden": hidden})
    return declared


def require(condition: bool, message: str) -> None:
    """Raise ConfigError with `message` if the condition does not hold."""
    if not condition:
        raise ConfigError(message)


def require_positive(name: str, value: float) -> None:
    """Raise ConfigError unless the setting `name` has a value above 0."""
    require(value > 0, f"{name} must be > 0, got {value}")


def require_at_least(name: str, value: float, low: float) -> None:
    """Raise ConfigError unless the setting `name` has a value of at least `low`."""
    require(value >= low, f"{name} must be >= {low}, got {value}")


def require_between(name: str, value: float, low: float, high: float) -> None:
    """Raise ConfigError unless the setting `name` has a value between `low` and `high`."""
    require(low <= value <= high, f"{name} must be between {low} and {high}, got {value}")


def require_range(name: str, value: tuple[float, float], low: float, high: float) -> None:
    """Raise ConfigError unless the setting `name` has two values in ascending order between `low` and `high`."""
    smaller, larger = value
    ordered = low <= smaller <= larger <= high
    require(ordered, f"{name} must be two numbers a b with {low} <= a <= b <= {high}, got {smaller} {larger}")


def require_pattern(name: str, value: str) -> None:
    """Raise ConfigError unless the setting `name` has a value that is a regular expression."""
    try:
        re.compile(value)
    except re.error as error:
        raise ConfigError(f"{name} = {value} is no regular expression ({error})") from error


@dataclass(frozen=True)
class Settings:
    """Base of a whole configuration: sections and values, addressed by dotted names.

    Attributes:
        RENAMED: Settings that had another name in an earlier version: old dotted name -> new one.
        pinned: Dotted names of the settings that the user chose. Nothing adapts them to the data. Not a setting itself:
            it is neither compared nor stored.
    """

    RENAMED: ClassVar[Mapping[str, str]] = {}

    pinned: frozenset[str] = field(
        default=frozenset(), compare=False, repr=False, kw_only=True, metadata={"hidden": True}
    )

    def with_values(self: S, values: Mapping[str, Any], *, pin: bool = True) -> S:
        """Return a copy with other values.

        Args:
            values: Dotted name -> value, such as {"optim.lr": 0.06, "seed": 1}, in any order.
            pin: Whether the user chose these values, so that nothing adapts them to the data. Write False for values
                that a program derives.

        Returns:
            The new configuration; this one is unchanged.

        Raises:
            ConfigError: A name is unknown, a value has the wrong type, or the result is not usable.

        Examples:
            >>> import plrc
            >>> config = plrc.preset("small_r18").with_values({"optim.lr": 5e-4, "seed": 1})
            >>> config.optim.lr, config.seed
            (0.0005, 1)
        """
        known = self.flat()
        new_values: dict[str, dict[str, Any]] = {}  # per section; "" is the configuration itself, with its seed
        for name, value in values.items():
            if name not in known:
                raise unknown_setting(name, known, self.RENAMED)
            section, _, key = name.rpartition(".")
            owner: Any = type(getattr(self, section)) if section else type(self)
            field_type = _field_types(owner)[key]
            new_values.setdefault(section, {})[key] = _convert(name, value, known[name], field_type)
        changes = new_values.pop("", {})
        for section, fields in new_values.items():
            changes[section] = replace(getattr(self, section), **fields)
        if pin:
            changes["pinned"] = self.pinned.union(values)
        return replace(self, **changes)

    def flat(self) -> dict[str, Any]:
        """Return all settings by dotted name."""
        values: dict[str, Any] = {}
        for entry in dataclasses.fields(self):
            value = getattr(self, entry.name)
            if dataclasses.is_dataclass(value):
                for key in dataclasses.fields(value):
                    values[f"{entry.name}.{key.name}"] = getattr(value, key.name)
            elif entry.name != "pinned":
                values[entry.name] = value
        return values

    def result_settings(self) -> dict[str, Any]:
        """Return the settings that affect results, by dotted name: all but the section `run`."""
        return {name: value for name, value in self.flat().items() if not name.startswith("run.")}

    def differences(self, other: Settings) -> list[tuple[str, Any, Any]]:
        """Return (dotted name, own value, other's value) of all settings that affect results and differ."""
        theirs = other.result_settings()
        return [(name, value, theirs[name]) for name, value in self.result_settings().items() if value != theirs[name]]

    def describe_differences(self, stored: Settings) -> dict[str, str]:
        """Describe each difference from `stored`, the settings that a run was started with: dotted name -> line."""
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
        """Write the settings to a TOML file, atomically."""
        write_text(Path(path), tomli_w.dumps(self.to_dict()))

    @classmethod
    def load(cls: type[S], path: str | Path, base: S | None = None) -> S:
        """Read a TOML file, written by hand or by `save`.

        Args:
            path: The file.
            base: Gives the values of settings that the file does not name. None: the defaults.

        Returns:
            The configuration. The settings that the file names are pinned.

        Raises:
            ConfigError: The file cannot be read, or a name or value in it is invalid.
        """
        return cls.from_dict(read_toml(path), base)


def read_toml(path: str | Path) -> dict[str, Any]:
    """Return the tables of a TOML file. Raises ConfigError if it cannot be read."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from error
    except RecursionError as error:
        raise ConfigError(f"cannot read the configuration {path}: it is nested too deeply") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error


def flatten(values: dict[str, Any]) -> dict[str, Any]:
    """Return values and tables of values by dotted names: {"optim": {"lr": 1}} -> {"optim.lr": 1}."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{key}": inner for key, inner in value.items()}
        else:
            flat[name] = value
    return flat


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
    """Build a dict for `dataclasses.asdict`, with lists in place of tuples, which TOML and JSON do not have."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in items}


@functools.cache
def _field_types(section: type) -> dict[str, Any]:
    """Return name of a field -> its type; kept, because evaluating the annotations is slow."""
    return get_type_hints(section)


def _convert(name: str, value: Any, current: Any, hint: Any) -> Any:
    """Convert a value from TOML to the type of its setting (2 -> 2.0, [a, b] -> (a, b)), or raise ConfigError.

    The type hint gives the choices of a Literal and the type of a tuple's entries; otherwise the current value gives
    the type.
    """
    if get_origin(hint) is Literal:
        choices = get_args(hint)
        # 1 == True, so types are compared as well
        matches = any(type(value) is type(choice) and value == choice for choice in choices)
        require(matches, f"{name} must be one of {', '.join(map(str, choices))}, got {value!r}")
        return value
    if get_origin(hint) is tuple and get_origin(get_args(hint)[0]) is Literal:
        choices = get_args(get_args(hint)[0])
        values = value if isinstance(value, (list, tuple)) else [value]
        known = all(entry in choices for entry in values)
        require(known, f"{name} must be a list of {', '.join(choices)}, got {value!r}")
        return tuple(values)
    if hint == tuple[int, ...]:
        values = value if isinstance(value, (list, tuple)) else [value]
        integers = len(values) > 0 and all(type(number) is int for number in values)
        require(integers, f"{name} must be one or several integers, got {value!r}")
        return tuple(values)
    if hint == tuple[float, ...]:
        is_list = isinstance(value, (list, tuple)) and all(map(_is_number, value))
        require(is_list, f"{name} must be a list of numbers, got {value!r}")
        return tuple(map(float, value))
    if isinstance(current, tuple):
        is_pair = isinstance(value, (list, tuple)) and len(value) == 2 and all(map(_is_number, value))
        require(is_pair, f"{name} must be two numbers [a, b], got {value!r}")
        return (float(value[0]), float(value[1]))
    if isinstance(current, float):
        require(_is_number(value), f"{name} must be a number, got {value!r}")
        return float(value)
    expected = type(current)
    require(type(value) is expected, f"{name} must be {TYPE_NAMES[expected]}, got {value!r}")
    return value


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
