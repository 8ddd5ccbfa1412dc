"""Finds and reads gin files, which are data: nothing in them is ever run.

Enters: names of gin files and bindings, as the user typed them. Leaves: the bindings in them,
includes followed; or a `UserError` with file and line.

Only gin's parser is used, not gin: it knows the grammar, and neither imports a module nor calls a
function. A run leaves a `config.gin` that is meant to be passed on, so whoever reads one must not
have to trust who wrote it. Of gin's statements these are read: a macro `NAME = value`, a binding of
the entry point's own options `train.name = value`, and `include`. `import`, references (`@name`)
and scopes are refused where they stand.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import tokenize
from collections.abc import Iterable, Iterator

from etils import epath
from gin import config_parser

from distill_sbs import resources
from distill_sbs.cli import shell_words
from distill_sbs.errors import UserError, nearest_names
from distill_sbs.json_lines import decode_utf8

# The value of a macro that must be set, `%gin.REQUIRED` in a gin file.
REQUIRED_MACRO = "gin.REQUIRED"

# What a run file says its function is called with: `train.config = @TrainConfig()`.
CONFIGURABLES = ("TrainConfig", "PrecompileConfig", "SweepConfig", "AllocateConfig")

# Far more than anybody writes by hand.
_MOST_INCLUDES = 200
_MOST_BYTES = 2**20

# What gin's parser, the tokenizer and `ast.literal_eval` under it raise at text that is no gin.
_NO_GIN = (
    SyntaxError,
    tokenize.TokenError,
    RecursionError,
    MemoryError,
    TypeError,
    ValueError,
    RuntimeError,
    AssertionError,
)


@dataclasses.dataclass(frozen=True)
class MacroReference:
    """`%NAME` in a gin file."""

    name: str


@dataclasses.dataclass(frozen=True)
class ConfigurableReference:
    """`@name` or `@name()` in a gin file."""

    name: str
    is_called: bool


@dataclasses.dataclass(frozen=True)
class Binding:
    """One statement `target = value`.

    Attributes:
      target: a macro's name (`BATCH_SIZE`), or a parameter (`train.batch_size`).
      value: a literal, with references standing for themselves.
      place: where it was read, for messages: `file:line`, or the flag.
    """

    target: str
    value: object
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
        return ConfigurableReference(scoped_configurable_name, evaluate)

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


def _read_text(path: str) -> str:
    try:
        with epath.Path(path).open("rb") if "://" in path else open(path, "rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    if len(content) > _MOST_BYTES:
        raise UserError(f"{path}: more than {_MOST_BYTES:,} bytes; is it a gin file?")
    return decode_utf8(content, path)


def _near_files(name: str) -> str:
    """Shipped files that the user may have meant, as the end of a message."""
    root = resources.root_folder()
    shipped = {
        str(path.relative_to(root)): path.stem for path in sorted((root / "gin").rglob("*.gin"))
    }
    stems = nearest_names(pathlib.PurePath(name).stem, shipped.values())
    near = [path for path, stem in shipped.items() if stem in stems]
    return f"\nNear matches: {', '.join(near)}" if near else ""


def read_file(path: str, search_path: SearchPath) -> list[Binding]:
    """The bindings of a gin file in order, those of the files it includes among them.

    Raises:
      UserError: no gin (file and line), a statement that is refused, an included file that does not
        exist, includes itself, or is named as no gin file.
    """
    bindings: list[Binding] = []
    _read_into(bindings, path, search_path, [], [0])
    return bindings


def _read_into(
    bindings: list[Binding],
    path: str,
    search_path: SearchPath,
    including: list[str],
    included: list[int],
) -> None:
    """Appends the bindings of `path`; `including` are the files around it, outermost first."""
    within = [*including, os.path.realpath(path) if "://" not in path else path]
    for statement in _parse(_read_text(path), path):
        place = f"{path}:{statement.location.line_num}"
        if isinstance(statement, config_parser.BindingStatement):
            bindings.append(_as_binding(statement, place))
        elif isinstance(statement, config_parser.IncludeStatement):
            name = statement.filename
            if not name.endswith(".gin"):
                raise UserError(f"{place}: include {name!r}: expected a file named ….gin")
            found = search_path.find(name, place)
            if (os.path.realpath(found) if "://" not in found else found) in within:
                raise UserError(f"{place}: include {name!r}: that file is what includes this one")
            included[0] += 1
            if included[0] > _MOST_INCLUDES:
                raise UserError(f"{place}: more than {_MOST_INCLUDES} files are included")
            _read_into(bindings, found, search_path, within, included)
        elif isinstance(statement, config_parser.ImportStatement):
            raise UserError(_refuse_import(statement, place))


def read_binding(text: str) -> Binding:
    """One binding of the command line, `NAME = value`.

    Raises:
      UserError: not a gin expression; the message shows how to type it. Or a statement that is
        refused in gin files too.
    """
    name, separator, value = (part.strip() for part in text.partition("="))
    if not separator or not name:
        raise UserError(f"--gin_bindings={text!r}: expected NAME=value, such as BATCH_SIZE=64")
    try:
        statements = list(config_parser.ConfigParser(text, _Delegate()))
    except _NO_GIN:
        raise UserError(_explain_value(name, value)) from None
    for statement in statements:
        if isinstance(statement, config_parser.ImportStatement):
            raise UserError(_refuse_import(statement, f"--gin_bindings={text!r}"))
    if len(statements) != 1 or not isinstance(statements[0], config_parser.BindingStatement):
        raise UserError(f"--gin_bindings={text!r}: expected a single NAME=value")
    return _as_binding(statements[0], f"--gin.{name}")


def _parse(text: str, path: str) -> Iterator[config_parser.Statement]:
    parser = None
    try:
        parser = config_parser.ConfigParser(text, _Delegate())
        yield from parser
    except _NO_GIN as error:
        line, quoted = _where(error, parser)
        at = f":{line}" if line else ""
        reason = str(getattr(error, "msg", None) or error.args[0] if error.args else "").split("\n")
        raise UserError(
            f"{path}{at}: not a gin statement: {reason[0] or type(error).__name__}{quoted}\n"
            "Expected NAME = value, where text stands in quotes."
        ) from None


def _where(error: Exception, parser: config_parser.ConfigParser | None) -> tuple[int | None, str]:
    """The line at which the parser gave up, and its text for the message."""
    if isinstance(error, SyntaxError):
        return error.lineno, f"\n  {error.text.strip()}" if error.text else ""
    if isinstance(error, tokenize.TokenError) and len(error.args) > 1:
        return error.args[1][0], ""
    return (parser.current_token.start[0] if parser and parser.current_token else None), ""


def _refuse_import(statement: config_parser.ImportStatement, place: str) -> str:
    if statement.module.startswith("__gin__"):
        what = "it would let a gin file call any function"
    else:
        what = f"it would run the module {statement.module}"
    return (
        f"{place}: {statement.format()!r} is refused: {what}. Gin files are data here: "
        "NAME = value and include. (T5X's own files belong to `python -m t5x.train`)"
    )


def _as_binding(statement: config_parser.BindingStatement, place: str) -> Binding:
    target = statement.selector
    if statement.arg_name:
        target = f"{target}.{statement.arg_name}"
    if statement.scope:
        raise UserError(
            f"{place}: {statement.scope}/{target} has a scope, which nothing reads here; write "
            f"{target} = …"
        )
    for reference in references(statement.value):
        is_own = statement.value == reference and reference.name in CONFIGURABLES
        if isinstance(reference, ConfigurableReference) and not (is_own and reference.is_called):
            raise UserError(
                f"{place}: {target} = … @{reference.name} is refused: it would call or hand over a "
                "function. Gin files are data here: numbers, text, True, False, None, lists, dicts "
                "and %MACRO"
            )
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
    as_typed = shell_words.quote_word(f"--gin.{name}={value!r}")
    return f"{message}; text needs quotes of its own: {as_typed}"


def references(value: object) -> Iterator[MacroReference | ConfigurableReference]:
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
