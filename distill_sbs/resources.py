"""Finds what travels with the package, in a checkout and from an installed wheel alike.

Enters: nothing. Leaves: folders and files on the local disk: the gin files, the registration files
of `tasks/`, the teacher's prompts, the embedded vocabulary.

In a checkout `gin/` and `tasks/` are top-level folders; in a wheel they lie inside the package
(`distill_sbs/gin`, `distill_sbs/tasks`: as top-level folders of site-packages `gin` would lie in
the way of gin-config and `tasks` in everybody's). `python -m distill_sbs.resources` prints the
folder to give to another program, such as T5X, as `--gin_search_paths`.
"""

from __future__ import annotations

import pathlib

from distill_sbs.cli import terminal

_PACKAGE = pathlib.Path(__file__).resolve().parent


def root_folder() -> pathlib.Path:
    """The folder that holds `gin/` and `tasks/`: the checkout, or the installed package.

    It is a gin search path: a file named `gin/experiments/quickstart.gin` is found under it.

    Raises:
      FileNotFoundError: neither holds them, so the installation is incomplete.
    """
    for folder in (_PACKAGE, _PACKAGE.parent):
        if (folder / "gin" / "runs").is_dir() and (folder / "tasks").is_dir():
            return folder
    raise FileNotFoundError(
        f"neither {_PACKAGE} nor {_PACKAGE.parent} holds the folders gin/ and tasks/ that come"
        " with distill_sbs; install the package again"
    )


def gin_folder() -> pathlib.Path:
    """The folder of the gin files: experiments, methods, models, sweeps, run files, T5X's."""
    return root_folder() / "gin"


def task_folder() -> pathlib.Path:
    """The folder of the registration files, one a dataset."""
    return root_folder() / "tasks"


def prompt_folder() -> pathlib.Path:
    """The folder of the teacher's prompts, one TOML file a task."""
    return _PACKAGE / "teacher" / "prompts"


def completion_script() -> pathlib.Path:
    """What a shell sources to complete the commands and their flags."""
    return _PACKAGE / "cli" / "completion.bash"


def embedded_vocabulary() -> pathlib.Path:
    """The SentencePiece model that `VOCABULARY_FILE = 'embedded'` stands for.

    Raises:
      FileNotFoundError: the installation is incomplete.
    """
    path = _PACKAGE / "data" / "readers" / "wordproblems.model"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist, though it comes with distill_sbs; install the package again"
        )
    return path


if __name__ == "__main__":
    terminal.say(str(root_folder()))
