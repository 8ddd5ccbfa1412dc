"""client, transport: endpoints that answer anything at all, over real HTTP."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import socket
import sys
import threading

import hostile_answers
import pytest
from teacher_server import problems, read_rows, running, write_answers, write_inputs

from distill_sbs import extract
from distill_sbs.teacher import pacing

sys.path.append(str(pathlib.Path(__file__).parents[2] / "benchmarks"))
import hostile_endpoint  # noqa: E402  (the campaign is a benchmark too)

pytestmark = pytest.mark.slow  # as a whole: many small tests

KEY = "sk-a-secret-of-the-test"


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a failure as after any; how long is tested in test_pacing."""
    monkeypatch.setattr(pacing, "FIRST_DELAY_SECONDS", 0.02)


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """Inputs and answers of eight problems."""
    write_inputs(tmp_path / "in.jsonl", problems(8))
    write_answers(tmp_path / "answers.jsonl", problems(8))
    return tmp_path


def run(folder: pathlib.Path, url: str, *more: str) -> int:
    arguments = ["--task=wordproblems", f"--input={folder / 'in.jsonl'}", "--model=scripted"]
    arguments += [f"--output={folder / 'out.jsonl'}", f"--base_url={url}", "--timeout_seconds=5"]
    return extract.main(["extract", *arguments, *more])


def expected_labels(count: int) -> dict[str, str]:
    return {each.id: each.teacher_outputs["template"].label for each in problems(count)}


def labels(folder: pathlib.Path) -> dict[str, str | None]:
    return {row["id"]: row["label"] for row in read_rows(folder / "out.jsonl")}


def test_a_hundred_examples_in_every_form_with_a_kill(tmp_path: pathlib.Path) -> None:
    """The campaign of `benchmarks/hostile_endpoint.py`, smaller."""
    figures = hostile_endpoint.run_campaign(tmp_path, count=100, share=0.7, kills=1)
    assert figures["mistakes"] == [] and figures["tracebacks"] == 0
    assert figures["ended"]["killed"] == 1


# ---------------------------------- one form for all --------------------------


@pytest.mark.parametrize("form", ["gzip", "odd character set", "usage NaN", "blocks"])
def test_answers_in_odd_forms(folder: pathlib.Path, form: str) -> None:
    with running(folder / "answers.jsonl", "--hostile=1", "--forms", form) as server:
        assert run(folder, server.url) == 0
    assert labels(folder) == expected_labels(8)
    for row in read_rows(folder / "out.jsonl"):
        assert row["usage"]["prompt_tokens"] > 0 and row["usage"]["completion_tokens"] > 0


@pytest.mark.parametrize("usage", ["usage negative", "usage NaN", "usage huge", "usage many"])
def test_usage_that_is_none_does_not_defeat_the_budget(folder: pathlib.Path, usage: str) -> None:
    with running(folder / "answers.jsonl", "--hostile=1", "--forms", usage) as server:
        assert run(folder, server.url, "--max_tokens_total=2500", "--max_in_flight=1") == 3
        assert 1 <= server.stop()["answers"] <= 6
    assert all(row["usage"]["estimated"] for row in read_rows(folder / "out.jsonl"))


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ("402 inside 200", "quota is used up (status 402): no credits are left"),
        ("wrong key inside 200", "refuses the key in OPENAI_API_KEY"),
        ("a list with status 403", "(status 403): blocked"),
        ("redirect", "redirects to http://127.0.0.1:9/login?next=[red] (status 302)"),
    ],
)
def test_what_ends_the_run_is_told_in_one_line(
    folder: pathlib.Path, form: str, message: str, capsys
) -> None:
    with running(folder / "answers.jsonl", "--hostile=1", "--forms", form) as server:
        assert run(folder, server.url, "--max_in_flight=1") == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert (folder / "out.jsonl").read_text() == ""


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ("20 MB", "larger than 4 MiB"),
        ("gzip bomb", "larger than 4 MiB"),
        ("lone surrogate", "half of a character"),
        ("unknown block", "a block of type 'image_url'"),
    ],
)
def test_an_endpoint_that_sends_no_answers_is_told_of(
    folder: pathlib.Path, form: str, message: str, capsys
) -> None:
    with running(folder / "answers.jsonl", "--hostile=1", "--forms", form) as server:
        assert run(folder, server.url) == 2
    error = capsys.readouterr().err
    assert message in error and "none was answered; nothing was written" in error


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ("login page", "no completion but text/html: '<!DOCTYPE html><title>Sign in</title>"),
        ("event stream", 'no completion but text/event-stream: \'data: {"choices"'),
        ("plain text", "no completion but text/plain: 'upstream connect error'"),
        ("empty body", "an empty response"),
        ("no choices", "no choices in the response"),
        ("error a text", "an error in place of an answer: something went wrong"),
    ],
)
def test_an_endpoint_that_is_none_is_told_of(
    folder: pathlib.Path, form: str, message: str, capsys, monkeypatch
) -> None:
    more = ["--hostile=1", "--hiccups=1000", "--forms", form]
    with running(folder / "answers.jsonl", *more) as server:
        assert run(folder, server.url) == 2
    error = capsys.readouterr().err
    assert message in error and "\x1b" not in error


def test_an_endpoint_that_turns_into_a_login_page_ends_the_run(
    tmp_path: pathlib.Path, capsys
) -> None:
    """The first half is answered, then nobody: nothing is marked as failed."""
    write_inputs(tmp_path / "in.jsonl", problems(60))
    with running(write_answers(tmp_path / "answers.jsonl", problems(60))) as server:
        assert run(tmp_path, server.url, "--limit=30") == 0
    more = ["--hostile=1", "--hiccups=1000", "--forms", "login page"]
    with running(tmp_path / "answers.jsonl", *more) as server:
        assert run(tmp_path, server.url) == 4
    assert "20 inputs in a row got responses that are no answers" in capsys.readouterr().err
    assert labels(tmp_path) == expected_labels(30)
    # Fewer than that at the end of a file are failures of their own, and the file is complete.
    with running(tmp_path / "answers.jsonl", *more) as server:
        assert run(tmp_path, server.url, "--limit=33") == 0
    failed = [row for row in read_rows(tmp_path / "out.jsonl") if row.get("error")]
    assert len(failed) == 3 and "Sign in" in failed[0]["error"]
    assert failed[0]["error"].endswith(", 4 times")


# ---------------------------------- addresses, keys ---------------------------


def test_azures_deployments_are_asked_with_their_own_header(folder: pathlib.Path) -> None:
    address = "/openai/deployments/d?api-version=2024-06-01"
    options = [f"--address={address}", "--key_header=api-key", f"--key={KEY}"]
    with running(folder / "answers.jsonl", *options) as server:
        assert run(folder, server.url.removesuffix("/v1") + address) == 0
    assert labels(folder) == expected_labels(8)


def test_a_query_goes_with_every_request(folder: pathlib.Path) -> None:
    with running(folder / "answers.jsonl", "--address=/v1?tenant=seven") as server:
        assert run(folder, server.url + "/?tenant=seven") == 0
    assert labels(folder) == expected_labels(8)


def test_a_password_in_the_address(folder: pathlib.Path, monkeypatch, capsys) -> None:
    basic = "Basic bWU6cGFzc3dvcmQtMQ=="  # me:password-1
    with running(folder / "answers.jsonl", f"--raw_key={basic}") as server:
        url = server.url.replace("http://", "http://me:password-1@")
        assert run(folder, url) == 2
        assert "leave the other out" in capsys.readouterr().err
        monkeypatch.delenv("OPENAI_API_KEY")
        assert run(folder, url) == 0
    assert labels(folder) == expected_labels(8)
    everything = "".join(capsys.readouterr())
    everything += "".join(path.read_text() for path in folder.glob("out*"))
    assert "password-1" not in everything


def test_a_key_that_no_header_takes(folder: pathlib.Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-one\nsk-two")
    assert run(folder, "http://127.0.0.1:9/v1") == 2
    assert "holds a blank, a line break" in capsys.readouterr().err


def test_the_key_is_taken_out_of_answers(folder: pathlib.Path, capsys) -> None:
    rows = read_rows(folder / "answers.jsonl")
    leaking = [{**row, "answer": f"{KEY} says so. {row['answer']}"} for row in rows]
    (folder / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in leaking))
    extra = json.dumps({"user": KEY})
    with running(folder / "answers.jsonl") as server:
        assert run(folder, server.url, f"--extra_body={extra}") == 0
        assert run(folder, server.url, f"--extra_body={extra}") == 0  # the same settings again
    assert labels(folder) == expected_labels(8)
    assert read_rows(folder / "out.jsonl")[0]["raw"].startswith("[key] says so.")
    everything = "".join(capsys.readouterr())
    everything += "".join(path.read_text() for path in folder.glob("out*"))
    assert KEY not in everything


# ---------------------------------- parameters --------------------------------


def test_a_parameter_refused_without_quotes_is_left_out_and_noted_once(
    folder: pathlib.Path, capsys
) -> None:
    words = "Argument not supported on this model: {name}"
    options = ["--refuse_parameter", "stop", f"--refusal={words}"]
    with running(folder / "answers.jsonl", *options) as server:
        assert run(folder, server.url) == 0
    assert capsys.readouterr().err.count("does not take stop: asked without it") == 1
    assert labels(folder) == expected_labels(8)


def test_plain_words_of_an_error_are_shown(folder: pathlib.Path, capsys) -> None:
    options = ["--refuse_parameter", "model", "--refusal=this house serves no {name}"]
    with running(folder / "answers.jsonl", *options) as server:
        assert run(folder, server.url) == 2
    assert "refused with status 400: this house serves no model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('{"a": NaN}', "holds NaN or Infinity"),
        ('{"a": "\\ud83d"}', "half of a character"),
        ("[" * 100_000, "nested too deeply"),
        ('{"stream": true}', "asks for an event stream"),
        ('{"messages": []}', "sets 'messages'"),
        ("{", "broken JSON"),
    ],
)
def test_extra_fields_that_cannot_be_sent(
    folder: pathlib.Path, body: str, message: str, capsys
) -> None:
    assert run(folder, "http://127.0.0.1:9/v1", f"--extra_body={body}") == 2
    assert message in capsys.readouterr().err
    assert not (folder / "out.jsonl").exists()


@pytest.mark.parametrize("flag", ["max_cost", "temperature", "timeout_seconds"])
def test_numbers_that_are_none(folder: pathlib.Path, flag: str, capsys) -> None:
    assert run(folder, "http://127.0.0.1:9/v1", f"--{flag}=nan") == 2
    assert f"--{flag}=nan: expected a number" in capsys.readouterr().err


# ---------------------------------- connections -------------------------------


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://127.0.0.1:{port}/v1", "(connection refused: nothing listens there); trying again"),
        ("http://no-such-host.invalid/v1", "(no such host: "),
    ],
)
def test_an_endpoint_that_is_not_there_is_told_of_at_once(
    folder: pathlib.Path, url: str, message: str, capsys
) -> None:
    assert run(folder, url.format(port=closed_port()), "--outage_seconds=1") == 4
    first, *others = capsys.readouterr().err.splitlines()
    assert first.startswith("note: no connection to ") and message in first
    assert sum(line.startswith("note: ") for line in others) == 0


def test_tls_where_there_is_none_is_told_of(folder: pathlib.Path, capsys) -> None:
    """A server without TLS answers its first bytes with an error in plain HTTP."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            with contextlib.suppress(OSError):  # the listener is closed at the end
                while True:
                    connection, _ = listener.accept()
                    with connection:
                        connection.recv(4096)
                        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}/v1"
        assert run(folder, url, "--outage_seconds=0.5") == 4
    assert "TLS: " in capsys.readouterr().err


# ---------------------------------- terminal, disk ----------------------------


def test_nothing_that_is_data_is_obeyed_by_the_terminal(tmp_path: pathlib.Path, capsys) -> None:
    folder = tmp_path / "[red]x[/y]"
    folder.mkdir(parents=True)
    write_inputs(folder / "in.jsonl", problems(4))
    rows = read_rows(write_answers(folder / "answers.jsonl", problems(4)))
    hostile = "\x1b]0;owned\x07\x9b2J [/z] \u202e"
    rows[0]["answer"] = f"{hostile} no label here"
    rows[1]["answer"] = f"{hostile} The answer is ( 1 + 1 )."
    (folder / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with running(folder / "answers.jsonl") as server:
        assert run(folder, server.url) == 0
    report = ["--report", f"--output={folder / 'out.jsonl'}"]
    assert extract.main(["extract", *report]) == 0
    printed = "".join(capsys.readouterr())
    assert not set("\x1b\x07\x9b\u202e") & set(printed)
    assert "[red]x[/y]" in printed and "[/z]" in printed


def test_a_full_disk_ends_the_run_and_loses_nothing(folder: pathlib.Path, capsys) -> None:
    """`ulimit -f` stands for the disk: the system refuses what goes past it."""
    import resource
    import signal

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with running(folder / "answers.jsonl") as server:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_200, before[1]))
        try:
            assert run(folder, server.url, "--max_in_flight=2") == 2
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, handler)
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "out.jsonl: File too large" in error
        kept = read_rows(folder / "out.jsonl")
        assert 0 < len(kept) < 8
        assert run(folder, server.url) == 0
    assert read_rows(folder / "out.jsonl")[: len(kept)] == kept
    assert labels(folder) == expected_labels(8)


def test_a_folder_that_cannot_be_written_to_is_told_before_any_call(
    folder: pathlib.Path, capsys
) -> None:
    (folder / "llm").write_text("a file")
    with running(folder / "answers.jsonl") as server:
        assert run(folder, server.url) == 2
        assert "is no folder that you may write to" in capsys.readouterr().err
        file = f"--output={folder / 'llm' / 'out.jsonl'}"
        assert run(folder, server.url, file) == 2
        assert server.stop()["requests"] == 0


# ---------------------------------- files -------------------------------------


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"id": "1", "input": "\\ud83d"}', "half of a character"),
        (b'{"id": "\\udfff", "input": "x"}', "half of a character"),
        (b'{"id": "1", "input": ' + b"[" * 200_000, "nested too deeply"),
        (b'{"id": ' + b"1" * 5_000 + b', "input": "x"}', "too long to be read"),
        (b'{"id": "1", "input": "caf\xe9"}', "not UTF-8"),
    ],
)
def test_an_input_that_nobody_takes_is_named_before_any_call(
    folder: pathlib.Path, line: bytes, message: str, capsys
) -> None:
    (folder / "in.jsonl").write_bytes(b'{"id": "0", "input": "fine"}\n' + line + b"\n")
    with running(folder / "answers.jsonl") as server:
        assert run(folder, server.url) == 2
        assert server.stop()["requests"] == 0
    error = capsys.readouterr().err
    assert message in error and "in.jsonl, line 2" in error
    assert not (folder / "out.jsonl").exists()


def test_usage_of_an_earlier_program_is_estimated_and_told(folder: pathlib.Path, capsys) -> None:
    with running(folder / "answers.jsonl") as server:
        assert run(folder, server.url, "--limit=4") == 0
        out = folder / "out.jsonl"
        rows = read_rows(out)
        for row, usage in zip(rows, [None, {"prompt_tokens": "many"}, [1], {}], strict=True):
            row["usage"] = usage
        out.write_text("".join(json.dumps(row) + "\n" for row in rows))
        capsys.readouterr()
        assert run(folder, server.url) == 0
    assert "4 lines give no token counts: estimated" in capsys.readouterr().err
    assert labels(folder) == expected_labels(8)


def test_an_output_line_that_cannot_be_read_is_named(folder: pathlib.Path, capsys) -> None:
    with running(folder / "answers.jsonl") as server:
        assert run(folder, server.url) == 0
        out = folder / "out.jsonl"
        lines = out.read_text().splitlines()
        lines[3] = json.dumps({**json.loads(lines[3]), "raw": "\ud83d"})
        out.write_text("\n".join(lines) + "\n")
        assert run(folder, server.url) == 2
        error = capsys.readouterr().err
        assert "out.jsonl, line 4: '\\ud83d' is half of a character" in error
        assert "Remove the line: the same extract command asks for its answer again" in error
        out.write_text("\n".join(lines[:3] + lines[4:]) + "\n")
        assert run(folder, server.url) == 0
    assert labels(folder) == expected_labels(8)


def test_a_flag_that_is_no_utf8(folder: pathlib.Path, capsys) -> None:
    name = os.fsdecode(b"model-\xff")
    assert run(folder, "http://127.0.0.1:9/v1", f"--model={name}") == 2
    error = capsys.readouterr().err
    assert "not UTF-8" in error and not (folder / "out.jsonl").exists()


def test_every_form_is_in_the_campaign() -> None:
    """A draw over many inputs leaves none out."""
    drawn = {hostile_answers.choose_form(f"input {i}", 0.7, 0) for i in range(8_000)}
    assert drawn == {*hostile_answers.ALL, None}
