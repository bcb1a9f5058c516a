"""Command-line options generated from dataclasses."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import NoneType
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin, get_type_hints

from docstring_parser import parse_from_object

from plrc.errors import ConfigError
from plrc.settings import Settings
from plrc.text import nearest

T = TypeVar("T")


def positional(metavar: str) -> Any:
    """Declare a field of a dataclass of options that is an argument without a name.

    Args:
        metavar: What the help prints for it.
    """
    return dataclasses.field(metadata={"positional": True, "metavar": metavar})


class CommandParser(argparse.ArgumentParser):
    """The options of one command, taken from the fields of dataclasses.

    The field `lr` of the section `optim` becomes the option --optim.lr. Its help is the text below the field; its
    metadata (`plrc.settings.setting`) may name an alias, a metavar, or hide it.

    Args:
        command: Name of the command, such as "pretrain".
        about: What the help prints above the options.
        refused: Options that the command does not take -> the error message, which names what to use instead.
    """

    def __init__(self, command: str, about: str, refused: Mapping[str, str] | None = None) -> None:
        super().__init__(
            prog=f"plrc {command}",
            description=about,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            argument_default=argparse.SUPPRESS,
            allow_abbrev=False,
            add_help=False,
        )
        self.refused = dict(refused or {})
        self.renamed: dict[str, str] = {}
        self.defaults: dict[str, Any] = {}
        self.metavars: list[str] = []  # of positional arguments
        self.required: dict[str, str] = {}  # by name: how the argument is written
        self.positionals = self.add_argument_group("arguments")
        self.general = self.add_argument_group("options")
        self.general.add_argument("-h", "--help", action="store_true", help="show this help and exit")

    def add_fields(self, options: type, section: str = "", exclude: Collection[str] = ()) -> None:
        """Add an option for each field of a dataclass, and for the fields of its sections.

        Args:
            options: A dataclass.
            section: Section that the fields belong to; empty for options without a section.
            exclude: Dotted names of fields that get no option.
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
                self._refuse(name, field)
            elif field.metadata.get("positional"):
                self._add_positional(field, hint, descriptions[field.name])
            else:
                self._add_option(group, name, field, hint, descriptions[field.name])

    def parse(
        self, arguments: Sequence[str], defaults: Callable[[dict[str, Any]], Mapping[str, Any]] | None = None
    ) -> dict[str, Any]:
        """Return what the user wrote: {dotted name: value}, without the options that were not written.

        --help prints the help and ends in SystemExit, as argparse does.

        Args:
            arguments: The command line after the name of the command.
            defaults: Gives the values of the options that are not written, for the help, from those that are. Without
                it the defaults of the dataclasses are shown.

        Raises:
            ConfigError: An option that is unknown, refused or missing, or whose value has the wrong form.
        """
        namespace, unknown = self.parse_known_args([_with_hyphens(token) for token in arguments])
        values: dict[str, Any] = {}
        for name, value in vars(namespace).items():
            values[name] = tuple(value) if isinstance(value, list) else value
        if unknown:
            self._fail_unknown(unknown)
        if values.pop("help", False):
            self._show_help(defaults(values) if defaults else {})
            raise SystemExit(0)
        missing = [written for name, written in self.required.items() if name not in values]
        if missing:
            self._fail(f"{self.prog} needs {' and '.join(missing)}")
        return values

    def error(self, message: str) -> NoReturn:
        """Raise an error of argparse as ConfigError."""
        self._fail(message.removeprefix("argument "))

    def _fail(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see: {self.prog} --help")

    def _fail_unknown(self, unknown: Sequence[str]) -> NoReturn:
        written = next((token for token in unknown if token.startswith("--")), "").partition("=")[0]
        if not written:
            self._fail(f"unexpected argument {unknown[0]!r}")
        name = written.removeprefix("--").replace("-", "_")
        if name in self.refused:
            raise ConfigError(self.refused[name])
        if name in self.renamed:
            raise ConfigError(f"{written} is now called {_flag(self.renamed[name])}")
        known = {flag.removeprefix("--").replace("-", "_"): flag for flag in self._flags()}
        raise ConfigError(f"unknown option {written}; did you mean {known[nearest(name, known)]}?")

    def _flags(self) -> Iterable[str]:
        for action in self._actions:
            yield from (flag for flag in action.option_strings if flag.startswith("--"))

    def _refuse(self, name: str, field: dataclasses.Field[Any]) -> None:
        alias = field.metadata.get("alias")
        if alias:
            self.refused[alias] = self.refused[name]

    def _add_positional(self, field: dataclasses.Field[Any], hint: Any, description: str) -> None:
        metavar = field.metadata["metavar"]
        self.metavars.append(metavar)
        action = self.positionals.add_argument(field.name, type=hint, metavar=metavar, help=_escaped(description))
        action.required = False  # `parse` reports what is missing, after what is unknown
        self.required[field.name] = metavar

    def _add_option(
        self, group: argparse._ArgumentGroup, name: str, field: dataclasses.Field[Any], hint: Any, description: str
    ) -> None:
        alias = field.metadata.get("alias")
        flags = [f"--{alias}"] if alias else []
        flags.append(_flag(name))
        keywords = _keywords(hint)
        if field.metadata.get("metavar"):
            keywords["metavar"] = field.metadata["metavar"]
        if hint is bool:
            flags = [form for flag in flags for form in (flag, _negative(flag))]
        if field.default is dataclasses.MISSING:
            self.required[name] = f"{flags[0]} {keywords.get('metavar', '')}".strip()
            description += " (required)"
        else:
            self.defaults[name] = field.default
        group.add_argument(*flags, dest=name, help=_escaped(description), **keywords)

    def _show_help(self, defaults: Mapping[str, Any]) -> None:
        shown = self.defaults | {name: value for name, value in defaults.items() if name in self.defaults}
        for action in self._actions:
            text = _default_text(shown.get(action.dest))
            if text:
                action.help = f"{action.help} (default: {_escaped(text)})"
        self.usage = " ".join([self.prog, *self.metavars, "[OPTIONS]"])
        self.print_help()


def read_options(command: str, options: type[T], arguments: Sequence[str], about: str) -> T:
    """Read the options of a command that has one dataclass of options.

    Args:
        command: Name of the command, such as "scan".
        options: The dataclass.
        arguments: The command line after the name of the command.
        about: What the help prints above the options.

    Raises:
        ConfigError: See `CommandParser.parse`.
    """
    parser = CommandParser(command, about)
    parser.add_fields(options)
    return options(**parser.parse(arguments))


def choose_task(command: str, arguments: Sequence[str], tasks: Collection[str], about: Callable[[], str]) -> str | None:
    """Return the task that a command line names.

    Args:
        command: Name of the command, such as "regions".
        arguments: The command line after the name of the command; the task is the first argument.
        tasks: Names of the tasks.
        about: Gives what the help prints.

    Returns:
        The task, or None after printing the help.

    Raises:
        ConfigError: There is no such task.
    """
    given = arguments[0] if arguments else "--help"
    if given in ("-h", "--help"):
        print(f"{about()}\n\nHelp for a task: plrc {command} {next(iter(tasks))} --help")
        return None
    if given not in tasks:
        raise ConfigError(f"there is no task {given!r}; did you mean plrc {command} {nearest(given, tasks)}?")
    return given


def about(command: Callable[..., object]) -> str:
    """Return what a command does and how it is called: its docstring."""
    return inspect.cleandoc(command.__doc__ or "")


class _Switch(argparse.Action):
    """Stores True for --x and --section.x, False for --no-x and --section.no-x."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: object, option: str | None = None
    ) -> None:
        last_part = (option or "").removeprefix("--").rpartition(".")[2]
        setattr(namespace, self.dest, not last_part.startswith("no-"))


def _keywords(hint: Any) -> dict[str, Any]:
    """The arguments of `add_argument` for values of a type."""
    choices = get_args(hint)
    if hint is bool:
        return {"action": _Switch, "nargs": 0}
    if get_origin(hint) is Literal:
        return {"choices": choices, "type": type(choices[0]), "metavar": f"{{{','.join(map(str, choices))}}}"}
    if get_origin(hint) is tuple:
        number = "+" if Ellipsis in choices else len(choices)
        return {"nargs": number, "type": choices[0], "metavar": choices[0].__name__.upper()}
    if NoneType in choices:  # Path | None
        hint = next(choice for choice in choices if choice is not NoneType)
    return {"type": hint, "metavar": hint.__name__.upper()}


def _field_descriptions(options: type) -> dict[str, str]:
    """The text below each field of a dataclass and of those that it extends."""
    descriptions = {}
    for owner in reversed(options.__mro__[:-1]):
        for field in parse_from_object(owner).params:
            descriptions[field.arg_name] = " ".join((field.description or "").split())
    return descriptions


def _flag(name: str) -> str:
    """section.field_name -> --section.field-name; a field cannot be called `with`, but `with_`."""
    return "--" + name.rstrip("_").replace("_", "-")


def _negative(flag: str) -> str:
    """--x -> --no-x, --section.x -> --section.no-x."""
    section, dot, name = flag.removeprefix("--").rpartition(".")
    return f"--{section}{dot}no-{name}"


def _with_hyphens(token: str) -> str:
    """--section.field_name=VALUE -> --section.field-name=VALUE; a value is left as it is."""
    if not token.startswith("--"):
        return token
    flag, equals, value = token.partition("=")
    return flag.replace("_", "-") + equals + value


def _default_text(value: Any) -> str:
    if value is None or value in ("", ()):
        return ""
    if isinstance(value, tuple):
        return " ".join(map(_default_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _escaped(text: str) -> str:
    """Text for argparse, which formats its help with %."""
    return text.replace("%", "%%")
