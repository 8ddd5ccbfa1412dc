"""infer, evaluate: what they read, refuse, write, and say of outputs that say nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import pathlib
import re
import resource
import shutil
import signal
import subprocess
import sys
from typing import Any

import model_examples
import numpy as np
import pytest

from distill_sbs import evaluate, infer
from distill_sbs.config import TrainConfig
from distill_sbs.inference.outputs import explain_outputs
from distill_sbs.inference.student import Student
from distill_sbs.train import train

ROOT = pathlib.Path(__file__).parent.parent.parent


def train_tiny(model_dir: pathlib.Path, data_dir: pathlib.Path) -> dict[str, Any]:
    """Two steps: enough to answer, too few to say anything."""
    return train(
        TrainConfig.from_options(
            model_dir=str(model_dir),
            mixture_or_task_name="tiny_dss_gpt",
            task_feature_lengths={"inputs": 32, "targets": 16, "task_ids": 16},
            train_steps=2,
            batch_size=8,
            initial_checkpoint_path=None,
            vocabulary_file="bytes",
            data_dir=str(data_dir),
            student="t5_1_1_tiny",
            student_overrides={"vocab_size": 640, **model_examples.ONE_LAYER},
            learning_rate=1e-2,
            eval_period=2,
            log_period=1,
            max_decode_tokens=8,
        )
    )


@dataclasses.dataclass
class Trained:
    """A run, and what was shown on both streams by it and by the same command once more."""

    model_dir: pathlib.Path
    first: tuple[str, str]
    again: tuple[str, str]


@pytest.fixture(scope="module")
def trained(tiny_data: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run in a folder of hostile name: markup that ends, that vanishes, a cleared screen.

    MODEL_DIR may not hold what nobody can type, but a folder can be renamed.
    """
    folder = tmp_path_factory.mktemp("runs") / "[/x]" / "[red]"
    shown = []
    for _ in range(2):
        out, error = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
            train_tiny(folder, tiny_data)
        shown.append((out.getvalue(), error.getvalue()))
    return Trained(folder.rename(folder.with_name("[red]\x1b[2J\x9b2J")), *shown)


@pytest.fixture
def model_dir(trained: Trained) -> pathlib.Path:
    """The run's folder."""
    return trained.model_dir


def run_infer(model_dir: pathlib.Path, tmp_path: pathlib.Path, content: bytes, *flags: str) -> int:
    (tmp_path / "in.jsonl").write_bytes(content)
    arguments = [f"--checkpoint={model_dir}", f"--input={tmp_path / 'in.jsonl'}"]
    return infer.main(["infer", *arguments, f"--output={tmp_path / 'out.jsonl'}", *flags])


# ---------------------------------- what it needs ------------------------------


@pytest.mark.slow
def test_runs_where_tensorflow_is_not_installed(
    model_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "in.jsonl").write_text('{"input": "question 1"}\n')
    arguments = ["infer", f"--checkpoint={model_dir}", f"--input={tmp_path / 'in.jsonl'}"]
    arguments.append(f"--output={tmp_path / 'out.jsonl'}")
    program = (
        "import sys\n"
        "for name in ('tensorflow', 'tensorflow_text', 'seqio', 'clu'): sys.modules[name] = None\n"
        "from distill_sbs import infer\n"
        f"sys.exit(infer.main({arguments!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out.jsonl").read_text()).keys() == {"input", "prediction"}


# ---------------------------------- what is read and written -------------------


@pytest.mark.slow
@pytest.mark.parametrize("task", ["label", "rationale"])
def test_lines_pass_through_as_they_were_typed(
    model_dir: pathlib.Path, tmp_path: pathlib.Path, task: str
) -> None:
    lines = [
        '{"id": 1, "input": "question 1", "score": 1.10, "large": 1e400, "ids": [ 1,2 ]}',
        '{"input": "one\u2028two\u2029three\u0085four \\ud83d\\ude00", "note": "\\u00e9"}',
        '{"prediction": "of before", "input": "question 2", "id": 123456789012345678901234567890}',
    ]
    content = b"\xef\xbb\xbf" + "\n\n".join(lines).encode() + b"\r\n"
    assert run_infer(model_dir, tmp_path, content, f"--task={task}") == 0
    written = (tmp_path / "out.jsonl").read_text(encoding="utf-8").removesuffix("\n").split("\n")
    kept = [*lines[:2], lines[2].replace('"prediction": "of before", ', "")]
    for line, before in zip(written, kept, strict=True):
        assert line.startswith(before.removesuffix("}") + ', "prediction": "')
        assert isinstance(json.loads(line)["prediction"], str)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"input": "caf\xe9"}', "in.jsonl, line 2: not UTF-8"),
        (rb'{"input": "\ud83d"}', "in.jsonl, line 2: '\\\\ud83d' is half of a character"),
        (rb'{"input": "x", "more": {"\udc00": 1}}', "line 2: '\\\\udc00' is half of a character"),
        (b'{"input": "x", "more": ' + b"[" * 200_000, "line 2: JSON that is nested too deeply"),
        (b'{"input": "x", "id": ' + b"9" * 5_000 + b"}", "line 2: a number that is too long"),
        (b'{"input": "x"', "line 2: broken JSON"),
        (b"[1]", "line 2: a list found, expected one JSON object a line"),
        (b'{"input": 5}', 'line 2: expected an object with a text "input"'),
    ],
)
def test_a_bad_line_is_refused_before_any_work(
    tmp_path: pathlib.Path, capsys, line: bytes, message: str
) -> None:
    """The checkpoint does not exist: it would be told first, were it looked for."""
    content = b'{"input": "x"}\n' + line + b"\n"
    assert run_infer(pathlib.Path("/nowhere"), tmp_path, content) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    assert message.replace("\\\\", "\\") in said
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.jsonl", "missing.jsonl: no such file"),
        ("empty.jsonl", "empty.jsonl holds no lines"),
        ("folder", "folder: Is a directory; a folder stands where a file is needed"),
        ("empty.jsonl/in", "empty.jsonl/in: Not a directory"),
    ],
)
def test_an_input_that_is_none(tmp_path: pathlib.Path, capsys, name: str, message: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.jsonl").write_text("\n")
    arguments = [f"--input={tmp_path / name}", f"--output={tmp_path / 'out.jsonl'}"]
    assert infer.main(["infer", "--checkpoint=/nowhere", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    assert message in said


@pytest.mark.parametrize("entry_point", [infer, evaluate])
def test_an_output_that_cannot_be_written_is_refused_before_any_work(
    another_users_folder: pathlib.Path, tmp_path: pathlib.Path, capsys, entry_point
) -> None:
    os.seteuid(0)
    questions = tmp_path / "in.jsonl"
    questions.write_text('{"input": "x"}\n')
    os.seteuid(65534)
    for output, message in (
        (another_users_folder / "out.jsonl", "Permission denied"),
        (another_users_folder / "deep" / "out.jsonl", "Permission denied"),
        (tmp_path, "Is a directory"),
        (questions / "out.jsonl", "Not a directory"),
    ):
        arguments = ["--checkpoint=/nowhere", f"--output={output}"]
        arguments += [f"--input={questions}"] if entry_point is infer else []
        assert entry_point.main(["program", *arguments]) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ") and message in said and said.count("\n") == 1


@pytest.mark.slow
def test_what_stood_in_the_output_stays_where_writing_fails(
    model_dir: pathlib.Path, tmp_path: pathlib.Path, capsys
) -> None:
    (tmp_path / "out.jsonl").write_text("before")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    line = json.dumps({"input": "question", "more": "x" * 200_000})
    (tmp_path / "in.jsonl").write_text(line)
    arguments = [f"--checkpoint={model_dir}", f"--input={tmp_path / 'in.jsonl'}"]
    capsys.readouterr()
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        status = infer.main(["infer", *arguments, f"--output={tmp_path / 'out.jsonl'}"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert status == 2
    said = capsys.readouterr().err
    assert "File too large; the file grew past what that disk or its limits allow" in said
    assert (tmp_path / "out.jsonl").read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


@pytest.mark.slow
def test_evaluate_scores_the_labels_of_training(
    model_dir: pathlib.Path,
    tiny_data: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [f"--checkpoint={model_dir}", f"--data_dir={tiny_data}", "--score"]
    output = tmp_path / "said.jsonl"
    assert evaluate.main(["evaluate", *arguments, f"--output={output}"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["labels"] == sorted(f"yes {number}" for number in range(40))
    said = [json.loads(line)["prediction"] for line in output.read_text().splitlines()]
    assert set(said) <= set(told["labels"])
    right = sum(answer == f"yes {number}" for number, answer in enumerate(said))
    assert told["accuracy"] == right / 8
    # Each label by itself has the score that it has among the others.
    student = Student.load(str(model_dir))
    tokens = [student.tokens("question 0", "label")]
    together = student.score(tokens, told["labels"])[0]
    assert said[0] == told["labels"][int(np.argmax(together))]
    for place in (0, 39):
        alone = float(student.score(tokens, [told["labels"][place]])[0, 0])
        assert together[place] == pytest.approx(alone, rel=1e-5)
    assert evaluate.main(["evaluate", *arguments, "--mixture_or_task=tiny_joint_gpt"]) == 2
    assert "--score: the answers of tiny_joint_gpt are no labels alone" in capsys.readouterr().err


@pytest.mark.slow
def test_labels_alone_are_decoded(
    model_dir: pathlib.Path,
    tiny_data: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [f"--checkpoint={model_dir}", f"--data_dir={tiny_data}", "--constrain_labels"]
    output = tmp_path / "said.jsonl"
    assert evaluate.main(["evaluate", *arguments, f"--output={output}"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["labels"] == sorted(f"yes {number}" for number in range(40))
    said = [json.loads(line)["prediction"] for line in output.read_text().splitlines()]
    assert len(said) == 8 and set(said) <= set(told["labels"])
    assert told["accuracy"] == sum(each == f"yes {n}" for n, each in enumerate(said)) / 8
    for wrong, message in (
        ("--score", "--score and --constrain_labels are two ways to choose"),
        ("--beam_size=2", "--beam_size=2 has no effect with --constrain_labels"),
        ("--mixture_or_task=tiny_joint_gpt", "--constrain_labels: the answers of tiny_joint_gpt"),
    ):
        assert evaluate.main(["evaluate", *arguments, wrong]) == 2
        assert message in capsys.readouterr().err

    lines, answers = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines.write_text("".join(f'{{"input": "question {number}"}}\n' for number in range(8)))
    asked = [f"--checkpoint={model_dir}", f"--input={lines}", f"--output={answers}"]
    labels = [f"--label={each}" for each in told["labels"]]
    assert infer.main(["infer", *asked, *labels]) == 0
    # The same labels, the same student, the same inputs.
    assert [json.loads(line)["prediction"] for line in answers.read_text().splitlines()] == said
    answers.unlink()
    for wrongs, message in (
        (["--label=a", "--label=b", "--task=rationale"], "only labels are chosen among labels"),
        (["--label=a", "--label=b", "--beam_size=4"], "--beam_size=4 has no effect with --label"),
        (["--label=a", "--label= "], "--label= is empty, expected a label such as"),
        (["--label=b", "--label=a", "--label=b"], "labels 'b' and 'b' are the same tokens"),
    ):
        assert infer.main(["infer", *asked, *wrongs]) == 2
        assert message in capsys.readouterr().err
        assert not answers.exists()


@pytest.mark.slow
def test_evaluate_writes_what_was_said(
    model_dir: pathlib.Path, tiny_data: pathlib.Path, tmp_path: pathlib.Path, capsys
) -> None:
    output = tmp_path / "answers" / "out.jsonl"
    data_dir = shutil.copytree(tiny_data, tmp_path / "[d]*?")
    arguments = [f"--checkpoint={model_dir}", f"--data_dir={data_dir}", f"--output={output}"]
    page = tmp_path / "page.html"
    assert evaluate.main(["evaluate", *arguments, f"--page={page}"]) == 0
    shown = capsys.readouterr()
    said = page.read_text()
    # The run's mixture has a teacher, whose rationales the records hold of this split too.
    assert "What is taken for what" in said and "the rationale of gpt" in said
    assert '<td class="prose">question 7</td>' in said
    assert '<td class="prose">rationale 7</td>' in said
    result = json.loads(shown.out)
    assert result["checkpoint"] == str(model_dir / "checkpoints" / "2")
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["label"] for row in rows] == [f"yes {i}" for i in range(8)]
    assert result["examples"] == 8
    assert result["accuracy"] == sum(row["label"] == row["prediction"] for row in rows) / 8


# ---------------------------------- what is said -------------------------------

OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
SHOWN_NAME = r"[/x]/[red]\x1b[2J\x9b2J"


@pytest.mark.slow
def test_a_hostile_folder_is_shown_as_it_is(
    trained: Trained, tmp_path: pathlib.Path, capsys
) -> None:
    """Training, answering, and refusing."""
    model_dir = trained.model_dir
    assert "[/x]/[red]\n" in trained.first[0] and "[/x]/[red]\n" in trained.again[0]
    assert "[/x]/[red] from step 2\n" in trained.again[1]
    assert run_infer(model_dir, tmp_path, b'{"input": "question 1"}') == 0
    answered = capsys.readouterr()
    assert f"{SHOWN_NAME}/checkpoints/2 written to" in answered.out
    assert evaluate.main(["evaluate", f"--checkpoint={model_dir}", "--split=\x1b[2Jtset"]) == 2
    refused = capsys.readouterr()
    assert r"--split=\x1b[2Jtset" in refused.err
    assert infer.main(["infer", f"--checkpoint={model_dir}/no", f"--input={__file__}"]) == 2
    missing = capsys.readouterr()
    for out, error in (trained.first, trained.again, answered, refused, missing):
        assert OBEYED.search(out + error) is None


@pytest.mark.slow
def test_a_rationale_is_not_cut_where_a_label_is(model_dir: pathlib.Path) -> None:
    """MAX_DECODE_TOKENS is the label's length, 8 here; rationales were up to 16 in training."""
    from distill_sbs.inference.student import Student

    student = Student.load(str(model_dir))
    lengths = [len(student.decode(["question 1"], task)[0]) for task in ("label", "rationale")]
    assert lengths == [8, 16]
    assert student.description.longest_output("rationale") == 16
    longer = dataclasses.replace(student.description, max_decode_tokens=20)
    assert longer.longest_output("label") == longer.longest_output("rationale") == 20


END, A = 1, 100


@pytest.mark.parametrize(
    ("outputs", "texts", "said"),
    [
        ([[A, END, 0], [A, A, END]], ["a", "aa"], None),
        ([[A, END, 0], [A, END, 0], [A, A, A]], ["a", "a", "aaa"], None),
        (
            [[A, A, A], [A, A, A]],
            ["aaa", "aaa"],
            "all 2 outputs are cut off: no end within 3 tokens",
        ),
        ([[A, A, A], [A, END, 0]], ["aaa", "a"], "1 of 2 outputs are cut off"),
        ([[0, 0, 0]], [""], "the only output is cut off"),
        ([[0, 0, 0]] * 2, ["", ""], "3 tokens, and all 2 outputs are empty; train"),
        (
            [[END, 0, 0]] * 3,
            ["", "", ""],
            "all 3 outputs are empty: the student ends before it has",
        ),
        ([[A, END, 0]], [" "], "the only output is empty: the student ends before"),
        ([], [], None),
    ],
)
def test_outputs_that_say_nothing_are_explained(
    outputs: list[list[int]], texts: list[str], said: str | None
) -> None:
    found = explain_outputs([np.array(each) for each in outputs], texts, 3)
    if said is None:
        assert found is None
    else:
        assert found is not None and said in found and "\n" not in found


@pytest.mark.slow
def test_the_three_programs_say_why_nothing_is_right(
    trained: Trained, tiny_data: pathlib.Path, tmp_path: pathlib.Path, capsys
) -> None:
    """Two steps teach nobody to end."""
    model_dir = trained.model_dir
    assert run_infer(model_dir, tmp_path, b'{"input": "question 1"}') == 0
    answered = capsys.readouterr().err
    evaluate.main(["evaluate", f"--checkpoint={model_dir}", f"--data_dir={tiny_data}"])
    evaluated = capsys.readouterr().err
    assert "note: all 8 outputs are " in trained.first[0]
    assert "note: the only output is " in answered
    assert "note: all 8 outputs are " in evaluated


# ---------------------------------- Ctrl-C -------------------------------------


@pytest.mark.campaign
@pytest.mark.slow
@pytest.mark.parametrize("name", ["infer", "evaluate"])
def test_ctrl_c_at_any_moment_is_one_line(
    model_dir: pathlib.Path, tmp_path: pathlib.Path, name: str
) -> None:
    """From the first import of ours on: while TensorFlow, JAX and orbax load, while compiling."""
    (tmp_path / "in.jsonl").write_text('{"input": "question 1"}\n')
    output = tmp_path / "out.jsonl"
    arguments = [f"--checkpoint={model_dir}", f"--output={output}"]
    arguments += (
        [f"--input={tmp_path / 'in.jsonl'}"]
        if name == "infer"
        else [f"--data_dir={tmp_path / 'data'}", "--mixture_or_task=wordproblems_label"]
    )
    for seconds in (0.3, 0.6, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0):
        process = subprocess.Popen(
            [sys.executable, "-m", f"distill_sbs.{name}", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=120)[1]
        if process.returncode != 0:  # it was done before
            assert process.returncode == 130, said
            if output.exists():
                assert said.endswith(f"interrupted: {output} is written\n")
            else:
                assert said in (
                    "interrupted: nothing was written\n",
                    "interrupted: nothing was begun\n",
                )
        output.unlink(missing_ok=True)
