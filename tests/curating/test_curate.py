"""curate: the entry point, from records to a file that a run takes."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator

import pytest

from distill_sbs import curate
from distill_sbs.curating import rules
from distill_sbs.data import metrics, registration, settings
from distill_sbs.data.dataset import DatasetSpec, Example, RawSplit, TeacherOutput
from distill_sbs.data.records import build
from distill_sbs.data.selection import read_selection

pytestmark = pytest.mark.slow  # as a whole: many small tests

COLOURS = ("red", "green", "blue")


def read_marbles(_: object, split: str) -> RawSplit:
    """60 in training: every sixth label wrong, the last unparsed, one that is tested on too."""

    def examples() -> Iterator[Example]:
        for number in range(60 if split == "train" else 5):
            colour = COLOURS[number % 3]
            said = "white" if number % 6 == 5 else colour
            text = f"What colour has {split} marble {number}?"
            if number == 4:
                text = "What colour has the marble of all?"
            rationale = f"The marble {number} is seen in the light, and there it is {said}."
            output = TeacherOutput(said, rationale) if number != 58 else TeacherOutput(None, None)
            yield Example(f"{split}-{number}", text, colour, {"gpt": output})

    return RawSplit(60 if split == "train" else 5, examples)


@pytest.fixture
def data_dir(tmp_path: pathlib.Path) -> Iterator[str]:
    spec = DatasetSpec(
        "marbles", read_marbles, metrics.answers_match, ("gpt",), needs_source_dir=False
    )
    if "marbles" not in registration.DATASETS:
        registration.register_dataset(spec)
    build.prepare_dataset(spec, None, str(tmp_path / "data"))
    yield str(tmp_path / "data")
    settings.provide(settings.DataSettings)


def run(*flags: str) -> int:
    return curate.main(["curate", "--dataset=marbles", "--teacher=gpt", *flags])


def test_from_records_to_a_selection(
    data_dir: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, dropped = tmp_path / "chosen.json", tmp_path / "dropped.jsonl"
    flags = (f"--data_dir={data_dir}", f"--output={output}", f"--dropped={dropped}")
    assert run(*flags, "--examples=30") == 0
    printed = capsys.readouterr().out
    assert "chosen: 30 examples, mean score 1.00" in printed
    assert f"--gin.SELECTION=\"'{output}'\"" in printed
    # 15 epochs of ⌈30 / 32⌉ = 1 step.
    assert "--gin.TRAIN_STEPS=15 --gin.EVAL_PERIOD=1" in printed
    chosen = read_selection(str(output)).examples["marbles"]
    assert len(chosen) == 30
    assert not {f"train-{number}" for number in range(5, 60, 6)} & set(chosen)  # wrong labels
    content = json.loads(output.read_text())
    assert content["dropped"] == {
        **dict.fromkeys([*rules.hard_rules(rules.Limits()), *rules.RULES_OVER_MANY], 0),
        "parsed": 1,
        "label_agrees": 10,
        "not_in_evaluation": 1,
    }
    assert content["pool"] == 60 == content["passed"] + sum(content["dropped"].values())
    assert sum(each["chosen"] for each in content["strata"].values()) == 30
    rows = [json.loads(line) for line in dropped.read_text().splitlines()]
    assert len(rows) == 12
    assert rows[0]["rule"] == "label_agrees"
    assert rows[0]["reason"] == "the teacher says white, gold is blue"
    before = output.read_bytes()
    assert run(*flags, "--examples=30") == 0
    assert output.read_bytes() == before


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--examples=49"], "--examples=49: 48 of 60 examples pass the rules (dropped by label_"),
        (["--examples=0"], "--examples=0: expected how many to choose, 1 or more"),
        (["--examples=5", "--teacher=gtp"], "--teacher=gtp: the training split of marbles in "),
        (["--examples=5", "--dataset=marble"], "unknown dataset 'marble'; did you mean: marbles"),
        (["--examples=5", "--dataset=marbles,marbles"], "expected names, each once"),
        (["--examples=5", "--strata=size"], "--strata=size: 'size' is none of dataset, label"),
        (["--examples=5", "--temperature=0"], "--temperature=0: expected a number above 0"),
        (["--examples=5", "--rationale_words=3"], "--rationale_words=3: expected two whole num"),
        (["--examples=5", "--without_rules=parse"], "did you mean parsed?"),
        (["--examples=many"], "--examples"),
        (["--examples=5", "--mode=best"], "--mode"),
        (["--examples=5", "--output="], "--output"),
    ],
)
def test_what_cannot_work_is_one_line_and_nothing_is_written(
    data_dir: str,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    told: str,
) -> None:
    output = tmp_path / "chosen.json"
    assert run(f"--data_dir={data_dir}", f"--output={output}", *flags) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert told in error
    assert error.count("\n") == 1
    assert not output.exists()


def test_data_that_are_not_prepared(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registration.load_task_files()
    flags = (f"--data_dir={tmp_path}", f"--output={tmp_path / 'x.json'}", "--examples=5")
    assert curate.main(["curate", "--dataset=cqa", "--teacher=palm", *flags]) == 2
    assert "python -m distill_sbs.prepare --dataset=cqa" in capsys.readouterr().err


RULES = """
from distill_sbs.curating import rules

@rules.register_rule
def {name}(candidate):
    {body}

@rules.register_stratum
def {name}_parity(candidate):
    return "even" if int(candidate.id.split("-")[1]) % 2 == 0 else "odd"
"""


def write_rules(tmp_path: pathlib.Path, name: str, body: str) -> str:
    path = tmp_path / f"{name}.py"
    path.write_text(RULES.format(name=name, body=body))
    return f"--task_file={path}"


@pytest.fixture
def forget_rules() -> Iterator[None]:
    yield
    for each in (rules._OWN_RULES, rules._OWN_STRATA):
        each.clear()


@pytest.mark.usefixtures("forget_rules")
def test_a_rule_and_a_stratum_of_a_task_file(
    data_dir: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_rules(
        tmp_path, "no_red", 'return "it is red" if "red" in candidate.rationale else None'
    )
    output = tmp_path / "chosen.json"
    flags = (f"--data_dir={data_dir}", f"--output={output}", file, "--strata=no_red_parity")
    assert run(*flags, "--examples=20") == 0
    content = json.loads(output.read_text())
    assert content["dropped"]["no_red"] == 20
    assert content["strata"] == {
        "even": {"pool": 30, "passed": 18, "chosen": 11},
        "odd": {"pool": 30, "passed": 10, "chosen": 9},
    }
    assert "it is red" in capsys.readouterr().out


@pytest.mark.usefixtures("forget_rules")
@pytest.mark.parametrize(
    ("name", "body", "told"),
    [
        ("raises", "return 1 / len(candidate.input[:0])", "ZeroDivisionError: division by zero"),
        ("says_yes", "return True", "the rule says_yes gave True for marbles id 'train-0'"),
    ],
)
def test_a_rule_that_fails_names_file_and_line(
    data_dir: str,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    body: str,
    told: str,
) -> None:
    file = write_rules(tmp_path, name, body)
    output = tmp_path / "chosen.json"
    assert run(f"--data_dir={data_dir}", f"--output={output}", "--examples=5", file) == 2
    error = capsys.readouterr().err
    assert told in error
    if name == "raises":
        assert f"{tmp_path / 'raises.py'}" in error
        assert "(line 6)" in error
    assert not output.exists()
