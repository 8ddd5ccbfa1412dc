"""The command line of the gin-driven entry points, with T5X's flags.

Enters: `sys.argv` and gin files. Leaves: a `Configuration`, the arguments of the entry point's
function, checked by name; or a `UserError`, within two seconds: neither JAX nor TensorFlow is
imported here, and an entry point that imports them after `parse` answers as fast.

gin binds the macros to the arguments of a stand-in for the entry point's function: the run file
says which arguments there are, so the function itself need neither be imported nor know gin.

    def main(configuration: command_line.Configuration) -> None:
        train(**configuration.arguments)

    if __name__ == "__main__":
        command_line.run(main, "runs/train.gin", "Trains a student.")
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import os
import pathlib
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

import gin.config
from absl import flags

from distill_sbs import resources
from distill_sbs.cli import gin_files, terminal
from distill_sbs.cli.run_main import run_main
from distill_sbs.errors import UserError

__all__ = ["Configuration", "UserError", "define_gin_flags", "parse", "parse_flags", "run"]

# Macros that our gin files may set though not every entry point reads them.
OUR_MACROS = ("PRETRAINED_CHECKPOINT_PATH", "TOPOLOGY")

# T5X's macros: the files that drive T5X may set them, our entry points leave them alone.
T5X_MACROS = (
    "CHECKPOINT_PATH",
    "EVALUATOR_NUM_EXAMPLES",
    "EVALUATOR_USE_MEMORY_CACHE",
    "EVAL_OUTPUT_DIR",
    "EVAL_STEPS",
    "INFER_OUTPUT_DIR",
    "JSON_WRITE_N_RESULTS",
    "LOSS_NORMALIZING_FACTOR",
    "MIXTURE_OR_TASK_MODULE",
    "MODEL",
    "TRAIN_STEPS_RELATIVE",
    "USE_CACHED_TASKS",
    "USE_HARDWARE_RNG",
    "VOCABULARY",
)

_EXAMPLE_FILE = "gin/experiments/quickstart.gin"


@dataclasses.dataclass(frozen=True)
class Configuration:
    """What the user asked for.

    Attributes:
      arguments: keyword arguments of the entry point's function, one for each parameter that the
        run file binds.
      config_text: the operative configuration, as gin text: given as `--gin_file` it gives the
        same arguments again.
      task_files: the user's registration files, in order; they exist.
      dry_run: whether only the configuration is asked for.
      flags: further flags that the entry point defined, by name.
      notes: what the user should know though it stops nothing, one line each.
    """

    arguments: dict[str, Any]
    config_text: str
    task_files: tuple[str, ...] = ()
    dry_run: bool = False
    flags: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()


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
        "dry_run", False, "Prints the configuration and stops.", flag_values=flag_values
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
    flags.DEFINE_integer("batch_size", 128, "Inputs at a time.", flag_values=values, lower_bound=1)
    flags.DEFINE_integer("beam_size", 1, "1 is greedy.", flag_values=values, lower_bound=1)
    flags.DEFINE_integer(
        "num_model_partitions",
        1,
        "Devices that share one copy of the parameters; a student of any run, trained on any mesh.",
        flag_values=values,
        lower_bound=1,
    )


def parse_flags(
    argv: Sequence[str], define: DefineFlags, description: str = "", more_help: str = ""
) -> flags.FlagValues:
    """Parses the flags of an entry point, gin-driven or not.

    Args:
      argv: the command line, program name first.
      define: defines the flags on the `FlagValues` it is given.
      description: what the entry point does, the first lines of `--help`.
      more_help: the last lines of `--help`.

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
        print(_help_text(flag_values, description, more_help))
        raise SystemExit(0)
    try:
        leftover = flag_values(_rewrite_gin_arguments(argv))[1:]
    except flags.UnrecognizedFlagError as error:
        near = _near(f"--{error.flagname}", (f"--{name}" for name in flag_values))
        raise UserError(f"unknown flag --{error.flagname}{near}; --help lists the flags") from None
    except flags.Error as error:
        raise UserError(f"{error}; --help lists the flags") from None
    if leftover:
        raise UserError(
            f"{leftover[0]!r} belongs to no flag; flags are typed --name=value, and --help lists"
            " them"
        )
    return flag_values


def parse(
    argv: Sequence[str],
    run_file: str = "runs/train.gin",
    description: str = "",
    define: DefineFlags | None = None,
) -> Configuration:
    """Reads the command line and the gin files, and checks every name in them.

    The order is the run file, the user's gin files, the bindings; the last one to set a macro
    wins. A run file that the user names himself is read where he named it only.

    Args:
      argv: the command line, program name first.
      run_file: the run file that comes with the package, relative to `gin/`. It binds macros to
        the parameters of the function that bears the file's name.
      description: what the entry point does, for `--help`.
      define: defines further flags.

    Raises:
      UserError: an unknown flag, macro, configurable or parameter, a file that does not exist, a
        value that is no gin expression, a required macro that nobody set.
      SystemExit: status 0 after `--help`.
    """

    def define_all(flag_values: flags.FlagValues) -> None:
        define_gin_flags(flag_values)
        if define is not None:
            define(flag_values)

    run_path = str(resources.gin_folder() / run_file)
    own_path = gin_files.SearchPath()
    run_bindings = list(gin_files.read_file(run_path, own_path))
    flag_values = parse_flags(argv, define_all, description, _macro_help(run_bindings))

    search_path = gin_files.SearchPath(flag_values.gin_search_paths)
    paths = [search_path.find(name, "--gin_file") for name in flag_values.gin_file]
    if not any(os.path.realpath(path) == os.path.realpath(run_path) for path in paths):
        paths.insert(0, run_path)
    for name in flag_values.task_file:
        if "://" not in name and not os.path.isfile(name):
            raise UserError(f"--task_file={name}: no such file")

    bindings = [b for path in paths for b in gin_files.read_file(path, search_path)]
    bindings += [gin_files.read_binding(text) for text in flag_values.gin_bindings]
    function_name = pathlib.PurePath(run_file).stem
    _reject_unknown_macros(run_bindings, bindings)
    _reject_unset_macros(function_name, bindings)
    arguments, config_text = _bind(
        function_name, run_bindings, paths, flag_values.gin_bindings, search_path
    )
    return Configuration(
        arguments=arguments,
        config_text=config_text,
        task_files=tuple(flag_values.task_file),
        dry_run=flag_values.dry_run,
        flags=flag_values.flag_values_dict(),
        notes=tuple(
            f"{binding.target} ({binding.place}) is T5X's macro and has no effect here"
            for binding in bindings
            if binding.target in T5X_MACROS and not _reads(run_bindings, binding.target)
        ),
    )


def run(
    main: Callable[[Configuration], int | None],
    run_file: str,
    description: str = "",
    define: DefineFlags | None = None,
    argv: Sequence[str] | None = None,
    interrupted: str = "the same command continues",
) -> NoReturn:
    """Runs an entry point: parses, answers `--dry_run`, and turns `UserError` into a message.

    Raises:
      SystemExit: status 2 for what the user can mend, else what `main` returned.
    """

    def work() -> int | None:
        configuration = parse(sys.argv if argv is None else argv, run_file, description, define)
        if configuration.dry_run:
            print(configuration.config_text)
            return 0
        for note in configuration.notes:
            terminal.say(f"note: {note}", stderr=True)
        return main(configuration)

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
    lines.append("\nFlags:" if lines else "Flags:")
    for name in sorted(flag_values):
        lines.append(f"  --{name}: {flag_values[name].help}")
    return "\n".join(lines + ([more_help] if more_help else []))


def _macro_help(run_bindings: Iterable[gin_files.Binding]) -> str:
    lines = ["\nMacros, set by gin files or --gin.NAME=value:"]
    for binding in run_bindings:
        if binding.is_macro:
            default = "required" if _is_required(binding.value) else f"default {binding.value!r}"
            lines.append(f"  {binding.target}: {default}")
    return "\n".join(lines)


def _near(name: str, known: Iterable[str]) -> str:
    """`; did you mean NAME?` for the nearest known name, capitals aside; empty if none is near."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    matches = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return f"; did you mean {by_lower[matches[0]]}?" if matches else ""


# ---------------------------------- macros -----------------------------------


def _is_required(value: Any) -> bool:
    return value == gin_files.MacroReference(gin_files.REQUIRED_MACRO)


def _macro_names(value: Any) -> set[str]:
    return {
        reference.name
        for reference in gin_files.references(value)
        if isinstance(reference, gin_files.MacroReference)
    }


def _reads(bindings: Iterable[gin_files.Binding], macro: str) -> bool:
    return any(macro in _macro_names(binding.value) for binding in bindings)


def _reject_unknown_macros(
    run_bindings: Sequence[gin_files.Binding], bindings: Sequence[gin_files.Binding]
) -> None:
    """Refuses a macro that nobody reads: a misspelled one would be ignored without a word."""
    known = {binding.target for binding in run_bindings if binding.is_macro}
    known.update(OUR_MACROS, T5X_MACROS)
    for binding in bindings:
        known.update(_macro_names(binding.value))
    known.discard(gin_files.REQUIRED_MACRO)
    for binding in bindings:
        if binding.is_macro and binding.target not in known:
            raise UserError(
                f"{binding.place}: unknown macro {binding.target}{_near(binding.target, known)}"
            )


def _reject_unset_macros(function_name: str, bindings: Sequence[gin_files.Binding]) -> None:
    """Refuses macros that are required and unset: gin would pass a sentinel on without a word."""
    last = {binding.target: binding.value for binding in bindings}
    wanted: list[str] = []
    pending = [
        name
        for target, value in last.items()
        if target.startswith(f"{function_name}.")
        for name in sorted(_macro_names(value))
    ]
    while pending:
        name = pending.pop(0)
        if name not in wanted and name != gin_files.REQUIRED_MACRO:
            wanted.append(name)
            pending += sorted(_macro_names(last.get(name)))
    unset = [
        name
        for name in wanted
        if name not in last or gin_files.REQUIRED_MACRO in _macro_names(last[name])
    ]
    if not unset:
        return
    remedies = []
    if [name for name in unset if name != "MODEL_DIR"]:
        remedies.append(
            f"an experiment file sets them, such as --gin_file={_EXAMPLE_FILE}, and"
            f" --gin.NAME=value sets one by hand"
        )
    if "MODEL_DIR" in unset:
        remedies.append("MODEL_DIR is yours to choose: --gin.MODEL_DIR=\"'runs/my_run'\"")
    plural = "s" if len(unset) > 1 else ""
    raise UserError(f"required macro{plural} not set: {', '.join(unset)}; {'; '.join(remedies)}")


# ---------------------------------- gin --------------------------------------


def _bind(
    function_name: str,
    run_bindings: Sequence[gin_files.Binding],
    paths: Sequence[str],
    binding_texts: Sequence[str],
    search_path: gin_files.SearchPath,
) -> tuple[dict[str, Any], str]:
    """Lets gin evaluate the files and bindings: the function's arguments, and gin's own text."""
    prefix = f"{function_name}."
    names = [b.target.removeprefix(prefix) for b in run_bindings if b.target.startswith(prefix)]

    def stand_in(**arguments: Any) -> dict[str, Any]:
        return arguments

    # gin checks parameter names against the signature, so the stand-in shows the run file's.
    stand_in.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in names]
    )
    gin_files.use_for_includes(search_path)
    gin.clear_config()
    try:
        with gin.config.interactive_mode():  # lets a second call register the stand-in again
            bound = gin.external_configurable(
                stand_in, name=function_name, module=f"distill_sbs.{function_name}"
            )
        gin.parse_config_files_and_bindings(list(paths), list(binding_texts))
        arguments = bound()
    except (ValueError, TypeError, RuntimeError, SyntaxError, ImportError, OSError) as error:
        raise UserError(_one_line(error, names)) from error
    return arguments, gin.operative_config_str()


def _one_line(error: Exception, names: Sequence[str]) -> str:
    message = re.sub(r"\s*\n\s*", " ", str(error)).strip()
    parameter = re.search(r"doesn't have a parameter named '(\w+)'", message)
    if parameter:
        return message + _near(parameter.group(1), names)
    if isinstance(error, ImportError):
        return f"{message}; a gin file imports it, and it is not installed"
    if "No configurable matching" in message:
        return (
            f"{message}; experiment files set macros only (T5X's own files belong to `python -m"
            " t5x.train`)"
        )
    return message
