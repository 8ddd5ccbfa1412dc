"""allocate, from options to files: budgets, resuming to the bit, replay, and what cannot work."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
from typing import Any

import pytest
from quickstart_runs import assert_same_parameters

from distill_sbs.allocate import allocate, check_allocation
from distill_sbs.allocating.history import HISTORY_FILE, read_history
from distill_sbs.checkpoint import steps
from distill_sbs.errors import UserError
from distill_sbs.train import train

ROOT = pathlib.Path(__file__).parent.parent.parent


@pytest.mark.slow
def test_a_budget_is_spent_exactly_and_a_history_replays(make_config, tmp_path) -> None:
    summary = allocate(make_config())
    history = read_history(str(tmp_path / "run" / HISTORY_FILE))
    used = {"generation": 0, "training": 0}
    for each in history.intervals:
        used["generation"] += each.generated
        used["training"] += each.trained
        assert each.trained == sum(each.tokens) <= 1000
    assert summary["used"] == used
    assert used["generation"] <= 3200 and 4800 - 1000 < used["training"] <= 4800
    # Every parsed rationale is "rationale N" and an end token: 11 or 12 bytes, bought once.
    assert used["generation"] <= sum(len(f"rationale {i}") + 1 for i in range(40) if i % 10 != 9)
    assert history.intervals[-1].utility is not None
    assert json.loads((tmp_path / "run" / "allocation.json").read_text()) == summary
    # The same command again changes nothing, and a replay takes the same mixtures.
    assert allocate(make_config()) == summary
    replay = str(tmp_path / "run" / HISTORY_FILE)
    allocate(make_config(model_dir=str(tmp_path / "replayed"), replay_history=replay))
    again = read_history(str(tmp_path / "replayed" / HISTORY_FILE))
    assert [each.mixture for each in again.intervals] == [
        each.mixture for each in history.intervals
    ]
    assert_same_parameters(tmp_path / "run", tmp_path / "replayed")


@pytest.mark.campaign
@pytest.mark.slow
def test_killed_anywhere_ends_the_same(make_config, tmp_path) -> None:
    """SIGKILL in the middle of an interval, and between two; then the same command to its end."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    allocate(make_config(model_dir=str(whole)))
    config = make_config(model_dir=str(parts), checkpoint_period=2)
    (tmp_path / "run.gin").write_text(config.to_gin())
    (tmp_path / "tasks.py").write_text(TINY_TASKS)
    command = [sys.executable, "-m", "distill_sbs.allocate", f"--gin_file={tmp_path / 'run.gin'}"]
    command.append(f"--task_file={tmp_path / 'tasks.py'}")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    for wanted in (3, 9):  # steps seen before the signal
        process = subprocess.Popen(
            command, env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("step ") and int(line.split()[1].split("/")[0]) >= wanted:
                break
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"continuing {parts} from step" in done.stderr
    assert (whole / HISTORY_FILE).read_bytes() == (parts / HISTORY_FILE).read_bytes()
    assert (whole / "allocation.json").read_text() == (parts / "allocation.json").read_text()
    assert_same_parameters(whole, parts)


TINY_TASKS = """
from distill_sbs.data import metrics, registration
from distill_sbs.data.dataset import DatasetSpec

registration.register_dataset(
    DatasetSpec("tiny", None, metrics.answers_match, ("gpt",), needs_source_dir=True)
)
"""


@pytest.mark.slow
def test_a_run_of_another_program_or_budget_is_left_alone(make_config, tmp_path) -> None:
    allocate(make_config(budget_tokens=2000))
    with pytest.raises(UserError, match="BUDGET_TOKENS: 2000 there, 3000 now"):
        check_allocation(make_config(budget_tokens=3000))
    card = tmp_path / "card.toml"
    card.write_text('capability = "label"')
    with pytest.raises(UserError, match="is the history of another run .requirement"):
        check_allocation(make_config(budget_tokens=2000, task_card=str(card)))
    config = make_config(budget_tokens=2000)
    names = {each.macro.lower() for each in type(config).options()}
    from distill_sbs.config import TrainConfig

    values = {name.lower(): value for name, value in config.values().items()}
    plain = {each.macro.lower() for each in TrainConfig.options()}
    assert plain < names
    with pytest.raises(UserError, match="holds a run of allocate, and this is a run of train"):
        train(TrainConfig.from_options(**{name: values[name] for name in plain}))
    before = steps.list_steps(str(tmp_path / "run"))
    assert before == steps.list_steps(str(tmp_path / "run")) != []


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"budget_tokens": 0}, "BUDGET_TOKENS=0; expected a whole number ≥ 1"),
        ({"generation_tokens": 8000}, "leaves nothing of BUDGET_TOKENS=8000 to train with"),
        ({"policy": "linucv"}, "POLICY='linucv' is unknown; did you mean linucb"),
        ({"capabilities": {}}, "CAPABILITIES={} names none"),
        ({"capabilities": {"a": 3}}, "'a' is 3; expected a dict"),
        ({"mixture_grid": [0.5, 1.0]}, "1.0 is in it; expected numbers above 0 and below 1"),
        ({"mutual_information_weight": 0.1}, "set it to 0.0"),
        ({"shared_encoder": True}, "which an allocation draws apart; set it to False"),
    ],
)
def test_options_that_cannot_be(make_config, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as error:
        make_config(**changes)
    assert told in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"capabilities": {"a": "tiny_lable"}},
            "CAPABILITIES['a']='tiny_lable' is no registered task or mixture; did you mean",
        ),
        ({"capabilities": {"a": "tiny_pretrain"}}, "is text without labels"),
        ({"task_card": "ZERO"}, "the requirement vector sums to 0"),
        ({"task_card": "/nowhere/card.toml"}, "no such file"),
        ({"replay_history": "/nowhere/history.jsonl"}, "no such file"),
    ],
)
def test_what_cannot_work_is_told_before_anything_starts(
    make_config, tmp_path: pathlib.Path, changes: dict[str, Any], told: str
) -> None:
    zero = tmp_path / "zero.toml"
    zero.write_text("[requirement]\nlabel = 0.0\n")
    changes = {name: str(zero) if value == "ZERO" else value for name, value in changes.items()}
    with pytest.raises(UserError) as error:
        check_allocation(make_config(**changes))
    assert told in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_capability_without_examples(make_config, tmp_path: pathlib.Path) -> None:
    """The prepared records hold no output of this teacher."""
    with pytest.raises(UserError) as error:
        allocate(make_config(capabilities={"a": "tiny_label", "b": "empty_label"}))
    assert "CAPABILITIES['b']: task 'empty_label' has no example in split" in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.fixture(autouse=True)
def empty_dataset(tiny_data: pathlib.Path) -> None:
    """A dataset `empty` whose rows have no label."""
    from distill_sbs.data import metrics, registration
    from distill_sbs.data.dataset import DatasetSpec, Example, RawSplit
    from distill_sbs.data.records import build

    if "empty" in registration.DATASETS:
        return

    def read(_: object, split: str) -> RawSplit:
        return RawSplit(2, lambda: (Example(f"{split}-{i}", f"q {i}", None, {}) for i in range(2)))

    spec = DatasetSpec("empty", read, metrics.answers_match, (), needs_source_dir=False)
    registration.register_dataset(spec)
    build.prepare_dataset(spec, None, str(tiny_data), None)
