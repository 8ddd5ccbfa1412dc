"""GRID: axes, cells, their folders, and what can be no axis."""

from __future__ import annotations

import pytest

from distill_sbs.option_fields import OptionError
from distill_sbs.sweeping.grid import make_axes, make_cells


def names(grid: dict[str, object]) -> list[str]:
    return [cell.name for cell in make_cells(make_axes(grid))]


def test_seeds_are_outermost_and_stand_last_in_a_folder() -> None:
    grid = {"RANDOM_SEED": [0, 1], "MIXTURE_OR_TASK_NAME": ["a", "b"], "DATA_FRACTION": [0.125, 1]}
    assert names(grid) == [
        "a/fraction_0.125/seed_0",
        "a/fraction_1/seed_0",
        "b/fraction_0.125/seed_0",
        "b/fraction_1/seed_0",
        "a/fraction_0.125/seed_1",
        "a/fraction_1/seed_1",
        "b/fraction_0.125/seed_1",
        "b/fraction_1/seed_1",
    ]


def test_a_method_without_a_teacher_runs_once() -> None:
    grid = {"dataset": ["cqa"], "method": ["finetune", "dss"], "teacher": ["palm", "qwen"]}
    assert names(grid) == ["cqa_finetune", "cqa_dss_palm", "cqa_dss_qwen"]
    cells = make_cells(make_axes(grid))
    assert [cell.index for cell in cells] == [0, 1, 2]
    assert cells[1].settings == {"MIXTURE_OR_TASK_NAME": "cqa_dss_palm"}


def test_any_macro_is_an_axis_and_values_get_its_type() -> None:
    (one, other) = make_cells(make_axes({"RATIONALE_RATE": [0, 0.5]}))
    assert one.settings == {"RATIONALE_RATE": 0.0} and one.name == "rationale_rate_0"
    assert isinstance(one.settings["RATIONALE_RATE"], float)
    assert other.name == "rationale_rate_0.5"


def test_close_numbers_get_folders_of_their_own() -> None:
    assert names({"LEARNING_RATE": [0.00012345, 0.00012346]}) == [
        "learning_rate_0.00012345",
        "learning_rate_0.00012346",
    ]


def test_labelled_settings() -> None:
    grid = {
        "student": {
            "small": "gin/models/t5_1_1_small.gin",
            "wide": {"DROPOUT_RATE": 0, "BATCH_SIZE": 8},
        },
    }
    small, wide = make_cells(make_axes(grid))
    assert (small.name, small.gin_files, small.settings) == (
        "student_small",
        ("gin/models/t5_1_1_small.gin",),
        {},
    )
    assert wide.settings == {"DROPOUT_RATE": 0.0, "BATCH_SIZE": 8}


def test_folders_do_not_hang_on_the_order_of_axes() -> None:
    size = {"small": {"DROPOUT_RATE": 0}}
    for grid in (
        {"size": size, "RANDOM_SEED": [3], "DATA_FRACTION": [1.0], "MIXTURE_OR_TASK_NAME": ["a"]},
        {"MIXTURE_OR_TASK_NAME": ["a"], "DATA_FRACTION": [1.0], "size": size, "RANDOM_SEED": [3]},
    ):
        assert names(grid) == ["a/fraction_1/size_small/seed_3"]


def test_no_grid_is_one_run() -> None:
    assert names({}) == ["run"]


@pytest.mark.parametrize(
    "grid, message",
    [
        ({"RANDOM_SEEDS": [0]}, "'RANDOM_SEEDS' is no macro of a run; did you mean RANDOM_SEED?"),
        ({"RANDOM_SEED": 3}, "'RANDOM_SEED' has 3; expected a list of values"),
        ({"RANDOM_SEED": []}, "'RANDOM_SEED' has no values"),
        ({"RANDOM_SEED": [1, 1]}, "RANDOM_SEED has '1' twice"),
        ({"RANDOM_SEED": ["x"]}, "RANDOM_SEED has 'x' is text; expected a whole number"),
        ({"DATA_FRACTION": [0.0]}, "DATA_FRACTION has 0.0; expected a number"),
        ({"MODEL_DIR": ["a"]}, "MODEL_DIR can be no axis: SWEEP_DIR says where the runs lie"),
        ({"SWEEP_DIR": ["a"]}, "'SWEEP_DIR' is no macro of a run"),
        ({"method": ["dss"]}, "'method' alone names no mixture; expected 'dataset' and 'method'"),
        (
            {"method": ["dss"], "dataset": ["cqa"]},
            "method 'dss' learns from a teacher, and none is named",
        ),
        (
            {"method": ["dss"], "dataset": ["cqa"], "MIXTURE_OR_TASK_NAME": ["a"]},
            "MIXTURE_OR_TASK_NAME and 'method' both choose the mixture",
        ),
        ({"method": [3], "dataset": ["cqa"]}, "'method' has 3; expected names"),
        ({"STUDENT_OVERRIDES": [{"a": 1}]}, "'student_overrides': {'label': {'STUDENT_OVERRIDES'"),
        ({"size": {}}, "'size' has no values"),
        ({"size": {"a/b": {}}}, "'size' has the label 'a/b'"),
        ({"size": {"..": {}}}, "'size' has the label '..'"),
        ({"size": {"a": 3}}, "'size': 'a' has 3; expected macros and their values"),
        ({"size": {"a": {"BATCH": 3}}}, "'BATCH' is no macro of a run"),
        ({"RANDOM_SEED": {"a": {"RANDOM_SEED": 1}}}, "'RANDOM_SEED' has labels"),
        (
            {"RANDOM_SEED": [0], "s": {"a": {"RANDOM_SEED": 1}}},
            "RANDOM_SEED and s both set RANDOM_SEED",
        ),
        (
            {"MIXTURE_OR_TASK_NAME": ["a/b", "a_b"]},
            "two values of MIXTURE_OR_TASK_NAME would both lie in a folder 'a_b'",
        ),
        (
            {name: list(range(1, 51)) for name in ("RANDOM_SEED", "BATCH_SIZE", "TRAIN_STEPS")},
            "125,000 combinations; expected at most 100,000",
        ),
    ],
)
def test_what_is_no_grid(grid: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError) as raised:
        make_cells(make_axes(grid))
    assert message in str(raised.value)
    assert str(raised.value).startswith("GRID: ")
