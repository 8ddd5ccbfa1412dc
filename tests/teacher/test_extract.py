"""extract: whole runs against a scripted server in another process, its faults included."""

from __future__ import annotations

import asyncio
import collections
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest
import teacher_server
from teacher_server import problems, read_rows, running, write_answers, write_inputs

from distill_sbs import extract

KEY = "sk-a-secret-of-the-test"


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def run(folder: pathlib.Path, url: str, *more: str) -> int:
    arguments = ["--task=wordproblems", f"--input={folder / 'in.jsonl'}", "--model=scripted"]
    arguments += [f"--output={folder / 'out.jsonl'}", f"--base_url={url}", "--timeout_seconds=1"]
    return extract.main(["extract", *arguments, *more])


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """Inputs and answers of twenty problems."""
    write_inputs(tmp_path / "in.jsonl", problems(20))
    write_answers(tmp_path / "answers.jsonl", problems(20))
    return tmp_path


def expected_labels(count: int) -> dict[str, str]:
    return {each.id: each.teacher_outputs["template"].label for each in problems(count)}


# ---------------------------------- faults -----------------------------------


@pytest.mark.slow
def test_every_fault_is_survived(folder: pathlib.Path, capsys) -> None:
    options = ["--faults=0.6", "--most_faults=3", "--run_on=0.5", "--silence=1.2", "--wait=0.1"]
    with running(folder / "answers.jsonl", f"--key={KEY}", *options) as server:
        assert run(folder, server.url) == 0
        summary = server.stop()
    rows = read_rows(folder / "out.jsonl")
    assert {row["id"]: row["label"] for row in rows} == expected_labels(20)
    assert len(rows) == 20 and all(row["rationale"] and "error" not in row for row in rows)
    assert summary["answers"] == summary["inputs_answered"] == 20
    printed = capsys.readouterr()
    for reason in ("status 429", "status 500", "malformed response", "no answer within 1 s"):
        assert f"asked again: {reason}" in printed.out
    assert any("How many ducks" in row["raw"] for row in rows)  # run-on text was there, and cut
    texts = json.loads((folder / "llm" / "in_CoT_0.json").read_text())
    assert texts == [{row["id"]: row["raw"] for row in rows}[each.id] for each in problems(20)]
    everything = printed.out + printed.err
    everything += "".join(each.read_text() for each in folder.rglob("*") if each.is_file())
    assert KEY not in everything


def killed_twice(
    folder: pathlib.Path, url: str, examples: int, in_flight: int
) -> subprocess.CompletedProcess:
    """Runs the command, kills it at a third and at two thirds, and lets the third run end."""
    out = folder / "out.jsonl"
    command = [sys.executable, "-m", "distill_sbs.extract", "--task=wordproblems"]
    command += [f"--input={folder / 'in.jsonl'}", f"--output={out}", f"--base_url={url}"]
    command += ["--model=scripted", "--timeout_seconds=2", f"--max_in_flight={in_flight}"]
    for share in (1 / 3, 2 / 3):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 300
        while not out.exists() or out.read_bytes().count(b"\n") < share * examples:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.kill()
        process.wait()
    # What SIGKILL may leave behind besides: a line that was on its way to the disk.
    with out.open("ab") as file:
        file.write(b'{"id": "train-1", "raw": "It is tor')
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


def check_all_answered_once(folder: pathlib.Path, examples: int, in_flight: int) -> None:
    rows = read_rows(folder / "out.jsonl")
    assert collections.Counter(row["id"] for row in rows) == dict.fromkeys(
        expected_labels(examples), 1
    )
    assert {row["id"]: row["label"] for row in rows} == expected_labels(examples)
    # A killed client never read what was in flight; nothing else was asked for twice.
    served = [row["input"] for row in read_rows(folder / "served.jsonl")]
    assert examples <= len(served) <= examples + 2 * in_flight


@pytest.mark.slow
def test_killed_twice_nothing_is_lost_or_asked_twice(tmp_path: pathlib.Path) -> None:
    write_inputs(tmp_path / "in.jsonl", problems(150))
    answers = write_answers(tmp_path / "answers.jsonl", problems(150))
    options = ["--seconds=0.05", "--faults=0.05", "--wait=0.1", "--silence=2.2"]
    with running(answers, f"--log={tmp_path / 'served.jsonl'}", *options) as server:
        done = killed_twice(tmp_path, server.url, 150, in_flight=8)
    assert done.returncode == 0, done.stderr
    assert "cut a torn last line of 35 bytes off" in done.stderr
    assert "answers are there" in done.stderr
    check_all_answered_once(tmp_path, 150, in_flight=8)


@pytest.mark.campaign
@pytest.mark.slow
def test_two_thousand_with_every_fault_killed_twice(tmp_path: pathlib.Path) -> None:
    """Prints throughput and peak memory; see it with `pytest -s`."""
    write_inputs(tmp_path / "in.jsonl", problems(2_000))
    answers = write_answers(tmp_path / "answers.jsonl", problems(2_000))
    options = ["--seconds=0.02", "--faults=0.02", "--run_on=0.2", "--silence=2.2"]
    with running(answers, f"--log={tmp_path / 'served.jsonl'}", *options) as server:
        started = time.monotonic()
        done = killed_twice(tmp_path, server.url, 2_000, in_flight=32)
        seconds = time.monotonic() - started
        summary = server.stop()
    assert done.returncode == 0, done.stderr
    print(f"\n{done.stderr}\n{done.stdout}\nserver: {summary}")
    print(f"2,000 examples in {seconds:.0f} s over three runs: {2_000 / seconds:.0f} a second")
    check_all_answered_once(tmp_path, 2_000, in_flight=32)
    peak = next(line for line in done.stdout.splitlines() if "peak memory" in line)
    assert int(peak.split()[-3].replace(",", "")) < 200  # MiB: no TensorFlow, no inputs in memory


def test_an_input_that_fails_for_good_is_written_and_skipped(folder: pathlib.Path, capsys) -> None:
    write_answers(folder / "answers.jsonl", problems(20), hopeless=(3,))
    with running(folder / "answers.jsonl") as server:
        assert run(folder, server.url) == 0
    failed = [row for row in read_rows(folder / "out.jsonl") if "error" in row]
    assert [row["id"] for row in failed] == ["train-3"]
    assert failed[0]["error"].startswith("refused with status 400") and failed[0]["label"] is None
    assert "failed: refused with status 400" in " ".join(capsys.readouterr().out.split())
    assert json.loads((folder / "llm" / "in_CoT_0.json").read_text())[3] == ""

    write_answers(folder / "answers.jsonl", problems(20))
    with running(folder / "answers.jsonl") as server:
        assert run(folder, server.url) == 0
        assert run(folder, server.url, "--retry_failed") == 0
        assert server.stop()["requests"] == 1
    assert len(read_rows(folder / "out.jsonl")) == 21
    assert json.loads((folder / "llm" / "in_CoT_0.json").read_text())[3] == (
        teacher_server.answer(problems(4)[3])
    )


def test_an_endpoint_that_refuses_everything_marks_nothing_as_failed(
    folder: pathlib.Path, capsys
) -> None:
    write_answers(folder / "answers.jsonl", problems(20), hopeless=tuple(range(20)))
    with running(folder / "answers.jsonl") as server:
        assert run(folder, server.url) == 2
    assert "maximum context length" in capsys.readouterr().err
    assert (folder / "out.jsonl").read_text() == ""


def test_an_endpoint_that_is_not_there_ends_the_run_and_loses_nothing(
    folder: pathlib.Path, capsys
) -> None:
    assert run(folder, "http://127.0.0.1:9/v1", "--outage_seconds=0.5") == 4
    error = capsys.readouterr().err
    assert "answered nobody" in error and "the same command continues" in error
    with running(folder / "answers.jsonl") as server:
        assert run(folder, server.url) == 0
    assert len(read_rows(folder / "out.jsonl")) == 20


def test_keys_and_addresses_that_are_wrong(folder: pathlib.Path, capsys) -> None:
    with running(folder / "answers.jsonl", "--key=another") as server:
        assert run(folder, server.url) == 2
        error = capsys.readouterr().err
        assert "OPENAI_API_KEY" in error and "[key]" in error and KEY not in error
    with running(folder / "answers.jsonl") as server:
        assert run(folder, server.url.removesuffix("/v1")) == 2
        assert "--base_url mostly ends in /v1" in capsys.readouterr().err
    assert run(folder, "localhost:8000") == 2
    assert "no http:// or https:// address" in capsys.readouterr().err


def test_parameters_that_the_endpoint_does_not_take(folder: pathlib.Path, capsys) -> None:
    with running(folder / "answers.jsonl", "--refuse_parameter", "temperature", "stop") as server:
        assert run(folder, server.url) == 0
    error = capsys.readouterr().err
    assert error.count("asked without it") == 2
    assert len(read_rows(folder / "out.jsonl")) == 20


@pytest.mark.slow
def test_sigterm_waits_for_what_is_in_flight(folder: pathlib.Path) -> None:
    out = folder / "out.jsonl"
    command = [sys.executable, "-m", "distill_sbs.extract", "--task=wordproblems"]
    command += [f"--input={folder / 'in.jsonl'}", f"--output={out}", "--model=scripted"]
    log = folder / "served.jsonl"
    with running(folder / "answers.jsonl", "--seconds=0.3", f"--log={log}") as server:
        command += [f"--base_url={server.url}", "--max_in_flight=3"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        while not out.exists() or out.read_bytes().count(b"\n") < 4:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate(timeout=30)
        assert process.returncode == 128 + signal.SIGTERM
        assert "the same command continues" in error
        assert {row["id"] for row in read_rows(out)} < set(expected_labels(20))
        assert len(read_rows(out)) == len(read_rows(log))
        assert run(folder, server.url) == 0
        assert server.stop()["answers"] == 20


# ---------------------------------- notebooks --------------------------------


def test_where_a_loop_runs_already(folder: pathlib.Path) -> None:
    async def cell(url: str) -> int:
        return run(folder, url)

    with running(folder / "answers.jsonl") as server:
        assert asyncio.run(cell(server.url)) == 0
    rows = read_rows(folder / "out.jsonl")
    assert {row["id"]: row["label"] for row in rows} == expected_labels(20)


@pytest.mark.slow
def test_an_interrupted_cell_keeps_what_was_answered(folder: pathlib.Path) -> None:
    async def cell(url: str) -> int:
        loop = asyncio.get_running_loop()
        loop.remove_signal_handler(signal.SIGINT)  # a kernel leaves it to Python
        signal.signal(signal.SIGINT, signal.default_int_handler)
        threading.Timer(2.0, os.kill, (os.getpid(), signal.SIGINT)).start()
        return run(folder, url, "--max_in_flight=2")

    with running(folder / "answers.jsonl", "--seconds=0.4") as server:
        assert asyncio.run(cell(server.url)) == 130
        assert 0 < len(read_rows(folder / "out.jsonl")) < 20
        assert run(folder, server.url) == 0
    assert len(read_rows(folder / "out.jsonl")) == 20


# ---------------------------------- budget -----------------------------------


def test_the_budget_stops_cleanly_and_more_of_it_continues(folder: pathlib.Path, capsys) -> None:
    prices = ["--price_per_million_input_tokens=1", "--price_per_million_output_tokens=2"]
    with running(folder / "answers.jsonl") as server:
        # About 620 tokens a call.
        assert run(folder, server.url, "--max_tokens_total=5000", "--max_in_flight=4") == 3
        assert "of --max_tokens_total=5,000 tokens are used" in capsys.readouterr().err
        used = sum(
            row["usage"]["prompt_tokens"] + row["usage"]["completion_tokens"]
            for row in read_rows(folder / "out.jsonl")
        )
        assert 4_000 < used <= 5_000
        assert not (folder / "llm").exists()
        assert run(folder, server.url, "--max_cost=0.0075", *prices, "--max_in_flight=1") == 3
        printed = capsys.readouterr()
        assert "--max_cost=0.0075 is spent" in printed.err and "cost" in printed.out
        assert 8 < len(read_rows(folder / "out.jsonl")) < 13
        assert run(folder, server.url) == 0
        assert server.stop()["answers"] == 20
    assert run(folder, "http://127.0.0.1:9/v1", "--max_cost=1") == 2
    assert "needs --price_per_million_input_tokens" in capsys.readouterr().err


def test_tokens_are_estimated_where_none_are_counted(folder: pathlib.Path) -> None:
    with running(folder / "answers.jsonl", "--no_usage") as server:
        assert run(folder, server.url, "--max_tokens_total=5000", "--max_in_flight=2") == 3
    rows = read_rows(folder / "out.jsonl")
    assert rows and all(row["usage"]["estimated"] for row in rows)
    # Characters of prompt and answer, four to a token.
    assert rows[0]["usage"]["completion_tokens"] == len(rows[0]["raw"]) // 4


# ---------------------------------- modes ------------------------------------


def test_samples_are_voted_on_and_chosen(tmp_path: pathlib.Path, capsys) -> None:
    write_inputs(tmp_path / "in.jsonl", problems(6))
    answers = write_answers(tmp_path / "answers.jsonl", problems(6))
    with running(answers) as server:
        more = ["--samples=3", "--seed=0", "--rationales=all", "--keep=agreeing"]
        assert run(tmp_path, server.url, *more) == 0
    rows = read_rows(tmp_path / "out.jsonl")
    assert collections.Counter(row["id"] for row in rows) == dict.fromkeys(expected_labels(6), 3)
    assert sorted({row["sample"] for row in rows}) == [0, 1, 2]
    settings = json.loads((tmp_path / "out.jsonl.settings.json").read_text())
    assert settings["temperature"] == 0.7
    # The teacher errs on the third problem: 27 + 28 for 27 + 21.
    kept = read_rows(tmp_path / "out.kept.jsonl")
    assert [row["id"] for row in kept] == [
        f"train-{i}" for i in (0, 0, 0, 1, 1, 1, 3, 3, 3, 4, 4, 4, 5, 5, 5)
    ]
    assert json.loads((tmp_path / "llm" / "in_CoT_0.json").read_text())[2] == ""
    assert "dropped: label differs from gold" in " ".join(capsys.readouterr().out.split())

    # The choice may be changed without a call.
    more[2:] = ["--rationales=one", "--keep=all"]
    assert run(tmp_path, "http://127.0.0.1:9/v1", *more) == 0
    assert [row["id"] for row in read_rows(tmp_path / "out.kept.jsonl")] == list(expected_labels(6))
    assert run(tmp_path, "http://127.0.0.1:9/v1", "--samples=2", "--temperature=0") == 2


def test_completion_and_rationalisation(folder: pathlib.Path) -> None:
    with running(folder / "answers.jsonl") as server:
        assert run(folder, server.url, "--completion", "--rationalise", "--limit=5") == 0
    rows = read_rows(folder / "out.jsonl")
    assert {row["id"]: row["label"] for row in rows} == expected_labels(5)
    assert not (folder / "llm").exists()  # five of twenty are not complete


def test_shards_are_merged_by_id(folder: pathlib.Path, capsys) -> None:
    whole = folder / "whole"
    with running(folder / "answers.jsonl") as server:
        for number in (2, 0, 1):
            output = f"--output={folder / f'part{number}.jsonl'}"
            assert run(folder, server.url, f"--shard={number}/3", output) == 0
        assert server.stop()["answers"] == 20
    ids = {row["id"] for row in read_rows(folder / "part1.jsonl")}
    assert ids == {f"train-{number}" for number in range(1, 20, 3)}
    assert len(read_rows(folder / "part2.jsonl")) == 6
    parts = [str(folder / f"part{number}.jsonl") for number in (1, 0, 2)]
    merge = [f"--merge={','.join(parts)}", f"--output={whole / 'out.jsonl'}"]
    assert extract.main(["extract", *merge]) == 0
    assert "20 examples answered, 0 failed, 0 not asked yet" in capsys.readouterr().out
    rows = read_rows(whole / "out.jsonl")
    assert [(row["id"], row["label"]) for row in rows] == list(expected_labels(20).items())
    assert len(json.loads((whole / "llm" / "in_CoT_0.json").read_text())) == 20
    # The merged file goes on like any other, and is not written over.
    assert run(folder, "http://127.0.0.1:9/v1", f"--output={whole / 'out.jsonl'}") == 0
    assert extract.main(["extract", *merge]) == 2

    merge = [f"--merge={parts[0]},{parts[1]}", f"--output={folder / 'two.jsonl'}"]
    assert extract.main(["extract", *merge]) == 0
    assert "14 examples answered, 0 failed, 6 not asked yet" in capsys.readouterr().out


@pytest.mark.parametrize("shard", ["3/3", "1", "-1/4", "a/b"])
def test_shards_that_are_none(folder: pathlib.Path, shard: str, capsys) -> None:
    assert run(folder, "http://127.0.0.1:9/v1", f"--shard={shard}") == 2
    assert "expected i/n" in capsys.readouterr().err


def test_show_prompt_calls_nobody(folder: pathlib.Path, capsys) -> None:
    arguments = ["--task=svamp", f"--input={folder / 'in.jsonl'}", "--show_prompt=1"]
    assert extract.main(["extract", *arguments]) == 0
    printed = capsys.readouterr().out
    assert printed.count("[assistant]") == 10
    assert printed.rstrip().endswith(f"[user]\nQ: {problems(2)[1].input}")
    assert extract.main(["extract", *arguments, "--completion", "--rationalise"]) == 0
    gold = problems(2)[1].label
    assert capsys.readouterr().out.endswith(f"(The correct answer is {gold}.)\nA:\n")
    assert extract.main(["extract", *arguments[:2], "--show_prompt=20"]) == 2


# ---------------------------------- refusals ---------------------------------


def test_other_settings_on_the_same_output_are_refused(folder: pathlib.Path, capsys) -> None:
    with running(folder / "answers.jsonl") as server:
        assert run(folder, server.url, "--limit=2") == 0
    before = (folder / "out.jsonl").read_text()
    nowhere = "http://127.0.0.1:9/v1"
    for more, message in [
        (["--model=other"], "another setting of model: 'scripted' there, 'other' now"),
        (["--max_tokens=9"], "another setting of max_tokens: 160 there, 9 now"),
        (["--task=svamp"], "another setting of task"),
        (["--completion"], "another setting of completion"),
    ]:
        assert run(folder, nowhere, *more) == 2
        assert message in capsys.readouterr().err
    own = folder / "wordproblems.toml"
    own.write_text("# changed\n" + prompt_text())
    assert run(folder, nowhere, f"--task={own}") == 2
    assert "another setting of the prompt" in capsys.readouterr().err
    (folder / "out.jsonl.settings.json").unlink()
    assert run(folder, nowhere) == 2
    assert "does not say how its answers were asked for" in capsys.readouterr().err
    assert (folder / "out.jsonl").read_text() == before


def prompt_text() -> str:
    from distill_sbs import resources

    return (resources.prompt_folder() / "wordproblems.toml").read_text()


def test_inputs_of_another_data_set_are_refused(folder: pathlib.Path, capsys) -> None:
    with running(folder / "answers.jsonl") as server:
        assert run(folder, server.url, "--limit=2") == 0
    (folder / "in.jsonl").write_text('{"id": "train-0", "input": "Another problem?"}\n')
    assert run(folder, "http://127.0.0.1:9/v1") == 2
    assert "holds an answer for id 'train-0', but to another input" in capsys.readouterr().err


def test_another_teachers_files_are_not_overwritten(folder: pathlib.Path, capsys) -> None:
    (folder / "llm").mkdir()
    (folder / "llm" / "in_CoT_0.json").write_text("[]")
    assert run(folder, "http://127.0.0.1:9/v1") == 2
    assert "was not made from" in capsys.readouterr().err
    assert not (folder / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('{"id": "1"}', 'line 1: no "input"'),
        ('{"id": "1", "input": "x"}\n{"input": "y"}', 'line 2: no "id"'),
        (
            '{"id": "1", "input": "x"}\n{"id": 1, "input": "y"}',
            "lines 1 and 2 both have the id '1'",
        ),
        ('{"id": "1", "input": "x"}\n{"id"', "line 2: broken JSON"),
        ("", "holds no rows"),
    ],
)
def test_inputs_are_checked_before_the_first_call(
    tmp_path: pathlib.Path, lines: str, message: str, capsys
) -> None:
    (tmp_path / "in.jsonl").write_text(lines)
    assert run(tmp_path, "http://127.0.0.1:9/v1") == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--taks=cqa"], "unknown flag --taks; did you mean --task"),
        (["--output=o.jsonl"], "--task is not given"),
        (["--task=cqa"], "--output=FILE.jsonl is not given"),
        (["--task=cqa", "--output=o.json", "--model=m"], "ends in .jsonl"),
        (["--task=cqa", "--output=o.jsonl"], "--model is not given"),
        (["--task=cqa", "--output=o.jsonl", "--model=m", "--base_url=http://h/v1"], "--input=FILE"),
        (["--task=cqa", "--input=a", "--dataset=cqa"], "both name inputs"),
        (["--report", "--show_prompt=1"], "two things"),
        (["--teacher=GPT-4"], "expected lower-case letters"),
        (["--results=x"], "belongs to --report"),
        (["--task=cqa", "--output=o.jsonl", "--model=m", "--extra_body=[1]"], "a JSON object"),
    ],
)
def test_refusals(arguments: list[str], message: str, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert extract.main(["extract", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error
    assert list(tmp_path.iterdir()) == []


def test_a_hosted_endpoint_wants_a_key(folder: pathlib.Path, monkeypatch, capsys) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    assert run(folder, "https://api.openai.com/v1") == 2
    assert "OPENAI_API_KEY is not set" in capsys.readouterr().err


def test_it_starts_without_tensorflow_and_jax() -> None:
    code = (
        "import sys; from distill_sbs import extract\n"
        "assert extract.main(['extract', '--task=cqaa', '--output=o.jsonl']) == 2\n"
        "assert not {'tensorflow', 'jax', 'openai', 'seqio'} & set(sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
