"""Trees of runs in every state: what is found, and what is said of the rest."""

from __future__ import annotations

import json
import os
import pathlib

import pytest
from report_runs import write_results, write_run, write_sweep

from distill_sbs.errors import UserError
from distill_sbs.reporting import reading
from distill_sbs.reporting.reading import read_runs


def test_a_run_of_train(tmp_path: pathlib.Path) -> None:
    metrics = [
        {"step": 10, "loss": 3.0, "label_loss": 2.0, "rationale_loss": 1.0},
        {"step": 20, "loss": 2.5, "label_loss": 1.5, "validation_accuracy": 0.25},
    ]
    write_run(tmp_path / "a b", 0.5, metrics=metrics, random_seed=3, data_fraction=0.25)
    found = read_runs(str(tmp_path))
    assert found.problems == ()
    (run,) = found.runs
    assert run.folder == "a b" and run.is_finished
    assert (run.dataset, run.method, run.teacher) == ("wordproblems", "dss", "template")
    assert (run.fraction, run.rate, run.seed, run.fraction_seed) == (0.25, 1.0, 3, 0)
    assert run.model is not None and run.model.name == "t5_1_1_tiny"
    # Embedding and logits 2 · 640 · 128; two layers of 164,096 and two of 229,760; biases, norms.
    assert run.model.parameters == 163_840 + 2 * 164_096 + 2 * 229_760 + 512
    assert run.cost.most_decoded_tokens is not None and run.cost.answer_flops is not None
    assert run.curves == {
        "label_loss": ((10, 2.0), (20, 1.5)),
        "rationale_loss": ((10, 1.0),),
        "validation_accuracy": ((20, 0.25),),
    }
    assert run.last_step == 20
    command = f"python -m distill_sbs.train --gin_file='{tmp_path}/a b/config.gin'"
    assert run.command == command


def test_the_command_that_sweep_left_is_taken(tmp_path: pathlib.Path) -> None:
    write_run(tmp_path / "a", 0.5)
    (tmp_path / "a" / "command.txt").write_text("python -m distill_sbs.train --gin.X=1\n")
    (run,) = read_runs(str(tmp_path)).runs
    assert run.command == "python -m distill_sbs.train --gin.X=1"


def test_a_run_that_has_not_finished(tmp_path: pathlib.Path) -> None:
    write_run(tmp_path / "a", None, metrics=[{"step": 10, "label_loss": 2.0}], random_seed=4)
    found = read_runs(str(tmp_path))
    (run,) = found.runs
    assert (run.state, run.seed, run.last_step, run.train_steps) == ("not finished", 4, 10, 100)
    assert run.scores == {} and found.problems == ()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "a/results.json: broken JSON (nothing is in it)"),
        (b" \n", "a/results.json: broken JSON (nothing is in it)"),
        (
            b"[]",
            "a/results.json: an empty list, expected an object as `train` writes it, or a list",
        ),
        (b"{}", "a/results.json: it states no mixture, nor dataset and method"),
        (
            b"5",
            "a/results.json: a number found, expected an object as `train` writes it, or a list",
        ),
        (b"null", "a/results.json: null found, expected an object"),
        (b"true", "a/results.json: true found, expected an object"),
        (b"[[]]", "a/results.json: result 1: a list found, expected an object"),
        (b'{"mixture": 5}', "a/results.json: mixture is 5; expected text"),
        (b'{"mixture": ', "a/results.json: broken JSON"),
        (b"\xff\xfe{\x00}\x00", "a/results.json: UTF-16, not UTF-8; save it as UTF-8"),
        (b'{"mixture": "\xe9"}', "a/results.json: not UTF-8"),
        (b"[" * 100_000, "a/results.json: JSON that is nested too deeply"),
        (b'{"seed": ' + b"1" * 10_000 + b"}", "a/results.json: a number that is too long"),
        (b'{"mixture": "\\ud83d"}', "half of a character"),
        (b'{"mixture": "x_dss_y", "data_fraction": 1, "test": {"accuracy": NaN}}', "is nan"),
        (b'{"\x1b[31m": 1}', "a/results.json: broken JSON"),
        (b'"\\u001b[31m"', "text found, expected an object"),
        (b" " * (16 * 2**20 + 1), "more than 16,777,216 bytes"),
    ],
)
def test_broken_results_are_named_in_one_line(
    tmp_path: pathlib.Path, content: bytes, message: str
) -> None:
    write_run(tmp_path / "a", 0.5)
    write_run(tmp_path / "b", 0.25, random_seed=1)
    (tmp_path / "a" / "results.json").write_bytes(content)
    found = read_runs(str(tmp_path))
    (problem,) = found.problems
    assert message in problem and "\n" not in problem and "\x1b" not in problem
    assert {run.folder: run.state for run in found.runs} == {
        "a": "results.json is broken",
        "b": "finished",
    }


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"5", b"null", b"\xff", b'{"mixture":'])
def test_broken_results_alone_are_what_is_named(tmp_path: pathlib.Path, content: bytes) -> None:
    """And no file that is not there."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "results.json").write_bytes(content)
    found = read_runs(str(tmp_path))
    assert found.runs == ()
    (problem,) = found.problems
    assert problem.startswith("a/results.json: ")


@pytest.mark.parametrize("name", ["results.json", "config.gin", "metrics.jsonl", "command.txt"])
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("folder", "a folder, expected a file"),
        ("link", "a link to what is not there"),
        ("pipe", "not a file"),
    ],
)
def test_what_is_no_file(tmp_path: pathlib.Path, name: str, kind: str, message: str) -> None:
    write_run(tmp_path / "a", 0.5, metrics=[{"step": 1, "label_loss": 1.0}])
    write_run(tmp_path / "b", 0.25, random_seed=1)
    path = tmp_path / "a" / name
    path.unlink(missing_ok=True)
    if kind == "folder":
        path.mkdir()
        write_run(path / "inside", 0.5)  # nothing is looked for in it
    elif kind == "link":
        path.symlink_to("nowhere")
    else:
        os.mkfifo(path)
    found = read_runs(str(tmp_path))
    assert sorted(run.folder for run in found.runs) == ["a", "b"]
    assert found.problems == (f"a/{name}: {message}",)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
@pytest.mark.parametrize("name", ["results.json", "config.gin", "metrics.jsonl"])
def test_what_may_not_be_read(tmp_path: pathlib.Path, name: str) -> None:
    write_run(tmp_path / "a", 0.5, metrics=[{"step": 1, "label_loss": 1.0}])
    (tmp_path / "a" / name).chmod(0)
    assert read_runs(str(tmp_path)).problems == (f"a/{name}: Permission denied",)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("", "a/config.gin: it sets no MIXTURE_OR_TASK_NAME, and there is no results.json"),
        ("X = 1\n", "a/config.gin: it sets no MIXTURE_OR_TASK_NAME, and there is no results.json"),
        ("import os\n", "a/config.gin: "),
    ],
)
def test_no_folder_is_left_out_in_silence(
    tmp_path: pathlib.Path, config: str, message: str
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.gin").write_text(config)
    (tmp_path / "a" / "metrics.jsonl").write_text('{"step": 1, "label_loss": 1.0}\n')
    found = read_runs(str(tmp_path))
    (problem,) = found.problems
    assert found.runs == () and problem.startswith(message)


def test_a_torn_line_of_a_killed_run(tmp_path: pathlib.Path) -> None:
    write_run(tmp_path / "a", None)
    (tmp_path / "a" / "metrics.jsonl").write_text('{"step": 1, "label_loss": 1.0}\n{"step": 2, "l')
    found = read_runs(str(tmp_path))
    (run,) = found.runs
    (problem,) = found.problems
    assert (run.state, run.last_step) == ("not finished", 1)
    assert problem == (
        "a/metrics.jsonl: line 2: broken JSON (Unterminated string starting at column 13); "
        "the other lines are read"
    )


def test_other_broken_files_are_named_and_the_results_stay(tmp_path: pathlib.Path) -> None:
    write_run(tmp_path / "a", 0.5)
    (tmp_path / "a" / "config.gin").write_text("import os\n")
    (tmp_path / "a" / "metrics.jsonl").write_bytes(b'{"step": 1, "label_loss": NaN}\n\xff\n')
    (tmp_path / "a" / "command.txt").write_bytes(b"x" * 30_000)
    found = read_runs(str(tmp_path))
    (run,) = found.runs
    assert run.is_finished and run.model is None and run.curves == {}
    config, metrics, command = found.problems
    assert config.startswith("a/config.gin: ") and "refused" in config
    assert metrics.startswith("a/metrics.jsonl: line 1: its label_loss is nan")
    assert metrics.endswith("and 1 more; no line could be read")
    assert command.startswith("a/command.txt: ") and "more than 20,000 bytes" in command


def test_what_nobody_knows_is_named(tmp_path: pathlib.Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    found = read_runs(str(tmp_path))
    assert found.runs == ()
    assert found.problems == ("metrics.jsonl: no config.gin beside it says of what run it is",)


def test_folders_that_are_no_runs_are_passed(tmp_path: pathlib.Path) -> None:
    write_run(tmp_path / "a", 0.5)
    inside = tmp_path / "a" / "checkpoints" / "100"
    write_results(inside, {"not": "a result"})
    write_results(tmp_path / ".hidden", {"not": "a result"})
    (tmp_path / "again").symlink_to(tmp_path, target_is_directory=True)  # round and round
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing")
    found = read_runs(str(tmp_path))
    assert [run.folder for run in found.runs] == ["a"] and found.problems == ()


def test_a_link_to_runs_elsewhere_is_followed(tmp_path: pathlib.Path) -> None:
    write_run(tmp_path / "elsewhere" / "a", 0.5)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (run,) = read_runs(str(tmp_path / "runs")).runs
    assert run.folder == "linked/a"


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path: pathlib.Path) -> None:
    os.mkfifo(tmp_path / "results.json")
    found = read_runs(str(tmp_path))
    assert found.runs == () and "not a file" in found.problems[0]


def test_names_of_folders_that_are_no_text(tmp_path: pathlib.Path) -> None:
    folder = os.path.join(os.fsencode(tmp_path), b"\xff\x1b[31m\n|")
    os.mkdir(folder)
    with open(os.path.join(folder, b"results.json"), "wb") as file:
        file.write(b"{")
    (problem,) = read_runs(str(tmp_path)).problems
    assert problem.startswith(r"\xff\x1b[31m |/results.json: broken JSON")


def test_long_curves_are_thinned_and_keep_their_end(tmp_path: pathlib.Path) -> None:
    write_run(tmp_path, 0.5, metrics=[{"step": s, "label_loss": 1.0} for s in range(1, 1003)])
    (run,) = read_runs(str(tmp_path)).runs
    curve = run.curves["label_loss"]
    assert len(curve) == 334 and curve[-1] == (1002, 1.0)


def test_the_order_does_not_depend_on_the_folders(tmp_path: pathlib.Path) -> None:
    accuracies = {"wordproblems_finetune": {1.0: [0.1, 0.2], 0.5: [0.1, 0.2]}}
    write_sweep(tmp_path, accuracies)
    places = [run.folder for run in read_runs(str(tmp_path)).runs]
    assert places == [
        f"wordproblems_finetune/fraction_{fraction}/seed_{seed}"
        for fraction in ("0.5", "1")
        for seed in (0, 1)
    ]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "does not exist; expected a folder in which runs lie"),
        (lambda folder: folder.write_text("x"), "is a file; expected a folder"),
        (lambda folder: folder.mkdir(), "holds no run: neither results.json nor config.gin nor"),
    ],
)
def test_where_there_is_nothing(tmp_path: pathlib.Path, make: object, message: str) -> None:
    assert callable(make)
    make(tmp_path / "runs")
    with pytest.raises(UserError, match=message):
        read_runs(str(tmp_path / "runs"))


def test_buckets_are_to_be_copied_first() -> None:
    with pytest.raises(UserError, match="gcloud storage rsync .* gs://bucket/runs runs"):
        read_runs("gs://bucket/runs")


def test_too_many_runs_are_refused(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MOST_RUNS", 10)
    result = {"mixture": "a_finetune", "data_fraction": 1, "test": {"accuracy": 0.5}}
    write_results(tmp_path, [result] * 11)
    with pytest.raises(UserError, match="holds more than 10 runs; give a folder with fewer"):
        read_runs(str(tmp_path))


def test_a_broken_student_leaves_the_results(tmp_path: pathlib.Path) -> None:
    write_run(tmp_path, 0.5)
    text = (tmp_path / "config.gin").read_text()
    changed = text.replace("STUDENT_OVERRIDES = {", "STUDENT_OVERRIDES = {'no_field': 1, ")
    assert changed != text
    (tmp_path / "config.gin").write_text(changed)
    (run,) = read_runs(str(tmp_path)).runs
    assert run.model is None and run.scores["test"].accuracy == 0.5
    assert json.loads((tmp_path / "results.json").read_text())["seed"] == run.seed
