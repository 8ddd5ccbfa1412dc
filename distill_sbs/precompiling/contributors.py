"""Which operations of a compiled program move most bytes.

Enters: the text of a compiled XLA program. Leaves: its operations by what they were in the traced
program, what all runs of each cost, the largest first.
"""

from __future__ import annotations

import dataclasses
import re

from distill_sbs.precompiling.hlo_costs import Costs, Program

# What JAX writes around a name and is the same for all of them.
_AROUND = re.compile(r"^jit\(\w+\)/|\b(?:closed_call|while|body|checkpoint)/|Transformer\.\w+/")


@dataclasses.dataclass(frozen=True)
class Contributor:
    """Operations of one name.

    Attributes:
      name: where the traced program has it, and what it does there.
      runs: how often its instructions run, all together.
      costs: of all runs.
    """

    name: str
    runs: float
    costs: Costs


def list_contributors(text: str) -> list[Contributor]:
    """The operations of a program, those that access most bytes first.

    An operation that the compiler fused with others goes by the name of the last one.

    Raises:
      ValueError: the text holds no program.
    """
    found: dict[str, tuple[float, Costs]] = {}
    for each, times, costs in Program(text).list_operations():
        if not costs.accessed_bytes and not costs.matrix_flops:
            continue
        name = _shorten(each.source) or each.opcode
        runs, total = found.setdefault(name, (0.0, Costs()))
        total.add(costs, times)
        found[name] = runs + times, total
    listed = [Contributor(name, runs, total) for name, (runs, total) in found.items()]
    return sorted(listed, key=lambda each: (-each.costs.accessed_bytes, each.name))


def _shorten(source: str) -> str:
    """JAX's path without what says nothing; the derivative and what is computed anew stay."""
    backward = source.partition("transpose(jvp(")[1]
    again = source.partition("rematted_computation/")[1]
    short = re.sub(r"(?:transpose\()?jvp\([\w.]{0,100}\)\)?/|rematted_computation/", "", source)
    short = _AROUND.sub("", short)
    marks = ["again" if again else "backward"] if backward else []
    return " ".join([*marks, short])
