"""Options of ours in T5X's runs: read from the macros of their names, whichever file set them.

Enters: gin's configuration while T5X evaluates it. Leaves: the dataclasses of `distill_sbs.config`,
checked as for our own trainer. So `gin/t5x/*.gin` need not list the options of a part one by one,
and an option that is new in `config.py` means the same in both engines.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import gin

from distill_sbs.option_fields import Options

Part = TypeVar("Part", bound=Options)


def read_options(part: type[Part], **given: object) -> Part:
    """A part of the configuration: values that are given, else its macros', else its defaults.

    Args:
      part: such as `config.OptimizerConfig`.
      **given: by the names of macros in small letters.

    Raises:
      UserError: a value that an option cannot have.
    """
    values = dict(given)
    for option in part.options():
        name = option.macro.lower()
        if name not in values and _is_set(option.macro):
            # A reference, which gin evaluates when it is copied, and notes as used.
            values[name] = copy.deepcopy(gin.config.parse_value(f"%{option.macro}"))
    return part.from_options(**values)


def _is_set(macro: str) -> bool:
    try:
        gin.query_parameter(f"{macro}/macro.value")
    except ValueError:
        return False
    return True
