"""The command line of the gin-driven entry points, with T5X's flags.

Enters: `sys.argv` and gin files. Leaves: a `Configuration`, whose `config` is the entry point's
options (`distill_sbs.config`), of their types and in their ranges; or a `UserError`, soon:
neither JAX nor TensorFlow is imported here, and an entry point that imports them after `parse`
answers as fast.

    def main(configuration: command_line.Configuration[TrainConfig]) -> None:
        train(configuration.config)

    if __name__ == "__main__":
        command_line.run(main, TrainConfig, "runs/train.gin", "Trains a student.")
"""

from __future__ import annotations

import dataclasses
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, NoReturn, TypeVar

from absl import flags

from distill_sbs import resources
from distill_sbs.cli import flag_groups, gin_files, gin_macros, terminal
from distill_sbs.cli.run_main import run_main
from distill_sbs.errors import UserError, did_you_mean
from distill_sbs.option_fields import Options

__all__ = ["Configuration", "UserError", "define_gin_flags", "parse", "parse_flags", "run"]

Config = TypeVar("Config", bound=Options)


@dataclasses.dataclass(frozen=True)
class Configuration(Generic[Config]):
    """What the user asked for.

    Attributes:
      config: the entry point's options.
      task_files: the user's registration files, in order; they exist.
      dry_run: whether only the checks are asked for.
      flags: further flags that the entry point defined, by name; of what types only absl knows.
      notes: what the user should know though it stops nothing, one line each.
    """

    config: Config
    task_files: tuple[str, ...] = ()
    dry_run: bool = False
    flags: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def config_text(self) -> str:
        """The options as gin text: given as `--gin_file` it gives them again."""
        return self.config.to_gin()


_HELP_WIDTH = 100

DefineFlags = Callable[[flags.FlagValues], None]


def define_gin_flags(flag_values: flags.FlagValues) -> None:
    """Defines the flags that every gin-driven entry point takes."""
    flags.DEFINE_multi_string(
        "gin_file",
        [],
        "A gin file, such as gin/experiments/quickstart.gin; repeatable, later files win. Looked"
        " for in the working directory, --gin_search_paths, and among the files that come with"
        " distill_sbs.",
        flag_values=flag_values,
    )
    flags.DEFINE_multi_string(
        "gin_bindings",
        [],
        "'NAME = value', applied after the files; repeatable. --gin.NAME=value is the same. Values"
        " are gin expressions, so text needs quotes of its own: --gin.MODEL_DIR=\"'/tmp/run'\".",
        flag_values=flag_values,
    )
    flags.DEFINE_list(
        "gin_search_paths",
        [],
        "Folders to look for gin files in, separated by commas.",
        flag_values=flag_values,
    )
    flags.DEFINE_multi_string(
        "task_file",
        [],
        "A file of your own that registers a dataset; repeatable.",
        flag_values=flag_values,
    )
    flags.DEFINE_bool(
        "dry_run",
        False,
        "Prints the configuration, checks all that can be checked without starting, and stops.",
        flag_values=flag_values,
    )


def define_decoding_flags(values: flags.FlagValues) -> None:
    """Defines what every entry point that decodes with a trained student takes."""
    flags.DEFINE_string(
        "checkpoint",
        None,
        "A run's MODEL_DIR (its best step is taken), or one step's folder.",
        flag_values=values,
        required=True,
    )
    with flag_groups.group(values, "How it decodes"):
        flags.DEFINE_integer(
            "batch_size", 128, "Inputs at a time.", flag_values=values, lower_bound=1
        )
        flags.DEFINE_integer("beam_size", 1, "1 is greedy.", flag_values=values, lower_bound=1)
        flags.DEFINE_integer(
            "num_model_partitions",
            1,
            "Devices that share one copy of the parameters; a student of any run, trained on any"
            " mesh.",
            flag_values=values,
            lower_bound=1,
        )


def parse_flags(
    argv: Sequence[str],
    define: DefineFlags,
    description: str = "",
    more_help: Callable[[bool], str] = lambda _: "",
    word: str | None = None,
) -> flags.FlagValues:
    """Parses the flags of an entry point, gin-driven or not.

    Args:
      argv: the command line, program name first.
      define: defines the flags on the `FlagValues` it is given.
      description: what the entry point does, the first lines of `--help`.
      more_help: the last lines of `--help` (False) and of `--helpfull` (True).
      word: the flag whose value may stand on the command line without its name.

    Returns:
      The flags; `flag_values.NAME` reads one.

    Raises:
      UserError: an unknown flag (with the nearest name), a value of the wrong type, a word that
        belongs to no flag, a required flag left out.
      SystemExit: status 0 after `--help`.
    """
    flag_values = flags.FlagValues()
    define(flag_values)
    if any(argument in ("-h", "-help", "--help", "--helpfull") for argument in argv[1:]):
        full = more_help("--helpfull" in argv[1:])
        terminal.say(_help_text(flag_values, description, full))
        raise SystemExit(0)
    try:
        flag_values.set_gnu_getopt(True)  # flags may follow a word
        leftover = flag_values(_rewrite_gin_arguments(argv))[1:]
    except flags.UnrecognizedFlagError as error:
        near = did_you_mean(f"--{error.flagname}", (f"--{name}" for name in flag_values))
        raise UserError(f"unknown flag --{error.flagname}{near}; --help lists the flags") from None
    except flags.Error as error:
        raise UserError(f"{error}; --help lists the flags") from None
    if word is not None and leftover and flag_values[word].value is None:
        flag_values[word].value = leftover.pop(0)
    if leftover:
        raise UserError(
            f"{leftover[0]!r} belongs to no flag; flags are typed --name=value, and --help lists"
            " them"
        )
    return flag_values


def parse(
    argv: Sequence[str],
    config_class: type[Config],
    run_file: str,
    description: str = "",
    define: DefineFlags | None = None,
) -> Configuration[Config]:
    """Reads the command line and the gin files, and checks every name and value in them.

    The order is the run file, the user's gin files, the bindings; the last one to set a macro
    wins. A run file that the user names himself is read where he named it only.

    Args:
      argv: the command line, program name first.
      config_class: the entry point's options.
      run_file: the run file that comes with the package, relative to `gin/`; its stem is the name
        by which options are bound without macros: `train.batch_size = 64`.
      description: what the entry point does, for `--help`.
      define: defines further flags.

    Raises:
      UserError: an unknown flag, macro or option, a file that does not exist, a statement that is
        refused (`gin_files`), a value that is no gin expression, of another type or out of range, a
        required macro that nobody set.
      SystemExit: status 0 after `--help`.
    """

    def define_all(flag_values: flags.FlagValues) -> None:
        define_gin_flags(flag_values)
        if define is not None:
            define(flag_values)

    def describe_macros(full: bool) -> str:
        return _macro_help(config_class) if full else _macro_names(config_class)

    flag_values = parse_flags(argv, define_all, description, describe_macros)
    run_path = str(resources.gin_folder() / run_file)
    search_path = gin_files.SearchPath(flag_values.gin_search_paths)
    paths = [search_path.find(name, "--gin_file") for name in flag_values.gin_file]
    if not any(os.path.realpath(path) == os.path.realpath(run_path) for path in paths):
        paths.insert(0, run_path)
    for name in flag_values.task_file:
        if "://" not in name and not os.path.isfile(name):
            raise UserError(f"--task_file={name}: no such file")

    bindings = [b for path in paths for b in gin_files.read_file(path, search_path)]
    bindings += [gin_files.read_binding(text) for text in flag_values.gin_bindings]
    return Configuration(
        config=gin_macros.evaluate(bindings, config_class, run_file),
        task_files=tuple(flag_values.task_file),
        dry_run=flag_values.dry_run,
        flags=flag_values.flag_values_dict(),
        notes=tuple(gin_macros.notes(bindings)),
    )


def run(
    main: Callable[[Configuration[Config]], int | None],
    config_class: type[Config],
    run_file: str,
    description: str = "",
    define: DefineFlags | None = None,
    argv: Sequence[str] | None = None,
    interrupted: str = "the same command continues",
    check: Callable[[Configuration[Config]], Iterable[str]] | None = None,
) -> NoReturn:
    """Runs an entry point: parses, answers `--dry_run`, and turns `UserError` into a message.

    Args:
      main: does the work; returns the exit status, None is 0.
      config_class: see `parse`, as for the next three and `argv`.
      run_file: which.
      description: for `--help`.
      define: further flags.
      argv: default: `sys.argv`.
      interrupted: what Ctrl-C leaves behind, in a few words.
      check: what `--dry_run` does besides printing the configuration: raises what `main` would
        raise before it starts, and gives lines to print.

    Raises:
      SystemExit: status 2 for what the user can mend, else what `main` returned.
    """

    def work() -> int | None:
        given = sys.argv if argv is None else argv
        configuration = parse(given, config_class, run_file, description, define)
        for note in configuration.notes:
            terminal.say(f"note: {note}", stderr=True)
        if not configuration.dry_run:
            return main(configuration)
        terminal.say(configuration.config_text.rstrip())
        for line in check(configuration) if check else ():
            terminal.say(line, stderr=True)
        return 0

    raise SystemExit(run_main(work, interrupted))


# ---------------------------------- flags ------------------------------------


def _rewrite_gin_arguments(argv: Sequence[str]) -> list[str]:
    """`--gin.NAME=value` is `--gin_bindings=NAME = value`, as in T5X."""
    rewritten = []
    for argument in argv:
        match = re.match(r"--?gin\.([^=]*)(=?)(.*)", argument, re.DOTALL)
        if match is None:
            rewritten.append(argument)
            continue
        name, equals, value = match.groups()
        if not equals or not name:
            raise UserError(f"{argument}: expected --gin.NAME=value, without blanks around the =")
        rewritten.append(f"--gin_bindings={name} = {value}")
    return rewritten


def _help_text(flag_values: flags.FlagValues, description: str, more_help: str) -> str:
    lines = [description] if description else []
    for title, names in flag_groups.list_groups(flag_values).items():
        if names:
            lines.append(("\n" if lines else "") + (title or "Flags") + ":")
        for name in names if title else sorted(names):
            # absl ends the help of a repeatable flag with a line of its own; ours says so already.
            text = str(flag_values[name].help).partition(";\n")[0]
            lines += textwrap.wrap(
                f"--{name}: {text}",
                _HELP_WIDTH,
                initial_indent="  ",
                subsequent_indent="    ",
                break_long_words=False,
                break_on_hyphens=False,
            )
    return "\n".join(lines + ([more_help] if more_help else []))


def _macro_names(config_class: type[Options]) -> str:
    """The names of the options by the part that they belong to, for a screen."""
    groups: dict[str, list[str]] = {}
    for each in config_class.options():
        group = each.path[0] if len(each.path) > 1 else "other"
        groups.setdefault(group, []).append(each.macro + ("*" if each.is_required else ""))
    lines = ["\nMacros, set by gin files or --gin.NAME=value (*: required):"]
    for group, names in groups.items():
        lines += textwrap.wrap(
            f"{group}: {', '.join(names)}",
            _HELP_WIDTH,
            initial_indent="  ",
            subsequent_indent="    ",
            break_long_words=False,
        )
    lines.append("\n--helpfull says what each is, its unit, its default, and which may change.")
    return "\n".join(lines)


def _macro_help(config_class: type[Options]) -> str:
    """The options, one a line: what `config.py` says of them."""
    lines = ["\nMacros, set by gin files or --gin.NAME=value:"]
    for each in config_class.options():
        default = "required" if each.is_required else f"default {each.default!r}"
        unit = f", {each.unit}" if each.unit else ""
        lines.append(f"  {each.macro}: {default}{unit}. {each.help}")
    lines.append("\nMay change when a run continues; all others belong to its identity:")
    lines.append("  " + ", ".join(each.macro for each in config_class.options() if each.may_change))
    return "\n".join(lines)
