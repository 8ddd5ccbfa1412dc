"""Finds and reads gin files without running them.

Enters: names of gin files and bindings, as the user typed them. Leaves: paths, and the statements
in the files, includes followed, so that `command_line` can answer a wrong name before gin, JAX or
TensorFlow do any work.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import pathlib
import shlex
from collections.abc import Iterable, Iterator
from typing import IO, Any

import gin.config
from etils import epath
from gin import config_parser

from distill_sbs import resources
from distill_sbs.errors import UserError

# The value of a macro that must be set, `%gin.REQUIRED` in a gin file.
REQUIRED_MACRO = "gin.REQUIRED"


@dataclasses.dataclass(frozen=True)
class MacroReference:
    """`%NAME` in a gin file."""

    name: str


@dataclasses.dataclass(frozen=True)
class ConfigurableReference:
    """`@name` or `@name()` in a gin file."""

    name: str


@dataclasses.dataclass(frozen=True)
class Binding:
    """One statement `target = value`.

    Attributes:
      target: a macro's name (`BATCH_SIZE`), or a parameter (`train.batch_size`).
      value: a literal, with references standing for themselves.
      place: where it was read, for messages: `file:line`, or the flag.
    """

    target: str
    value: Any
    place: str

    @property
    def is_macro(self) -> bool:
        """Whether it sets a macro."""
        return "." not in self.target


class _Delegate(config_parser.ParserDelegate):  # type: ignore[misc]  # gin has no types
    """Keeps references as they stand."""

    def configurable_reference(
        self, scoped_configurable_name: str, evaluate: bool
    ) -> ConfigurableReference:
        return ConfigurableReference(scoped_configurable_name)

    def macro(self, macro_name: str) -> MacroReference:
        return MacroReference(macro_name)


class SearchPath:
    """Where gin files are looked for: the working directory, the user's folders, ours.

    Ours are the checkout (or the installed package) and its `gin/` folder, so that
    `gin/experiments/quickstart.gin` and `experiments/quickstart.gin` work from any folder.
    """

    def __init__(self, user_folders: Iterable[str] = ()):
        root = resources.root_folder()
        self.folders = [os.curdir, *user_folders, str(root), str(root / "gin")]

    def locate(self, name: str) -> str | None:
        """The path of the first file of that name, None where there is none."""
        for path in self._candidates(name):
            if _is_file(path):
                return path
        return None

    def find(self, name: str, named_by: str) -> str:
        """The path of the first file of that name.

        Raises:
          UserError: there is none; the message says where it was looked for, and what is near.
        """
        path = self.locate(name)
        if path is not None:
            return path
        looked = "".join(f"\n  {path}" for path in self._candidates(name))
        raise UserError(
            f"{named_by}: gin file {name!r} does not exist. Looked for:{looked}{_near_files(name)}"
        )

    def _candidates(self, name: str) -> list[str]:
        if os.path.isabs(name) or "://" in name:
            return [name]
        paths = (os.path.abspath(os.path.join(folder, name)) for folder in self.folders)
        return list(dict.fromkeys(paths))


def _is_file(path: str) -> bool:
    # The exists() of a bucket needs the network; a local path must not wait for its libraries.
    return epath.Path(path).exists() if "://" in path else os.path.isfile(path)


def _open(path: str) -> IO[str]:
    return epath.Path(path).open() if "://" in path else open(path, encoding="utf-8")


def _near_files(name: str) -> str:
    """Shipped files that the user may have meant, as the end of a message."""
    root = resources.root_folder()
    shipped = {
        str(path.relative_to(root)): path.stem for path in sorted((root / "gin").rglob("*.gin"))
    }
    stems = difflib.get_close_matches(pathlib.PurePath(name).stem, shipped.values(), n=3)
    near = [path for path, stem in shipped.items() if stem in stems]
    return f"\nNear matches: {', '.join(near)}" if near else ""


def read_file(path: str, search_path: SearchPath) -> Iterator[Binding]:
    """The bindings of a gin file in order, those of the files it includes among them.

    Raises:
      UserError: a syntax error (file and line), or an included file that does not exist.
    """
    with _open(path) as file:
        text = file.read()
    for statement in _parse(text, path):
        if isinstance(statement, config_parser.IncludeStatement):
            place = f"{path}:{statement.location.line_num}"
            yield from read_file(search_path.find(statement.filename, place), search_path)
        elif isinstance(statement, config_parser.BindingStatement):
            yield _as_binding(statement, f"{path}:{statement.location.line_num}")


def read_binding(text: str) -> Binding:
    """One binding of the command line, `NAME = value`.

    Raises:
      UserError: not a gin expression; the message shows how to type it.
    """
    name, separator, value = (part.strip() for part in text.partition("="))
    if not separator or not name:
        raise UserError(f"--gin_bindings={text!r}: expected NAME=value, such as BATCH_SIZE=64")
    try:
        statements = list(config_parser.ConfigParser(text, _Delegate()))
    except SyntaxError:
        raise UserError(_explain_value(name, value)) from None
    if len(statements) != 1 or not isinstance(statements[0], config_parser.BindingStatement):
        raise UserError(f"--gin_bindings={text!r}: expected a single NAME=value")
    return _as_binding(statements[0], f"--gin.{name}")


def _parse(text: str, path: str) -> Iterator[Any]:
    try:
        yield from config_parser.ConfigParser(text, _Delegate())
    except SyntaxError as error:
        line = f":{error.lineno}" if error.lineno else ""
        quoted = f"\n  {error.text.strip()}" if error.text else ""
        reason = str(error.msg).splitlines()[0]
        raise UserError(
            f"{path}{line}: not a gin statement: {reason}{quoted}\n"
            "Expected NAME = value, where text stands in quotes."
        ) from None


def _as_binding(statement: config_parser.BindingStatement, place: str) -> Binding:
    target = statement.selector
    if statement.scope:
        target = f"{statement.scope}/{target}"
    if statement.arg_name:
        target = f"{target}.{statement.arg_name}"
    return Binding(target, statement.value, place)


def _explain_value(name: str, value: str) -> str:
    """What to type instead of a value that is no gin expression."""
    message = f"--gin.{name}={value}: the value is not a gin expression"
    if not value:
        return f"{message}: it is empty; text is given as --gin.{name}=\"'text'\", nothing as None"
    if value.lower() in ("true", "false", "none"):
        return f"{message}; write --gin.{name}={value.capitalize()}"
    if any(character in value for character in "\"'{}[]()") or "\n" in value:
        return f"{message}; check its quotes and brackets, and quote it for the shell"
    as_typed = '"' + repr(value) + '"' if shlex.quote(value) == value else shlex.quote(repr(value))
    return f"{message}; text needs quotes of its own: --gin.{name}={as_typed}"


def references(value: Any) -> Iterator[MacroReference | ConfigurableReference]:
    """Every `%NAME` and `@name` inside a value."""
    if isinstance(value, (MacroReference, ConfigurableReference)):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from references(key)
            yield from references(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from references(item)


# gin finds included files through its readers. Ours asks the search path of the current call, so
# that one call's folders do not leak into the next, as with gin.add_config_file_search_path. It
# stands first, which register_file_reader cannot do: a reader of gin's logs an error, and sets up
# logging for the whole program, for every name that it does not find.
_current: SearchPath | None = None


def use_for_includes(search_path: SearchPath) -> None:
    """Makes gin resolve `include` through `search_path`."""
    global _current
    _current = search_path


def _locate_for_gin(name: str) -> bool:
    return _current is not None and _current.locate(name) is not None


def _open_for_gin(name: str) -> IO[str]:
    assert _current is not None
    path = _current.locate(name)
    assert path is not None
    return _open(path)


gin.config._FILE_READERS.insert(0, (_open_for_gin, _locate_for_gin))
