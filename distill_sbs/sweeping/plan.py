"""What a sweep is about to do: each run's command, and a batch that makes the comparison fair.

Enters: the cells of the grid, and what the user typed. Leaves: `Run`s, each with the flags of the
`python -m distill_sbs.train` that it is.

A batch counts sequences, label rows and rationale rows together, so the same BATCH_SIZE is fewer
examples where rationales are trained on. BATCH_SIZE is therefore set run by run: EXAMPLES_PER_STEP
times the sequences that the mixture draws for one example, 1 for labels alone and 1 + λ with
rationales. An axis that sets BATCH_SIZE itself keeps what it sets.
"""

from __future__ import annotations

import dataclasses
import fractions
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import cast

from etils import epath

from distill_sbs import json_lines
from distill_sbs.checkpoint.description import compare_options, compare_students
from distill_sbs.cli import command_line, gin_files, shell_words
from distill_sbs.config import TrainConfig
from distill_sbs.constants import CONFIG_FILE, RESULTS_FILE
from distill_sbs.errors import SourceError, UserError
from distill_sbs.sweeping.grid import FRACTION, MIXTURE, SEED, Cell, label_value
from distill_sbs.sweeping.options import SweepConfig
from distill_sbs.sweeping.summary import Result
from distill_sbs.training.metrics_file import RunResults

BATCH = "BATCH_SIZE"
DECODED = "MAX_DECODE_TOKENS"

_RUN_FILE = "runs/train.gin"
_OF_A_SWEEP = frozenset(option.macro for option in SweepConfig.options())


@dataclasses.dataclass(frozen=True)
class Given:
    """What the user typed that every run is given too.

    Attributes:
      gin_files: as typed.
      bindings: 'NAME = value'; none of the sweep's own macros.
      task_files: registration files of his own.
      search_paths: folders of gin files.
    """

    gin_files: tuple[str, ...]
    bindings: tuple[str, ...]
    task_files: tuple[str, ...]
    search_paths: tuple[str, ...]

    @classmethod
    def of_flags(cls, flags: Mapping[str, object]) -> Given:
        """Reads them from the sweep's flags."""

        def texts(name: str) -> tuple[str, ...]:
            values = flags[name]
            assert isinstance(values, list)
            return tuple(str(value) for value in values)

        own = tuple(
            text
            for text in texts("gin_bindings")
            if gin_files.read_binding(text).target not in _OF_A_SWEEP
        )
        return cls(texts("gin_file"), own, texts("task_file"), texts("gin_search_paths"))

    def make_flags(self, cell: Cell | None, settings: Mapping[str, object]) -> tuple[str, ...]:
        """Flags of `train`: what was typed, what the cell sets, and `settings` last."""
        made = [f"--gin_file={path}" for path in self.gin_files]
        made += [f"--gin_file={path}" for path in (cell.gin_files if cell else ())]
        made += [f"--task_file={path}" for path in self.task_files]
        if self.search_paths:
            made.append(f"--gin_search_paths={','.join(self.search_paths)}")
        for text in self.bindings:
            name, _, value = text.partition("=")
            made.append(f"--gin.{name.strip()}={value.strip()}")
        of_cell = cell.settings if cell else {}
        made += [f"--gin.{name}={value!r}" for name, value in {**of_cell, **settings}.items()]
        return tuple(made)


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of the sweep.

    Attributes:
      cell: where it stands in the grid.
      folder: its MODEL_DIR.
      arguments: the flags of its `train`; empty where nothing but its results is there.
      config: its options; None where nothing but its results is there.
      sequences_per_example: of its mixture, 1 or 1 + λ; None where that was not looked at.
      results: what its `results.json` says; None where it has not finished.
    """

    cell: Cell
    folder: str
    arguments: tuple[str, ...] = ()
    config: TrainConfig | None = None
    sequences_per_example: fractions.Fraction | None = None
    results: Result | None = None

    @property
    def name(self) -> str:
        """Its folder below SWEEP_DIR."""
        return self.cell.name

    def make_command(self) -> str:
        """The shell command that is this run, from the folder that the sweep was started in."""
        return shell_words.join_words(["python", "-m", "distill_sbs.train", *self.arguments])

    def examples_per_step(self) -> fractions.Fraction | None:
        """Training examples that a step sees; half as many as sequences for λ = 1."""
        if self.config is None or self.sequences_per_example is None:
            return None
        return self.config.batch.batch_size / self.sequences_per_example


class Planner:
    """Makes runs of cells.

    Args:
      config: the sweep's options.
      given: what the user typed.
    """

    def __init__(self, config: SweepConfig, given: Given) -> None:
        self._config = config
        self._given = given

    def plan(self, cells: Sequence[Cell] | None = None) -> tuple[Run, ...]:
        """The runs of some cells, or of all; finished ones are looked at no more than needed.

        Raises:
          UserError: a run's options cannot be, or its folder holds the results of another one.
        """
        runs = []
        for cell in self._config.cells() if cells is None else cells:
            folder = str(epath.Path(self._config.sweep_dir) / cell.name)
            results = _read_results(folder, cell)
            run = Run(cell, folder, results=results)
            if results is None or (epath.Path(folder) / CONFIG_FILE).exists():
                run = self._plan_run(run)
                if results is not None:
                    _check_same_options(run)
            runs.append(run)
        return tuple(runs)

    def _plan_run(self, run: Run) -> Run:
        settings: dict[str, object] = {"MODEL_DIR": run.folder}
        try:
            fixed = self._macros_of(run.cell)
            examples = None if BATCH in fixed else self._examples_per_step
            # Any batch will do to learn the mixture and λ, which say how large it must be.
            any_batch = {} if examples is None else {BATCH: 1, "NUM_MICROBATCHES": 1}
            config = self._parse(self._given.make_flags(run.cell, {**any_batch, **settings}))
            per_example = self._count_sequences(config)
            if examples is not None:
                settings = {BATCH: max(1, round(examples * per_example)), **settings}
            if DECODED not in fixed and (tokens := self._decoded_tokens(config)) is not None:
                settings = {DECODED: tokens, **settings}
            arguments = self._given.make_flags(run.cell, settings)
            config = self._parse(arguments)
        except UserError as error:
            raise UserError(f"{run.name}: {error}; nothing was started") from error
        return dataclasses.replace(
            run, arguments=arguments, config=config, sequences_per_example=per_example
        )

    def _parse(self, arguments: tuple[str, ...]) -> TrainConfig:
        return parse_arguments(arguments).config

    def _macros_of(self, cell: Cell) -> set[str]:
        """What the cell's axes set, in their gin files too."""
        search_path = gin_files.SearchPath(self._given.search_paths)
        macros = set(cell.settings)
        for name in cell.gin_files:
            path = search_path.find(name, "GRID")
            macros.update(binding.target for binding in gin_files.read_file(path, search_path))
        return macros

    @functools.cached_property
    def _examples_per_step(self) -> fractions.Fraction | None:
        """EXAMPLES_PER_STEP, or what BATCH_SIZE is for the gin files' own mixture."""
        if self._config.examples_per_step is not None:
            return fractions.Fraction(self._config.examples_per_step)
        try:
            base = self._parse(self._given.make_flags(None, {"MODEL_DIR": "unused"}))
        except UserError:  # no mixture of its own, say: BATCH_SIZE says nothing of examples
            return None
        return base.batch.batch_size / self._count_sequences(base)

    def _count_sequences(self, config: TrainConfig) -> fractions.Fraction:
        return _count_sequences(
            config.data.mixture_or_task_name,
            config.objective.rationale_rate,
            config.data.data_dir,
            self._given.task_files,
        )

    def _decoded_tokens(self, config: TrainConfig) -> int | None:
        """Where the label stands behind the rationale in one target, decoding reaches its end."""
        if not _is_joint(config.data.mixture_or_task_name):
            return None
        longest = config.batch.task_feature_lengths["targets"]
        return longest if longest > config.evaluation.max_decode_tokens else None


def parse_arguments(
    arguments: tuple[str, ...], define: command_line.DefineFlags | None = None
) -> command_line.Configuration[TrainConfig]:
    """The options that `python -m distill_sbs.train` reads from these flags.

    Args:
      arguments: the flags.
      define: further flags, whose defaults are wanted.
    """
    return command_line.parse(["train", *arguments], TrainConfig, _RUN_FILE, define=define)


# ---------------------------------- mixtures ----------------------------------


@functools.cache
def _count_sequences(
    mixture: str, rationale_rate: float, data_dir: str | None, task_files: tuple[str, ...]
) -> fractions.Fraction:
    """The sequences that a mixture draws for one label: 1, or 1 + λ where it has rationales."""
    from distill_sbs.cli import quiet_tensorflow

    quiet_tensorflow.import_tensorflow()
    import seqio

    from distill_sbs.data import registration, settings
    from distill_sbs.data.tasks import lookup

    settings.use(settings.DataSettings(data_dir, rationale_rate=rationale_rate))
    registration.load_task_files(task_files)
    found = registration.get_mixture_or_task(mixture)
    if isinstance(found, seqio.Task):
        return fractions.Fraction(1)
    rates = {
        task.name: fractions.Fraction(float(found.get_rate(task))).limit_denominator(10**6)
        for task in lookup.tasks_of(found)
    }
    labels = [rates[task.name] for task in lookup.tasks_of(found) if not lookup.is_rationale(task)]
    return sum(rates.values(), fractions.Fraction(0)) / (sum(labels) or 1)


def _is_joint(mixture: str) -> bool:
    from distill_sbs.data import registration
    from distill_sbs.data.tasks import lookup

    info = lookup.get_task_info(registration.get_mixture_or_task(mixture))
    return info is not None and info.method == "joint"


# ---------------------------------- what is there already ---------------------


def _read_results(folder: str, cell: Cell) -> Result | None:
    """What a finished run found; None where it has not finished, or its file is broken."""
    path = epath.Path(folder) / RESULTS_FILE
    if not path.exists():
        return None
    try:
        # Whether it is one is seen by what it lacks.
        return _make_result(cell, cast(RunResults, json_lines.read_json(path)))
    except (SourceError, LookupError, TypeError):
        return None


def _make_result(cell: Cell, results: RunResults) -> Result:
    """A finished run's result, with its labels in the grid.

    Raises:
      LookupError: something is missing; TypeError: something is of another kind.
    """
    accuracy, fraction, seed = (
        results["test"]["accuracy"],
        results["data_fraction"],
        results["seed"],
    )
    for value in (fraction, *([] if accuracy is None else [accuracy])):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise TypeError(f"{value!r} is no share")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"{seed!r} is no seed")
    labels = {MIXTURE: str(results["mixture"])}
    labels.update({axis: label for axis, label in cell.labels.items() if axis != MIXTURE})
    labels[FRACTION], labels[SEED] = label_value(FRACTION, float(fraction)), str(seed)
    return Result(labels, None if accuracy is None else float(accuracy))


def _check_same_options(run: Run) -> None:
    """Refuses results of other options than the sweep asks for, as far as `config.gin` tells.

    Raises:
      UserError: names the first option that differs.
    """
    path = epath.Path(run.folder) / CONFIG_FILE
    assert run.config is not None
    try:
        saved = parse_arguments((f"--gin_file={path}",)).config
        student = saved.student.architecture()
    except UserError:  # another version's
        return
    sizes = [saved.student.name, run.config.student.name]
    selections = [each.data.selection for each in (saved, run.config)]
    differences = [
        *compare_options(saved.values(), run.config.values()),
        *([("SELECTION", *map(repr, selections))] if selections[0] != selections[1] else []),
        *compare_students(student, run.config.student.architecture(), sizes),
    ]
    for macro, before, after in differences:
        if macro != "INITIAL_CHECKPOINT_PATH":  # the folder may have moved since
            raise UserError(
                f"{run.folder} holds the results of another run ({macro}: {before} there, {after} "
                "now); choose another SWEEP_DIR, give the old value, or delete that folder; "
                "nothing was started"
            )


def read_again(run: Run) -> Run:
    """The run with the results that it has by now."""
    return dataclasses.replace(run, results=_read_results(run.folder, run.cell))


# ---------------------------------- data --------------------------------------


def prepare_data(runs: Iterable[Run], task_files: Sequence[str]) -> None:
    """Prepares what the runs would each prepare at their start, once.

    Raises:
      tfrecords.UnpreparedDataError: records are missing that only `prepare` can make.
    """
    from distill_sbs.data import registration, settings
    from distill_sbs.data.tasks import lookup

    registration.load_task_files(task_files)
    wanted = {
        (run.config.data.mixture_or_task_name, run.config.data.data_dir)
        for run in runs
        if run.config is not None
    }
    for mixture, data_dir in sorted(wanted, key=repr):
        settings.use(settings.DataSettings(data_dir))
        lookup.prepare_missing(registration.get_mixture_or_task(mixture))
