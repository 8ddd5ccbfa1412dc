"""`results.json` as anybody may write it: what is read, and what is said of what cannot be."""

from __future__ import annotations

import pytest

from distill_sbs.errors import SourceError
from distill_sbs.reporting import words
from distill_sbs.reporting.results_form import KEYS, read_results
from distill_sbs.reporting.run import Model, Scores

GOOD: dict[str, object] = {
    "dataset": "esnli",
    "method": "dss",
    "data_fraction": 0.125,
    "test": {"accuracy": 0.5},
}


def test_every_key_is_read() -> None:
    value = {
        "mixture": "ignored_where_the_rest_is_stated",
        "dataset": "esnli",
        "method": "dss",
        "teacher": "palm",
        "model": "T5-Base",
        "parameters": 2.2e8,
        "data_fraction": 0.125,
        "rationale_rate": 1,
        "seed": 3,
        "seeds": 4,
        "standard_error": 0.01,
        "train_steps": 10,
        "best_step": 5,
        "validation": {"accuracy": 0.25},
        "test": {"accuracy": 0.5, "examples": 400, "decoded_tokens": 3.5},
        "teacher_accuracy": 0.73,
        "answer_flops": 1e12,
        "train_flops": 1e18,
        "command": "train",
        "source": "Table 1",
    }
    assert set(value) == set(KEYS)
    (run,) = read_results(value, "a", "a/results.json")
    assert (run.folder, run.dataset, run.method, run.teacher) == ("a", "esnli", "dss", "palm")
    assert run.model == Model("T5-Base", 220_000_000)
    assert (run.fraction, run.rate, run.seed, run.seeds) == (0.125, 1.0, 3, 4)
    assert (run.standard_error, run.train_steps, run.teacher_accuracy) == (0.01, 10, 0.73)
    assert run.scores == {"test": Scores(0.5, 400, 3.5), "validation": Scores(0.25)}
    assert (run.cost.answer_flops, run.cost.train_flops) == (1e12, 1e18)
    assert (run.command, run.source) == ("train", "Table 1")


def test_a_list_is_one_run_each() -> None:
    runs = read_results([GOOD, {**GOOD, "seed": 1}], "a", "p")
    assert [run.folder for run in runs] == ["a#1", "a#2"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data_fraction": -0.5}, "data_fraction is -0.5; expected a finite number above 0"),
        ({"data_fraction": 0}, "data_fraction is 0; expected"),
        ({"data_fraction": 12.5}, "data_fraction is 12.5; expected"),
        ({"data_fraction": True}, "data_fraction is True; expected"),
        ({"data_fraction": None}, "it states no data_fraction, above 0 and up to 1"),
        ({"test": {"accuracy": float("nan")}}, "test: accuracy is nan; expected a finite number"),
        ({"test": {"accuracy": float("inf")}}, "accuracy is inf"),
        ({"test": {"accuracy": 88.38}}, "accuracy is 88.38; .*a share, not percent"),
        ({"test": {"accuracy": -0.1}}, "accuracy is -0.1; expected"),
        ({"test": {"accuracy": "0.5"}}, "accuracy is '0.5'; expected"),
        ({"test": {"accuracy": 10**400}}, "accuracy is 1"),
        ({"test": 0.5}, "test is 0.5; expected an object"),
        ({"test": {"accuracy": None}}, "it states no accuracy"),
        ({"test": {}}, "it states no accuracy"),
        ({"test": {"accuracy": 0.5, "examples": 0}}, "examples is 0"),
        ({"seed": "0"}, "seed is '0'; expected a whole number"),
        ({"seed": 0.5}, "seed is 0.5; expected a whole number"),
        ({"seed": 10**400}, "seed is 1"),
        ({"rationale_rate": -1}, "rationale_rate is -1; expected a finite number from 0"),
        ({"parameters": 0}, "parameters is 0; expected a whole number of 1 or more"),
        ({"dataset": 3}, "dataset is 3; expected text"),
        ({"dataset": "x" * 201}, "expected text of at most 200 characters"),
        ({"dataset": None}, "it states no mixture, nor dataset and method"),
    ],
)
def test_what_cannot_be_is_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(SourceError, match=f"^p/results.json.*{message}"):
        read_results({**GOOD, **change}, "p", "p/results.json")


@pytest.mark.parametrize("value", [None, 3, "text", [3], [[]]])
def test_what_is_no_result_is_refused(value: object) -> None:
    with pytest.raises(SourceError, match="expected an object as `train` writes it"):
        read_results(value, "p", "p")


def test_a_misspelled_key_is_found() -> None:
    value = {key: each for key, each in GOOD.items() if key != "data_fraction"}
    with pytest.raises(SourceError, match="did you mean data_fraction by data_fractoin?"):
        read_results({**value, "data_fractoin": 0.5}, "p", "p")


def test_a_teacher_needs_neither_fraction_nor_seed() -> None:
    (run,) = read_results(
        {"mixture": "cqa_teacher_palm", "data_fraction": None, "test": {"accuracy": 0.7723}},
        "p",
        "p",
    )
    assert (run.dataset, run.method, run.teacher) == ("cqa", words.FEW_SHOT, "palm")


@pytest.mark.parametrize(
    ("mixture", "parts"),
    [
        ("cqa_finetune", ("cqa", "finetune", None)),
        ("cqa_label", ("cqa", "finetune", None)),
        ("text_pretrain", ("text", "pretrain", None)),
        ("cqa_label_palm", ("cqa", "distill", "palm")),
        ("cqa_distill_palm", ("cqa", "distill", "palm")),
        ("cqa_dss_palm", ("cqa", "dss", "palm")),
        ("cqa_dss_distill_palm", ("cqa", "dss_distill", "palm")),
        ("cqa_joint_palm", ("cqa", "joint", "palm")),
        ("cqa_pinto_gpt_4", ("cqa", "pinto", "gpt_4")),
        ("svamp_asdiv_dss_palm", ("svamp_asdiv", "dss", "palm")),
        ("my_label_set_dss_gpt", ("my_label_set", "dss", "gpt")),
        ("anything", ("anything", "other", None)),
        ("_finetune", ("_finetune", "other", None)),
        ("_dss_", ("_dss_", "other", None)),
        ("", ("", "other", None)),
    ],
)
def test_names_of_mixtures_are_read(mixture: str, parts: tuple[str, str, str | None]) -> None:
    assert words.split_mixture(mixture) == parts
