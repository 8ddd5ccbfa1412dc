"""Every option of a sweep: its grid, what keeps the comparison fair, and where its runs run.

Enters: values from Python, or from gin files and the command line. Leaves: a `SweepConfig`, as
`distill_sbs.config` has those of a run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from distill_sbs import option_kinds as kinds
from distill_sbs.option_fields import Options, option
from distill_sbs.sweeping import grid as grids

EXECUTORS = ("local", "ray")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepConfig(Options):
    """All options of `python -m distill_sbs.sweep`, besides those of the runs."""

    sweep_dir: str = option(
        kinds.text("'runs/sweeps/mine'"), "folder of the sweep; a folder a run lies in it"
    )
    grid: Mapping[str, object] = option(
        kinds.mapping("{'RANDOM_SEED': [0, 1]}"),
        "axis → its values: a macro → [values]; 'dataset', 'method', 'teacher' → [names], which "
        "make MIXTURE_OR_TASK_NAME; another name → {label: macros and values, or a gin file}",
        default={},
    )
    examples_per_step: int | None = option(
        kinds.optional(kinds.whole(1, example="64")),
        "BATCH_SIZE follows it: times 1 where labels alone are trained on, times 1 + λ with "
        "rationales; None: as many as BATCH_SIZE is for the gin files' own MIXTURE_OR_TASK_NAME",
        default=None,
        unit="examples",
    )
    executor: str = option(
        kinds.choice(EXECUTORS), "'local': this machine; 'ray': a Ray cluster", default="local"
    )
    workers: int | None = option(
        kinds.optional(kinds.whole(1)),
        "runs at a time on this machine; None: as many as there are devices for, and memory",
        default=None,
    )
    cpus_per_run: int = option(
        kinds.whole(1),
        "processor cores of a run; on a CPU another number gives other last bits",
        default=1,
        unit="cores",
    )
    gpus_per_run: int | None = option(
        kinds.optional(kinds.whole(0)),
        "GPUs of a run; None: on this machine 1 where there are some, on Ray 0",
        default=None,
        unit="GPUs",
    )
    tpus_per_run: int | None = option(
        kinds.optional(kinds.whole(0)),
        "TPU chips of a run; None: on this machine all that there are, on Ray 0",
        default=None,
        unit="chips",
    )
    ray_address: str | None = option(
        kinds.optional(kinds.text("'auto'")),
        "a Ray cluster: 'auto', HOST:PORT or ray://HOST:PORT; None: $RAY_ADDRESS, or else a "
        "cluster of this machine alone, for as long as the sweep takes",
        default=None,
    )
    max_retries: int = option(
        kinds.whole(0),
        "how often a run whose Ray worker was lost goes on elsewhere",
        default=3,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        grids.make_cells(grids.make_axes(self.grid))

    def cells(self) -> tuple[grids.Cell, ...]:
        """Every run of the sweep, in the order in which they run."""
        return grids.make_cells(grids.make_axes(self.grid))
