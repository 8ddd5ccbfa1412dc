"""Cells, differences and headlines, computed of runs whose answers are worked out by hand."""

from __future__ import annotations

import pytest
from report_runs import paper_results

from distill_sbs.reporting import words
from distill_sbs.reporting.findings import Cell, Findings, find
from distill_sbs.reporting.names import state_headlines
from distill_sbs.reporting.results_form import read_results
from distill_sbs.reporting.run import Model, Run, Scores
from distill_sbs.reporting.tables import make_tables

BASE = Model("base", 220)


def make_run(
    method: str,
    accuracy: float,
    seed: int | None = 0,
    fraction: float = 1.0,
    teacher: str | None = None,
    rate: float | None = None,
    model: Model | None = BASE,
    settings: dict[str, str] | None = None,
) -> Run:
    return Run(
        f"{method}_{teacher}_{fraction:g}_{seed}",
        "cqa",
        method,
        teacher,
        model,
        fraction,
        rate,
        seed,
        scores={"test": Scores(accuracy)},
        settings=settings or {},
    )


def cell_of(findings: Findings, method: str, fraction: float = 1.0) -> Cell:
    (found,) = (
        cell
        for cell in findings.cells
        if cell.series.method == method and cell.fraction == fraction
    )
    return found


# ---------------------------------- cells -------------------------------------


def test_seeds_are_one_cell() -> None:
    runs = [make_run("finetune", each, seed) for seed, each in enumerate((0.5, 0.6, 0.7))]
    findings = find(runs, "test")
    (cell,) = findings.cells
    assert cell.accuracy.mean == pytest.approx(0.6) and cell.accuracy.count == 3
    assert findings.problems == ()


def test_a_second_run_of_a_seed_is_named_and_does_not_count() -> None:
    again = Run("copy", "cqa", "finetune", None, BASE, 1.0, scores={"test": Scores(0.9)}, seed=0)
    findings = find([make_run("finetune", 0.5), again], "test")
    (cell,) = findings.cells
    assert cell.accuracy.mean == 0.5 and cell.accuracy.count == 1
    assert findings.problems == (
        "copy: a second run of seed 0 like finetune_None_1_0, which counts",
    )


def test_options_that_differ_inside_a_cell_split_it() -> None:
    runs = [
        make_run(method, accuracy, teacher=teacher, settings={"LEARNING_RATE": rate, "Z": "0"})
        for method, teacher, gain in (("finetune", None, 0.0), ("dss", "palm", 0.125))
        for rate, accuracy in (("0.1", 0.25 + gain), ("0.2", 0.5 + gain))
    ]
    findings = find(runs, "test")
    assert [cell.series.setting for cell in findings.cells] == [
        "LEARNING_RATE=0.1",
        "LEARNING_RATE=0.2",
        "LEARNING_RATE=0.1",
        "LEARNING_RATE=0.2",
    ]
    assert [
        (each.cell.series.setting, each.reference.series.setting, each.interval.mean)
        for each in findings.differences
    ] == [
        ("LEARNING_RATE=0.1", "LEARNING_RATE=0.1", 0.125),
        ("LEARNING_RATE=0.2", "LEARNING_RATE=0.2", 0.125),
    ]


def test_options_that_follow_the_method_split_nothing() -> None:
    runs = [
        make_run("finetune", 0.5, settings={"BATCH_SIZE": "64"}),
        make_run("dss", 0.6, teacher="palm", settings={"BATCH_SIZE": "128"}),
    ]
    findings = find(runs, "test")
    assert [cell.series.setting for cell in findings.cells] == ["", ""]
    assert len(findings.differences) == 1


def test_a_run_that_was_pretrained_has_no_accuracy() -> None:
    value = {"mixture": "text_pretrain", "data_fraction": 1.0, "validation": {"loss": 2.5}}
    findings = find(read_results(value, "a", "p"), "test")
    assert findings.cells == () and findings.problems == ()
    assert [run.validation_loss for run in findings.pretrained] == [2.5]
    (table,) = (each for each in make_tables(findings, []) if each.name == "pretraining")
    assert [entry.shown for entry in table.rows[0]][-2:] == ["2.500", "12.18"]


@pytest.mark.parametrize(("loss", "shown"), [(None, "–"), (1e6, "–"), (0.0, "1")])
def test_a_perplexity_is_a_number_or_none(loss: float | None, shown: str) -> None:
    value = {"mixture": "text_pretrain", "data_fraction": 1.0, "validation": {"loss": loss}}
    findings = find(read_results(value, "a", "p"), "test")
    (table,) = (each for each in make_tables(findings, []) if each.name == "pretraining")
    assert table.rows[0][-1].shown == shown


def test_a_run_without_that_split_is_named() -> None:
    findings = find([make_run("finetune", 0.5)], "validation")
    assert findings.cells == () and findings.problems == (
        "finetune_None_1_0: no accuracy on validation",
    )


# ---------------------------------- differences -------------------------------


def test_differences_are_of_the_same_seeds() -> None:
    runs = [make_run("finetune", each, seed) for seed, each in enumerate((0.5, 0.25, 0.75))]
    runs += [
        make_run("dss", each, seed, teacher="palm")
        for seed, each in ((1, 0.5), (2, 0.875), (7, 0.1))
    ]
    (difference,) = find(runs, "test").differences
    assert difference.interval.count == 2
    assert difference.interval.mean == pytest.approx((0.25 + 0.125) / 2)


def test_what_is_compared_with_what() -> None:
    runs = [
        make_run("finetune", 0.1),
        make_run("distill", 0.2, teacher="palm"),
        make_run("dss", 0.3, teacher="palm", rate=1.0),
        make_run("dss", 0.4, teacher="shuffled", rate=1.0),
        make_run("dss_distill", 0.5, teacher="palm", rate=1.0),
        make_run("joint", 0.6, teacher="palm"),
    ]
    pairs = {
        (
            f"{each.cell.series.method} {each.cell.series.teacher}",
            f"{each.reference.series.method} {each.reference.series.teacher}",
        )
        for each in find(runs, "test").differences
    }
    others = {"distill palm", "dss palm", "dss shuffled", "dss_distill palm", "joint palm"}
    assert pairs == {(each, "finetune None") for each in others} | {
        ("dss_distill palm", "distill palm"),
        ("dss palm", "joint palm"),
        ("dss palm", "dss shuffled"),
    }


def test_differences_of_differences_are_of_the_same_seeds() -> None:
    def runs_from(start: str, finetune: list[float], dss: list[float]) -> list[Run]:
        settings = {"INITIAL_CHECKPOINT_PATH": start, "LEARNING_RATE": "0.1"}
        return [
            make_run(method, accuracy, seed, teacher=teacher, settings=settings)
            for method, teacher, accuracies in (
                ("finetune", None, finetune),
                ("dss", "palm", dss),
            )
            for seed, accuracy in enumerate(accuracies)
        ]

    # Gains of dss over finetune: 0.25, 0.125, 0.5 from /tiny; -0.125, 0.125 from random weights.
    findings = find(
        [
            *runs_from("/tiny", [0.25, 0.25, 0.25], [0.5, 0.375, 0.75]),
            *runs_from("None", [0.25, 0.25], [0.125, 0.375]),
        ],
        "test",
    )
    (found,) = findings.differences_of_differences
    assert found.difference.cell.series.setting == "from /tiny"
    assert found.reference.reference.series.setting == "from random parameters"
    # 0.375 and 0.0 more: standard error 0.1875, and Student's t for one degree is 12.7062.
    assert (found.interval.mean, found.interval.count) == (0.1875, 2)
    assert found.interval.half_width == pytest.approx(12.7062 * 0.1875, rel=1e-4)
    (table,) = (each for each in make_tables(findings, []) if "of_differences" in each.name)
    assert [entry.text for entry in table.rows[0]] == [
        "cqa",
        "base (220)",
        "distilling step-by-step (palm)",
        "standard finetuning",
        "from /tiny",
        "from random parameters",
        "100 %",
        "+18.8",
        "-219.5",
        "+257.0",
        "2",
        "contains 0",
    ]


def test_differences_of_differences_change_one_option_at_a_time() -> None:
    runs = [
        make_run(method, 0.5, teacher=teacher, settings={"A": first, "B": second})
        for method, teacher in (("finetune", None), ("dss", "palm"))
        for first in ("10", "9", "11")
        for second in ("None", "x")
    ]
    assert {
        (each.difference.cell.series.setting, each.reference.cell.series.setting)
        for each in find(runs, "test").differences_of_differences
    } == {
        ("A=10, B=None", "A=9, B=None"),
        ("A=11, B=None", "A=9, B=None"),
        ("A=10, B=x", "A=9, B=x"),
        ("A=11, B=x", "A=9, B=x"),
        *((f"A={first}, B=x", f"A={first}, B=None") for first in (9, 10, 11)),
    }


def test_without_an_option_that_differs_there_are_none() -> None:
    runs = [make_run("finetune", 0.5), make_run("dss", 0.6, teacher="palm")]
    findings = find(runs, "test")
    assert findings.differences and findings.differences_of_differences == ()
    # Finetuning was run one way alone: what differs is distilling step-by-step.
    runs += [make_run("dss", 0.7, teacher="palm", settings={"A": "1"})]
    runs += [make_run("dss", 0.7, teacher="palm", settings={"A": "2"})]
    assert find(runs, "test").differences_of_differences == ()


# ---------------------------------- headlines ---------------------------------


def test_the_least_data_is_the_smallest_fraction_that_was_run() -> None:
    runs = [make_run("finetune", 0.5), make_run("finetune", 0.4, fraction=0.25)]
    runs += [
        make_run("dss", accuracy, fraction=fraction, teacher="palm")
        for fraction, accuracy in ((0.1, 0.45), (0.25, 0.5), (0.5, 0.49), (1.0, 0.6))
    ]
    (headline,) = find(runs, "test").data_headlines
    assert headline.reached is not None and headline.reached.fraction == 0.25
    assert headline.measured == (0.1, 0.25, 0.5, 1.0)
    (sentence,) = state_headlines(find(runs, "test"))
    assert "reaches standard finetuning on 100 % of the data (50.00 %) with 25 % of it" in sentence


def test_beats_is_said_only_where_the_interval_excludes_zero() -> None:
    def sentence(*accuracies: float) -> str:
        runs = [make_run("finetune", 0.5, seed) for seed in range(4)]
        runs += [make_run("dss", each, seed, 0.5, "palm") for seed, each in enumerate(accuracies)]
        (found,) = state_headlines(find(runs, "test"))
        return found

    assert "reaches" in sentence(0.4, 0.6, 0.4, 0.7)
    assert "95 % interval -21.4 to +26.4" in sentence(0.4, 0.6, 0.4, 0.7)
    assert "beats" in sentence(0.6, 0.61, 0.62, 0.6)


def test_not_reached_is_said() -> None:
    runs = [make_run("finetune", 0.5), make_run("dss", 0.4, teacher="palm")]
    findings = find(runs, "test")
    assert findings.data_headlines[0].reached is None
    assert "does not reach standard finetuning" in state_headlines(findings)[0]


def test_without_the_whole_data_there_is_no_reference() -> None:
    runs = [make_run("finetune", 0.5, fraction=0.5), make_run("dss", 0.6, teacher="palm")]
    (headline,) = find(runs, "test").data_headlines
    assert headline.reference is None and state_headlines(find(runs, "test")) == []


def test_teacher_labels_are_measured_by_standard_distillation() -> None:
    runs = [make_run("finetune", 0.9), make_run("distill", 0.5, teacher="palm")]
    runs += [make_run("dss_distill", 0.5, teacher="palm", fraction=0.5)]
    (headline,) = find(runs, "test").data_headlines
    assert headline.reference is not None and headline.reference.series.method == "distill"
    assert headline.reached is not None and headline.reached.fraction == 0.5


def test_the_smallest_student_above_the_teacher() -> None:
    line = Run("t", "cqa", words.FEW_SHOT, "palm", scores={"test": Scores(0.5)})
    small, large = Model("small", 60), Model("large", 770)
    runs = [line]
    runs += [make_run("finetune", 0.4, model=each) for each in (small, BASE, large)]
    runs += [
        make_run("dss", accuracy, fraction=fraction, teacher="palm", model=model)
        for model, fraction, accuracy in (
            (small, 1.0, 0.5),  # equal is not above
            (BASE, 0.5, 0.4),
            (BASE, 1.0, 0.51),
            (large, 0.125, 0.6),
            (large, 1.0, 0.7),
        )
    ]
    finetune, dss = find(runs, "test").size_headlines
    assert finetune.passed is None
    assert dss.passed is not None
    assert dss.passed.model == BASE and dss.passed.fraction == 1.0
    assert dss.models == (small, BASE, large)


def test_a_teacher_that_is_told_two_ways_is_named() -> None:
    runs = [
        Run("t", "cqa", words.FEW_SHOT, "palm", scores={"test": Scores(0.5)}),
        Run(
            "a", "cqa", "dss", "palm", BASE, 1.0, scores={"test": Scores(0.6)}, teacher_accuracy=0.4
        ),
    ]
    findings = find(runs, "test")
    (line,) = findings.lines
    assert line.accuracy == 0.5
    assert findings.problems == (
        "a: accuracy 0.4000 of teacher palm, where t has 0.5000, which counts",
    )


# ---------------------------------- the paper ---------------------------------


def test_the_papers_tables_give_its_headlines_back() -> None:
    findings = find(read_results(paper_results(), "paper", "p"), "test")
    assert findings.problems == ()
    of_palm = {
        each.dataset: each.reached.fraction
        for each in findings.data_headlines
        if each.series.method == "dss"
        and each.series.teacher == "palm"
        and each.model == Model("T5-Base", 220_000_000)
        and each.reached is not None
    }
    # 12.5 % of e-SNLI; 75, 25 and 20 % fewer examples on ANLI, CQA and SVAMP.
    assert of_palm == {"esnli": 0.125, "anli1": 0.25, "cqa": 0.75, "svamp": 0.8}
    passed = {
        each.line.dataset: (each.passed.model, each.passed.fraction) if each.passed else None
        for each in findings.size_headlines
        if each.series.method == "dss" and each.series.teacher == "palm"
    }
    assert passed == {
        "esnli": (Model("T5-Base", 220_000_000), 0.001),
        "anli1": (Model("T5-Large", 770_000_000), 0.8),
        "cqa": (Model("T5-XXL", 11_000_000_000), 1.0),
        "svamp": None,  # the paper needed ASDiv's examples for it
    }
    # Table 1 and 2, in percentage points.
    differences = {
        (each.cell.dataset, each.cell.series.teacher, each.reference.series.method): round(
            100 * each.interval.mean, 2
        )
        for each in findings.differences
        if each.cell.series.method == "dss"
    }
    assert differences["esnli", "palm", "finetune"] == 1.13
    assert differences["anli1", "palm", "finetune"] == 6.0
    assert differences["cqa", "gpt_neox", "finetune"] == 1.06
    assert differences["svamp", "palm", "joint"] == 2.5
    said = "\n".join(state_headlines(findings))
    assert (
        "esnli, T5-Base (220 M): distilling step-by-step (palm) beats standard finetuning on "
        "100 % of the data (88.38 %) with 12.5 % of it (88.39 %)."
    ) in said
    assert (
        "cqa: standard finetuning does not pass the teacher palm (few-shot chain of thought, "
        "77.23 %) with any student run."
    ) in said


def test_cost_stands_beside_accuracy() -> None:
    findings = find([make_run("pinto", 0.5, teacher="palm"), make_run("finetune", 0.4)], "test")
    assert words.describe_method(cell_of(findings, "pinto").series.method).asks_teacher
    assert not words.describe_method(cell_of(findings, "finetune").series.method).asks_teacher
