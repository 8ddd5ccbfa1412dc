"""The page "Settings" of the site: every option of a run and of an extraction, as it is defined.

Enters: `distill_sbs.config`, and the options of sweep and teacher. Leaves: a page that mkdocs adds
to the site (a hook of `mkdocs.yml`). It is no file of the repository, so that an option has one
home.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from distill_sbs import config, option_fields
from distill_sbs.allocating.options import AllocationConfig
from distill_sbs.sweeping.options import SweepConfig
from distill_sbs.teacher import options, prompts

HEAD = """# Settings

For whoever looks a setting up. This page is made of the definitions in
`distill_sbs/config.py`, `distill_sbs/sweeping/options.py`, `distill_sbs/allocating/options.py` and
`distill_sbs/teacher/options.py`;
`--help` of each command says the same.

A run is set by macros, in gin files or as `--gin.NAME=value`; in Python the same names in small
letters are the arguments of `TrainConfig.from_options`. A run goes on only with the values that it
began with, but for the macros marked *may change*.
"""
TEACHER_HEAD = """## Asking a teacher

Flags of `python -m distill_sbs.extract`, and the fields of `ExtractConfig`.
"""
TABLE_HEAD = ("| {} | default | what it is |", "| --- | --- | --- |")


def escape(text: str) -> str:
    """Text for a cell of a table in Markdown."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def macro_row(option: option_fields.Option) -> str:
    """The row of one macro."""
    default = "required" if option.is_required else f"`{option.default!r}`"
    if option.unit and option.default not in (None, option_fields.REQUIRED):
        default += f" {option.unit}"
    about = f"{option.help}; expects {option.kind.words}"
    if option.may_change:
        about += f". *May change*: {option.may_change}"
    return f"| `{option.macro}` | {default} | {escape(about)} |"


def flag_row(field: dataclasses.Field[Any]) -> str:
    """The row of one field of `ExtractConfig`."""
    about = field.metadata["help"].replace("{tasks}", ", ".join(prompts.known_tasks()))
    default = "" if field.default in (None, ()) else f"`{field.default!r}`"
    return f"| `--{field.name}` | {default} | {escape(about)} |"


def make_lines() -> Iterator[str]:
    """The page, line by line."""
    yield HEAD
    for field in dataclasses.fields(config.TrainConfig):
        part = getattr(config, f"{field.name.capitalize()}Config")
        yield from (f"## {field.name.capitalize()}", "", part.__doc__, "")
        yield from ("\n".join(TABLE_HEAD).format("macro"), *map(macro_row, part.options()), "")
    yield from ("## Precompile", "", "`precompile` takes the macros of a run, and one besides.", "")
    topology = next(iter(config.PrecompileConfig.options()))
    yield from ("\n".join(TABLE_HEAD).format("macro"), macro_row(topology), "")
    yield from ("## Sweep", "", "`sweep` takes the macros of a run, and these besides.", "")
    yield from ("\n".join(TABLE_HEAD).format("macro"), *map(macro_row, SweepConfig.options()), "")
    yield from ("## Allocate", "", "`allocate` takes the macros of a run, and these besides.", "")
    rows = map(macro_row, AllocationConfig.options())
    yield from ("\n".join(TABLE_HEAD).format("macro"), *rows, "")
    yield TEACHER_HEAD
    yield "\n".join(TABLE_HEAD).format("flag")
    yield from map(flag_row, dataclasses.fields(options.ExtractConfig))


def on_files(files: Any, config: Any) -> Any:
    """Adds the page; mkdocs calls this by its name."""
    from mkdocs.structure.files import File

    page = "\n".join(make_lines()) + "\n"
    files.append(File.generated(config, "settings.md", content=page))
    return files
