"""Command-line options generated from dataclasses."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin, get_type_hints

from docstring_parser import parse_from_object

from plrc.errors import ConfigError
from plrc.settings import Settings
from plrc.text import nearest

T = TypeVar("T")


def positional(metavar: str) -> Any:
    """Declare an options field that is given on the command line without --name, such as SOURCE in `plrc scan SOURCE`.

    Args:
        metavar: The placeholder that the help prints, such as "SOURCE".
    """
    return dataclasses.field(metadata={"positional": True, "metavar": metavar})


_SOURCE = "--data"


class _Once(argparse.Action):
    """Stores the value of an option, and refuses a second value."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        if hasattr(namespace, self.dest):
            parser.error(f"{option_string} names {getattr(namespace, self.dest)} and {values}; name a single source")
        setattr(namespace, self.dest, values)


class CommandParser(argparse.ArgumentParser):
    """The options of one command, taken from the fields of dataclasses.

    The field `lr` of the section `optim` becomes the option --optim.lr. Its help is the text below the field. A field
    declared with `plrc.settings.setting` can have an alias and a metavar, or no option.

    Args:
        command: Name of the command, such as "pretrain".
        description: What the help prints above the options.
        refused: Error messages by dotted name, for settings that the command computes itself or that have another
            option here. Each message names what to use instead.
    """

    def __init__(self, command: str, description: str, refused: Mapping[str, str] | None = None) -> None:
        super().__init__(
            prog=f"plrc {command}",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            argument_default=argparse.SUPPRESS,
            allow_abbrev=False,
            add_help=False,
        )
        self.refused = dict(refused or {})
        self.renamed: dict[str, str] = {}  # old name of a setting -> new name
        self.defaults: dict[str, Any] = {}  # name -> default in the dataclass
        self.positional_metavars: list[str] = []
        self.required: dict[str, str] = {}  # name -> usage, such as "--out PATH"
        self.positionals = self.add_argument_group("arguments")
        self.general = self.add_argument_group("options")
        self.general.add_argument("-h", "--help", action="store_true", help="show this help and exit")

    def add_fields(self, options: type, section: str = "", exclude: Collection[str] = ()) -> None:
        """Add an option for each field of a dataclass, and for the fields of its sections.

        Args:
            options: A dataclass.
            section: Section that the fields belong to; empty for options without a section.
            exclude: Dotted names of fields that get no option. Unlike `refused` ones, they are unknown options.
        """
        if issubclass(options, Settings):
            self.renamed.update(options.RENAMED)
        group = self.general
        if section:
            group = self.add_argument_group(f"{section} options", inspect.getdoc(options))
        hints = get_type_hints(options)
        descriptions = _field_descriptions(options)
        for field in dataclasses.fields(options):
            name = f"{section}.{field.name}" if section else field.name
            hint = hints[field.name]
            if field.metadata.get("hidden") or name in exclude:
                continue
            if isinstance(hint, type) and dataclasses.is_dataclass(hint):
                self.add_fields(hint, name, exclude)
            elif name in self.refused:
                self._refuse_alias(name, field)
            elif field.metadata.get("positional"):
                self._add_positional(field, hint, descriptions[field.name])
            else:
                self._add_option(group, name, field, hint, descriptions[field.name])

    def parse(
        self, arguments: Sequence[str], compute_defaults: Callable[[dict[str, Any]], Mapping[str, Any]] | None = None
    ) -> dict[str, Any]:
        """Return the options that the user gave: {dotted name: value}.

        --help prints the help and raises SystemExit, as argparse does.

        Args:
            arguments: The command line after the name of the command.
            compute_defaults: For the help: computes the default of each option from the given options (a preset
                changes defaults). None: the help shows the defaults of the dataclasses.

        Raises:
            ConfigError: If an option is unknown, refused or missing, or if its value cannot be used.
        """
        namespace, unknown = self.parse_known_args([_with_hyphens(token) for token in arguments])
        values: dict[str, Any] = {}
        for name, value in vars(namespace).items():
            values[name] = tuple(map(_with_home, value)) if isinstance(value, list) else _with_home(value)
        if unknown:
            self._fail_unknown(unknown)
        if values.pop("help", False):
            self._show_help(compute_defaults(values) if compute_defaults else {})
            raise SystemExit(0)
        missing = [usage for name, usage in self.required.items() if name not in values]
        if missing:
            self._fail(f"{self.prog} needs {' and '.join(missing)}")
        return values

    def error(self, message: str) -> NoReturn:
        """Raise an error of argparse as ConfigError, in place of exiting."""
        self._fail(message.removeprefix("argument "))

    def _fail(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see: {self.prog} --help")

    def _fail_unknown(self, unknown: Sequence[str]) -> NoReturn:
        unknown_flags = [token.partition("=")[0] for token in unknown if token.startswith("--")]
        if not unknown_flags:
            self._fail(f"unexpected argument {unknown[0]!r}")
        flag = unknown_flags[0]
        name = _name(flag)
        if name in self.refused:
            raise ConfigError(self.refused[name])
        if name in self.renamed:
            raise ConfigError(f"{flag} is now called {_flag(self.renamed[name])}")
        known_flags = {_name(known): known for known in self._flags()}
        raise ConfigError(f"unknown option {flag}; did you mean {known_flags[nearest(name, known_flags)]}?")

    def _flags(self) -> Iterable[str]:
        for action in self._actions:
            yield from (flag for flag in action.option_strings if flag.startswith("--"))

    def _refuse_alias(self, name: str, field: dataclasses.Field[Any]) -> None:
        """Refuse the alias of a refused option with the same message."""
        alias = field.metadata.get("alias")
        if alias:
            self.refused[alias] = self.refused[name]

    def _add_positional(self, field: dataclasses.Field[Any], hint: Any, description: str) -> None:
        metavar = field.metadata["metavar"]
        self.positional_metavars.append(metavar)
        action = self.positionals.add_argument(field.name, type=hint, metavar=metavar, help=_escaped(description))
        action.required = False  # `parse` checks it, after unknown options: argparse would report missing ones first
        self.required[field.name] = metavar

    def _add_option(
        self, group: argparse._ArgumentGroup, name: str, field: dataclasses.Field[Any], hint: Any, description: str
    ) -> None:
        alias = field.metadata.get("alias")
        flags = [f"--{alias}"] if alias else []
        flags.append(_flag(name))
        argparse_options = _argparse_options(hint)
        if field.metadata.get("metavar"):
            argparse_options["metavar"] = field.metadata["metavar"]
        if hint is bool:
            positive_flags = flags
            flags = []
            for flag in positive_flags:
                flags += [flag, _negative(flag)]
        if flags[0] == _SOURCE:
            argparse_options["action"] = _Once
        if field.default is dataclasses.MISSING:
            self.required[name] = f"{flags[0]} {argparse_options.get('metavar', '')}".strip()
            description += " (required)"
        else:
            self.defaults[name] = field.default
        group.add_argument(*flags, dest=name, help=_escaped(description), **argparse_options)

    def _show_help(self, defaults: Mapping[str, Any]) -> None:
        """Print the help.

        Args:
            defaults: Defaults that replace those of the dataclasses.
        """
        shown_defaults = dict(self.defaults)
        for name in self.defaults.keys() & defaults.keys():
            shown_defaults[name] = defaults[name]
        for action in self._actions:
            text = _default_text(shown_defaults.get(action.dest))
            if text:
                action.help = f"{action.help} (default: {_escaped(text)})"
        self.usage = " ".join([self.prog, *self.positional_metavars, "[OPTIONS]"])
        self.print_help()


def read_options(command: str, options: type[T], arguments: Sequence[str], description: str) -> T:
    """Read the options of a command whose options are the fields of a single dataclass.

    Args:
        command: Name of the command, such as "scan".
        options: The dataclass.
        arguments: The command line after the name of the command.
        description: What the help prints above the options.

    Raises:
        ConfigError: See `CommandParser.parse`.
    """
    parser = CommandParser(command, description)
    parser.add_fields(options)
    return options(**parser.parse(arguments))


def choose_task(
    command: str, arguments: Sequence[str], tasks: Collection[str], describe: Callable[[], str]
) -> str | None:
    """Return the first argument, which must be the name of a task.

    Args:
        command: Name of the command, such as "regions".
        arguments: The command line after the name of the command.
        tasks: Names of the tasks.
        describe: Returns the text of the help.

    Returns:
        The task. None if help was asked for or no argument was given; the help is printed then.

    Raises:
        ConfigError: If there is no such task.
    """
    given = arguments[0] if arguments else "--help"
    if given in ("-h", "--help"):
        print(f"{describe()}\n\nHelp for a task: plrc {command} {next(iter(tasks))} --help")
        return None
    if given not in tasks:
        raise ConfigError(f"there is no task {given!r}; did you mean plrc {command} {nearest(given, tasks)}?")
    return given


def about(command: Callable[..., object]) -> str:
    """Return the docstring of a command, which is the text of its help."""
    return inspect.cleandoc(command.__doc__ or "")


class _Switch(argparse.Action):
    """Stores True for --x and --section.x, False for --no-x and --section.no-x.

    `argparse.BooleanOptionalAction` would call the last one --no-section.x.
    """

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: object, option: str | None = None
    ) -> None:
        field_name = (option or "").removeprefix("--").rpartition(".")[2]
        setattr(namespace, self.dest, not field_name.startswith("no-"))


def _argparse_options(hint: Any) -> dict[str, Any]:
    """The keyword arguments of `add_argument` for a field with this type hint."""
    type_arguments = get_args(hint)
    if hint is bool:
        return {"action": _Switch, "nargs": 0}
    if get_origin(hint) is Literal:
        metavar = "{" + ",".join(map(str, type_arguments)) + "}"
        return {"choices": type_arguments, "type": type(type_arguments[0]), "metavar": metavar}
    if get_origin(hint) is tuple and get_origin(type_arguments[0]) is Literal:
        choices = get_args(type_arguments[0])
        return {"nargs": "*", "choices": choices, "metavar": "{" + ",".join(choices) + "}"}
    if get_origin(hint) is tuple:  # tuple[str, ...] or tuple[float, float]
        number = "+" if Ellipsis in type_arguments else len(type_arguments)
        return {"nargs": number, "type": type_arguments[0], "metavar": type_arguments[0].__name__.upper()}
    if NoneType in type_arguments:  # Path | None
        hint = next(argument for argument in type_arguments if argument is not NoneType)
    return {"type": hint, "metavar": hint.__name__.upper()}


def _field_descriptions(options: type) -> dict[str, str]:
    """The text below each field of a dataclass and of its base classes."""
    descriptions = {}
    for dataclass in reversed(options.__mro__[:-1]):  # the last entry is `object`
        for field in parse_from_object(dataclass).params:
            descriptions[field.arg_name] = " ".join((field.description or "").split())
    return descriptions


def _flag(name: str) -> str:
    """section.field_name -> --section.field-name. The field `with_` becomes --with (`with` is a Python keyword)."""
    return "--" + name.rstrip("_").replace("_", "-")


def _name(flag: str) -> str:
    """--section.field-name -> section.field_name."""
    return flag.removeprefix("--").replace("-", "_")


def _negative(flag: str) -> str:
    """--x -> --no-x, --section.x -> --section.no-x."""
    section, dot, name = flag.removeprefix("--").rpartition(".")
    return f"--{section}{dot}no-{name}"


def _with_hyphens(token: str) -> str:
    """--section.field_name=VALUE -> --section.field-name=VALUE. Values and other tokens stay as they are."""
    if not token.startswith("--"):
        return token
    flag, equals, value = token.partition("=")
    return flag.replace("_", "-") + equals + value


def _default_text(value: Any) -> str:
    """A default as the help prints it; empty for a default that says nothing (None or empty)."""
    if value is None or value in ("", ()):
        return ""
    if isinstance(value, tuple):
        return " ".join(map(_default_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _escaped(text: str) -> str:
    """Text for argparse, which formats its help with %."""
    return text.replace("%", "%%")


def _with_home(value: Any) -> Any:
    """A value; of a path that starts with ~/, which the shell leaves alone in --out=~/runs, with the home folder."""
    if str(value).startswith(("~/", "~\\")) and isinstance(value, (str, Path)):
        return type(value)(os.path.expanduser(value))
    return value
