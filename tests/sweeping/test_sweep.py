"""sweep: what it refuses before anything starts, and what a sweep of finished runs prints."""

from __future__ import annotations

import json
import pathlib

import pytest
from sweeps import make_arguments

from distill_sbs import sweep

METHODS = "--mixtures=comparisons_finetune,comparisons_dss_template"


def test_a_misspelt_mixture_is_told_before_anything_starts(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mixtures = "--mixtures=comparisons_finetune,comparisons_finetun"
    assert sweep.main(make_arguments(tmp_path, mixtures)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "MIXTURE_OR_TASK_NAME='comparisons_finetun' is no registered task or mixture" in line
    assert "comparisons_finetune" in line and "nothing was started" in line
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--seeds=0,x"], "--seeds=0,x: expected numbers, 0,1,2"),
        (["--data_fractions=abc"], "--data_fractions=abc: expected numbers, 0.25,1"),
        (["--data_fractions=0"], "DATA_FRACTION has 0.0; expected a number"),
        (["--axis=RANDOM_SEED"], "RANDOM_SEED"),
        (["--axis=RANDOM_SED=[0]"], "'RANDOM_SED' is no macro of a run; did you mean RANDOM_SEED?"),
        (["--axis=RANDOM_SEED = %SEEDS"], "expected values, and no %MACRO"),
        (["--gin.EXECUTOR='rays'"], "EXECUTOR='rays'"),
        (["--gin.GRID=3"], "GRID=3"),
        (["--gin.RANDOM_SEED=3", "--seeds=0"], "--gin.RANDOM_SEED is given, and RANDOM_SEED is an"),
        (["--parallel=0"], "--parallel"),
        (["--cell=4"], "--cell=4: the sweep has 2 cells, 0 to 1"),
        (["--sweeps=3"], "unknown flag --sweeps"),
        (["--gin.NUM_MICROBATCHES=3"], "NUM_MICROBATCHES"),
    ],
)
def test_what_is_refused(
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    message: str,
) -> None:
    assert sweep.main(make_arguments(tmp_path, METHODS, *flags)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line
    assert not (tmp_path / "sweep").exists()


def test_dry_run_lists_the_cells_and_starts_nothing(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = make_arguments(tmp_path, METHODS, "--seeds=0,1", "--dry_run")
    assert sweep.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "4 runs, 4 to do"
    assert lines[3] == "equal for all: 8 examples a step, 6 steps, 48 examples"
    folder = tmp_path / "sweep"
    assert [line for line in lines if line.startswith("cell ")] == [
        f"cell 0: {folder}/comparisons_finetune/fraction_1/seed_0 (to do)",
        f"cell 1: {folder}/comparisons_dss_template/fraction_1/seed_0 (to do)",
        f"cell 2: {folder}/comparisons_finetune/fraction_1/seed_1 (to do)",
        f"cell 3: {folder}/comparisons_dss_template/fraction_1/seed_1 (to do)",
    ]
    assert sum(line.startswith("  python -m distill_sbs.train ") for line in lines) == 4
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_whose_runs_have_finished_elsewhere_prints_its_table(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As tpu_scripts/sweep.sh brings them: results.json, and nothing else."""
    accuracies = {("comparisons_finetune", 0): 0.4, ("comparisons_finetune", 1): 0.6}
    for (mixture, seed), accuracy in accuracies.items():
        folder = tmp_path / mixture / "fraction_0.25" / f"seed_{seed}"
        folder.mkdir(parents=True)
        results = {"mixture": mixture, "data_fraction": 0.25, "seed": seed}
        (folder / "results.json").write_text(
            json.dumps({**results, "test": {"accuracy": accuracy}})
        )
    arguments = ["sweep", f"--output={tmp_path}", "--mixtures=comparisons_finetune"]
    assert sweep.main([*arguments, "--data_fractions=0.25", "--seeds=0,1"]) == 0
    printed = capsys.readouterr().out
    assert "2 runs, 0 to do" in printed
    assert "mean ± standard error over 2 seeds" in printed
    assert "| comparisons_finetune | 50.0 ± 10.0 |" in printed
    (row,) = json.loads((tmp_path / "summary.json").read_text())
    assert row["test_accuracies"] == [0.4, 0.6] and row["seeds"] == [0, 1]
