"""serve under load, ended meanwhile: whoever got a connection gets a right answer, or is told."""

from __future__ import annotations

import concurrent.futures
import json
import pathlib

import pytest
import served_students
from serving_load import load

pytestmark = [pytest.mark.campaign, pytest.mark.slow]

for _library in ("ctranslate2", "torch", "transformers", "starlette", "uvicorn"):
    pytest.importorskip(_library, reason=f"{_library} is not installed: the extra serve has it")


@pytest.mark.parametrize("seconds", [0.0, 1.5])
def test_nothing_is_lost_under_sigterm(seconds: float, tmp_path: pathlib.Path) -> None:
    from distill_sbs.serving.answering import Answerer

    source = served_students.make_source()
    folder = served_students.export(source, tmp_path / "served", "ctranslate2")
    answerer = Answerer(folder, threads=1)
    texts = served_students.TEXTS
    labels, rationales = (answerer.answer(texts, task) for task in ("label", "rationale"))
    expected = {
        text: (label.text, rationale.text)
        for text, label, rationale in zip(texts, labels, rationales, strict=True)
    }
    with served_students.serve(folder, "--threads=1", "--max_waiting=64") as server:
        outcome, _ = load(server.process, server.port, expected, clients=12, seconds=seconds)
        said = server.process.communicate()
    assert (outcome.wrong, outcome.lost, outcome.refused) == (0, 0, 12), outcome
    assert outcome.right >= 12
    assert server.process.returncode == 143
    answered = outcome.right + outcome.busy
    assert said == (f"ended: {answered:,} requests answered\n", "")


def test_too_many_inputs_are_told_to_come_back(tmp_path: pathlib.Path) -> None:
    source = served_students.make_source()
    folder = served_students.export(source, tmp_path / "served", "ctranslate2")
    with served_students.serve(folder, "--max_inputs=4", "--max_waiting=4") as server:
        body = json.dumps({"inputs": served_students.TEXTS}).encode()
        with concurrent.futures.ThreadPoolExecutor(12) as pool:
            answers = list(pool.map(lambda _: server.ask("POST", "/answer", body), range(48)))
        assert {status for status, _, _ in answers} <= {200, 503}
        assert any(status == 200 for status, _, _ in answers)
        refused = server.ask("POST", "/explain", body)
        # Four labels and four rationales are more than may wait.
        assert refused[0] == 503 and refused[1]["retry-after"] == "1"
        assert "inputs wait already; ask again in a second" in json.loads(refused[2])["error"]
