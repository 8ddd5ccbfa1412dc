"""Flags under titles: which of them belong together in `--help`.

    with flag_groups.group(values, "Several processes"):
        flags.DEFINE_bool("multiprocess", …, flag_values=values)

absl keeps the flags of each Python module together, under its name; a title stands in that name's
place here, so absl's own register holds the groups.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from absl import flags

# No Python module has such a name.
_MARK = "# "


@contextlib.contextmanager
def group(values: flags.FlagValues, title: str) -> Iterator[None]:
    """What is defined inside stands under `title`; a title may be given several times."""
    known = set(values)
    yield
    for name in values:
        if name not in known:
            values.register_flag_by_module(_MARK + title, values[name])


def list_groups(values: flags.FlagValues) -> dict[str, list[str]]:
    """The names of all flags by title, as titles were given; those without one are under ''."""
    groups = {
        module.removeprefix(_MARK): [flag.name for flag in members]
        for module, members in values.flags_by_module_dict().items()
        if module.startswith(_MARK)
    }
    grouped = {name for names in groups.values() for name in names}
    return {"": [name for name in values if name not in grouped], **groups}
