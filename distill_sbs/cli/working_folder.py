"""Python's library before the working folder: `random.py` beside a dataset shadows nothing.

`python -m` puts the working folder first on `sys.path`, so that a file there named like a module of
Python's library (`array.py`, `json.py`) is imported in its place by whoever asks for that module.
Only `sys` and `os` are imported here, which the interpreter itself has loaded already.
"""

import os
import sys


def is_program_of_ours() -> bool:
    """Whether `python -m distill_sbs.…` is being started, and its module not yet run."""
    return sys.argv[:1] == ["-m"] and any(
        argument.removeprefix("-m").partition(".")[0] == "distill_sbs" for argument in sys.orig_argv
    )


def put_working_folder_last() -> None:
    """Moves the working folder to the end of `sys.path` if `python -m distill_sbs.…` put it first.

    What lies there can be imported as before (a module beside a task file, say). The few modules
    that the interpreter imports before any package (`runpy`'s: `importlib`, `pkgutil`, …) cannot be
    helped from here; `python -P -m distill_sbs.…` leaves the folder out from the beginning.
    """
    if is_program_of_ours() and not sys.flags.safe_path and sys.path[:1] == [os.getcwd()]:
        sys.path.append(sys.path.pop(0))
