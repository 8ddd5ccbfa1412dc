"""serve: as a user starts it, over one export: answers, hostile requests, the page, its end."""

from __future__ import annotations

import importlib.metadata
import json
import pathlib
import re
import socket
import subprocess
import sys
from collections.abc import Iterator

import huggingface_hub
import pytest
import served_students
from browser import Browser, find_browser
from packaging.requirements import Requirement
from served_students import TEXTS, Server, serve
from source_examples import V1_0

from distill_sbs import serve as command
from distill_sbs.convert.open import open_source
from distill_sbs.errors import UserError
from distill_sbs.serving.served_folder import read_student

pytestmark = pytest.mark.slow  # as a whole: an export and a server

for _library in ("ctranslate2", "torch", "transformers", "starlette", "uvicorn"):
    pytest.importorskip(_library, reason=f"{_library} is not installed: the extra serve has it")

from distill_sbs.serving.answering import Answerer  # noqa: E402

# T5 1.0 is what most differs from CTranslate2's defaults: scaled logits, and an epsilon of its own.
CHANGES = {**V1_0, "layer_norm_epsilon": 0.5}
QUESTION = json.dumps({"input": TEXTS[0]}).encode()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Answerer:
    """The student's export, checked against JAX."""
    source = served_students.make_source("embedded", **CHANGES)
    folder = tmp_path_factory.mktemp("export") / "served"
    served_students.export(source, folder, "ctranslate2")
    answerer = served_students.assert_same_answers(source, str(folder), CHANGES)
    answerer.folder = folder  # for the tests
    return answerer


@pytest.fixture(scope="module")
def server(exported: Answerer) -> Iterator[Server]:
    flags = ("--threads=1", "--max_inputs=8", "--max_body_bytes=20000", "--batch_size=3")
    with serve(str(exported.folder), *flags) as running:
        yield running


def test_what_an_export_holds(exported: Answerer) -> None:
    folder = exported.folder
    assert {path.name for path in folder.iterdir()} == {
        "README.md",
        "config.json",
        "model.bin",
        "shared_vocabulary.json",
        "student.json",
    }
    student = read_student(str(folder))
    assert (student.max_input_tokens, student.max_decode_tokens) == (24, 9)
    assert student.prefixes == {"label": "predict: ", "rationale": "explain: "}
    card = huggingface_hub.ModelCard.load(folder / "README.md")
    assert card.data.library_name == "ctranslate2"
    assert "| form | ctranslate2 of float32 |" in card.content
    with pytest.raises(UserError, match="is an export for serving, which cannot be read back"):
        open_source(str(folder))


# ---------------------------------- answers ----------------------------------


def test_answers(server: Server, exported: Answerer) -> None:
    labels, rationales = (exported.answer(TEXTS, task) for task in ("label", "rationale"))
    body = json.dumps({"inputs": TEXTS}).encode()
    status, headers, said = server.ask("POST", "/explain", body)
    assert (status, headers["content-type"]) == (200, "application/json")
    assert headers["x-content-type-options"] == "nosniff"
    assert json.loads(said) == {
        "answers": [
            {
                "label": label.text,
                "rationale": rationale.text,
                "input_cut": label.input_cut,
                "output_cut": label.output_cut or rationale.output_cut,
            }
            for label, rationale in zip(labels, rationales, strict=True)
        ]
    }
    assert [label.input_cut for label in labels] == [False, False, False, True]

    status, _, said = server.ask("POST", "/answer", QUESTION)
    (answer,) = json.loads(said)["answers"]
    assert answer["label"] == labels[0].text and "rationale" not in answer
    body = json.dumps({"input": TEXTS[0], "rationale": True}).encode()
    (answer,) = json.loads(server.ask("POST", "/answer", body)[2])["answers"]
    assert answer["rationale"] == rationales[0].text


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        (b"", 400, "nothing is in it"),
        (b"[", 400, "broken JSON (Expecting value at column 2)"),
        (b"\xff\xfe{}", 400, "UTF-16, not UTF-8"),
        (b'{"input": "\\ud83d"}', 400, "half of a character (a lone surrogate)"),
        (b"[" * 9_000, 400, "nested too deeply"),
        (b'{"inputs": []}', 400, '"inputs" is empty'),
        (b'{"inputs": ["a", null]}', 400, "input 2 is null, expected a text"),
        (b'{"input": " \\n "}', 400, '"input" is blank'),
        (b'{"inputs": "a"}', 400, '"inputs" is text, expected a list of texts'),
        (b'{"input": "a", "inputs": ["a"]}', 400, 'either "input" or "inputs"'),
        (b'{"input": "a", "rationale": 1}', 400, '"rationale" is a number, expected true or'),
        (b'{"inptus": ["a"]}', 400, "did you mean inputs?"),
        (b'{"inputs": ["1","2","3","4","5","6","7","8","9"]}', 413, "9 inputs, expected at most 8"),
        (b'{"input": "' + b"a" * 20_000 + b'"}', 413, "longer than 20,000 bytes"),
        (b" " * 300_000, 413, "longer than 20,000 bytes"),
    ],
)
def test_hostile_bodies(server: Server, body: bytes, status: int, sentence: str) -> None:
    found, headers, said = server.ask("POST", "/answer", body)
    (told,) = json.loads(said).values()
    assert (found, headers["content-type"]) == (status, "application/json"), told
    assert sentence in told
    assert "Traceback" not in told and "\n" not in told


def test_hostile_requests(server: Server) -> None:
    for method, path, body, headers, status in (
        ("GET", "/answer", None, {}, 405),
        ("PUT", "/explain", QUESTION, {}, 405),
        ("GET", "/nowhere", None, {}, 404),
        ("GET", "/%2e%2e/student.json", None, {}, 404),
        ("POST", "/answer", QUESTION, {"Content-Type": "text/plain"}, 415),
        ("POST", "/answer", QUESTION, {"Content-Type": "x" * 999}, 415),
    ):
        found, _, said = server.ask(method, path, body, **headers)
        assert found == status, (path, said)
        assert len(json.loads(said)["error"]) < 200
    for request in (
        b"GARBAGE\r\n\r\n",
        b"POST /answer HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
            connection.sendall(request)
            assert connection.recv(99).startswith(b"HTTP/1.1 4")
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(b"POST /answer HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n\r\n{")
    assert server.ask("POST", "/answer", QUESTION)[0] == 200
    assert server.process.poll() is None


def test_a_slow_body_is_refused(exported: Answerer) -> None:
    head = b"POST /answer HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    with (
        serve(str(exported.folder), "--threads=1", "--body_seconds=0.2") as running,
        socket.create_connection(("127.0.0.1", running.port), timeout=30) as connection,
    ):
        connection.sendall(head + b"Content-Length: 99\r\n\r\n{")
        assert connection.recv(99).startswith(b"HTTP/1.1 408 ")
        status, said, complained = running.end()
    assert (status, said, complained) == (143, "ended: 1 requests answered\n", "")


def test_what_programs_read(server: Server) -> None:
    assert server.ask("GET", "/healthz")[::2] == (200, b'{"status":"ok"}')
    described = json.loads(server.ask("GET", "/openapi.json")[2])
    assert described["openapi"] == "3.1.0"
    inputs = described["components"]["schemas"]["Question"]["properties"]["inputs"]
    assert (inputs["minItems"], inputs["maxItems"]) == (1, 8)
    before = read_counter(server, 'distill_sbs_inputs_total{task="rationale"}')
    server.ask("POST", "/explain", json.dumps({"inputs": TEXTS[:2]}).encode())
    server.ask("GET", "/made/up")
    assert read_counter(server, 'distill_sbs_inputs_total{task="rationale"}') == before + 2
    assert read_counter(server, "distill_sbs_inputs_waiting") == 0
    text = server.ask("GET", "/metrics")[2].decode()
    assert 'path="other",status="404"' in text and "made" not in text


def read_counter(server: Server, name: str) -> float:
    text = server.ask("GET", "/metrics")[2].decode()
    found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


# ---------------------------------- the page ---------------------------------


def test_the_page_in_a_browser(server: Server, exported: Answerer, tmp_path: pathlib.Path) -> None:
    program = find_browser()
    if program is None:
        pytest.skip("no browser is installed: apt-get install chromium")
    with Browser(program) as browser:
        browser.open(server.url + "/", 800, 700)

        def ask(text: str) -> None:
            given = json.dumps(text)
            browser.run(f"document.getElementById('input').value = {given}")
            browser.run("document.querySelector('button').click()")
            served_students.wait_until(
                lambda: not browser.run("document.querySelector('button').disabled")
            )

        def shown(name: str) -> object:
            is_hidden = browser.run(f"document.getElementById('{name}-row').hidden")
            return (
                None if is_hidden else browser.run(f"document.getElementById('{name}').textContent")
            )

        assert [shown(name) for name in ("label", "rationale", "note", "error")] == [None] * 4
        ask(TEXTS[3])
        labels, rationales = (exported.answer(TEXTS, task) for task in ("label", "rationale"))
        assert (shown("label"), shown("rationale")) == (labels[3].text, rationales[3].text)
        assert "its end was left out" in str(shown("note")) and shown("error") is None
        browser.take_picture(tmp_path / "page.png")
        browser.run("document.querySelector('[name=rationale]').checked = false")
        ask("Why?")
        assert (shown("label"), shown("rationale")) == (labels[1].text, None)
        ask(" ")
        assert shown("label") is None and "is blank" in str(shown("error"))
        assert browser.run("document.documentElement.scrollWidth <= window.innerWidth")
        browser.open(server.url + "/docs", 400, 700)
        assert browser.run("document.querySelectorAll('h2').length") == 7
        assert browser.run("document.documentElement.scrollWidth <= window.innerWidth")
        assert all(url.startswith((server.url, "data:")) for url in browser.requests())
        assert [each for each in browser.complaints() if "400" not in each] == []


# ---------------------------------- starting ----------------------------------


def test_what_cannot_be_served(
    exported: Answerer, server: Server, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = exported.folder
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("config.json", "shared_vocabulary.json", "student.json"):
        (broken / name).write_bytes((folder / name).read_bytes())
    (broken / "model.bin").write_bytes((folder / "model.bin").read_bytes()[:999])
    for flags, message in (
        ([], "--model is not given"),
        ([f"--model={tmp_path / 'none'}"], "no such folder"),
        ([f"--model={tmp_path}"], "has no student.json"),
        ([f"--model={broken}", "--port=0"], "broken/model.bin cannot be read ("),
        ([f"--model={folder}", f"--port={server.port}"], "another program listens there"),
        ([f"--model={folder}", "--port=70000"], "--port"),
        ([f"--model={folder}", "--host=no.such.host.invalid"], "no such address"),
        ([f"--model={folder}", "--max_inputs=99", "--max_waiting=9"], "--max_waiting=9"),
    ):
        assert command.main(["serve", *flags]) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ") and message in said, said
        assert said.count("\n") == 1


def test_the_server_needs_what_the_dockerfile_installs(exported: Answerer) -> None:
    text = (served_students.quickstart_runs.ROOT / "Dockerfile").read_text()
    listed = re.search(r"-c /source/constraints.txt \\\n((?:.*\\\n)*.*)\n", text)
    assert listed
    pending = listed[1].replace("\\", "").replace("'", "").split()
    assert len(pending) > 8
    installed = {"distill_sbs"}
    while pending:
        needed = Requirement(pending.pop())
        extra = {"extra": next(iter(needed.extras), "")}
        if needed.name not in installed:
            installed.add(needed.name)
            pending += [
                line.partition(";")[0]
                for line in importlib.metadata.requires(needed.name) or []
                if not (marker := Requirement(line).marker) or marker.evaluate(extra)
            ]
    installed |= {importlib.metadata.metadata(name)["Name"] for name in installed}
    program = (
        "import importlib.metadata, sys\n"
        "for name, owners in importlib.metadata.packages_distributions().items():\n"
        f"    if not set(owners) & {installed!r}: sys.modules.setdefault(name, None)\n"
        "for name in ('jax', 'tensorflow', 'torch'): assert sys.modules[name] is None\n"
        "from distill_sbs.serving.application import Application\n"
        "from distill_sbs.serving.answering import Answerer\n"
        "from distill_sbs.serving.options import ServeConfig\n"
        "from distill_sbs.serving import listening\n"
        "import distill_sbs.serve\n"
        f"answerer = Answerer({str(exported.folder)!r}, 1)\n"
        "Application(answerer, ServeConfig(model='x'))\n"
        f"print(answerer.answer([{TEXTS[0]!r}])[0].text)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=served_students.quickstart_runs.ROOT,
        capture_output=True,
        text=True,
    )
    assert done.stdout == exported.answer([TEXTS[0]])[0].text + "\n", done.stderr
