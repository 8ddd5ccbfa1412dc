"""Task files: Python files that register datasets, run by path and each once.

Enters: paths. Leaves: what they registered; an error in one is told by type, file and line.

A file's folder is not put on `sys.path` (a task file may be named like a module of Python's
library), and its module has a name of its own, so two files may be called alike.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import pathlib
import sys
from collections.abc import Iterator

import seqio

from distill_sbs.curating import rules
from distill_sbs.errors import UserError

_loaded: set[pathlib.Path] = set()


def run_task_file(path: pathlib.Path) -> None:
    """Runs a task file that has not run in this process yet.

    Raises:
      UserError: there is no such file, it does not run, or it registers nothing.
    """
    path = path.resolve()
    if path in _loaded:
        return
    _check_file(path)
    digest = hashlib.blake2b(str(path).encode(errors="surrogateescape"), digest_size=4)
    name = f"distill_sbs_task_{path.stem}_{digest.hexdigest()}"
    module_spec = importlib.util.spec_from_file_location(name, path)
    assert module_spec and module_spec.loader
    module = importlib.util.module_from_spec(module_spec)
    registered = _count_names()
    sys.modules[name] = module
    try:
        module_spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise UserError(f"{path} could not be loaded: {_describe(error, path)}") from error
    if _count_names() == registered:
        raise UserError(
            f"--task_file={path} registers nothing; it should call "
            "registration.register_dataset(DatasetSpec(…)), as the files in tasks/ do, or for "
            "curate rules.register_rule(…)"
        )
    _loaded.add(path)


@contextlib.contextmanager
def tell_errors() -> Iterator[None]:
    """Tells an error that code of a task file raises (a reader, say) by type, file and line.

    Raises:
      UserError: in place of an error that came out of a task file.
    """
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception as error:
        for path in _loaded:
            if _find_line(error, path) is not None:
                raise UserError(f"{path}: {_describe(error, path)}") from error
        raise


def _check_file(path: pathlib.Path) -> None:
    if path.is_dir():
        raise UserError(f"--task_file={path} is a folder; name a Python file in it")
    if not path.exists():
        raise UserError(f"--task_file={path}: no such file")
    if path.suffix != ".py":
        raise UserError(f"--task_file={path}: expected a Python file, named ….py")


def _count_names() -> int:
    """How many tasks, mixtures and rules there are; none is ever taken away."""
    tasks = len(seqio.TaskRegistry.names()) + len(seqio.MixtureRegistry.names())
    return tasks + rules.count_own()


def _describe(error: BaseException, path: pathlib.Path) -> str:
    """`KeyError: 'nope' (line 3)`; the line is that of the task file."""
    if isinstance(error, SystemExit):
        told = f"it calls sys.exit({error.code!r})"
    elif isinstance(error, SyntaxError):
        told = f"{type(error).__name__}: {error.msg}"
    elif isinstance(error, UserError):
        told = str(error)
    else:
        told = f"{type(error).__name__}: {error}"
    # Where in the data it happened: who calls code of a task file for a row notes the row.
    places = list(getattr(error, "__notes__", ()))
    if (line := _find_line(error, path)) is not None:
        places.append(f"line {line}")
    if isinstance(error, SyntaxError) and error.filename != str(path) and error.filename:
        places.append(f"raised by {error.filename}, line {error.lineno}")
    elif not isinstance(error, (UserError, SyntaxError, ImportError)):
        file, line = _find_origin(error)
        if file != str(path):
            places.append(f"raised in {file}, line {line}")
    return f"{told} ({'; '.join(places)})" if places else told


def _find_line(error: BaseException, path: pathlib.Path) -> int | None:
    """The line of the last frame of `error` that lies in the file; None where none does."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return error.lineno
    line = None
    step = error.__traceback__
    while step is not None:
        if step.tb_frame.f_code.co_filename == str(path):
            line = step.tb_lineno
        step = step.tb_next
    return line


def _find_origin(error: BaseException) -> tuple[str, int]:
    """File and line of the frame that raised."""
    step = error.__traceback__
    assert step is not None
    while step.tb_next is not None:
        step = step.tb_next
    return step.tb_frame.f_code.co_filename, step.tb_lineno
