"""Starts `scripted_teacher.py` for a test, and makes the inputs and answers of word problems.

Enters: a folder, the server's options. Leaves: a running server in a process of its own, its URL.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import subprocess
import sys
from collections.abc import Iterator

from distill_sbs.data.dataset import Example
from distill_sbs.data.readers import wordproblems

SCRIPT = pathlib.Path(__file__).with_name("scripted_teacher.py")


def problems(count: int) -> tuple[Example, ...]:
    return wordproblems.generate("train")[:count]


def answer(example: Example) -> str:
    output = example.teacher_outputs[wordproblems.TEACHER]
    return f"{output.rationale} The answer is {output.label}."


def write_inputs(path: pathlib.Path, examples: tuple[Example, ...]) -> pathlib.Path:
    rows = ({"id": each.id, "input": each.input, "label": each.label} for each in examples)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_answers(
    path: pathlib.Path, examples: tuple[Example, ...], hopeless: tuple[int, ...] = ()
) -> pathlib.Path:
    rows = (
        {"input": each.input, "answer": answer(each), "hopeless": number in hopeless}
        for number, each in enumerate(examples)
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


class Server:
    """A running scripted teacher; `stop()` ends it and returns its own summary."""

    def __init__(self, answers: pathlib.Path, *options: object) -> None:
        command = [sys.executable, str(SCRIPT), f"--answers={answers}", *map(str, options)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.url = f"http://127.0.0.1:{self._process.stdout.readline().strip()}/v1"

    def stop(self) -> dict[str, int]:
        self._process.terminate()
        printed, _ = self._process.communicate(timeout=30)
        return json.loads(printed.splitlines()[-1])

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextlib.contextmanager
def running(answers: pathlib.Path, *options: object) -> Iterator[Server]:
    server = Server(answers, *options)
    try:
        yield server
    finally:
        server.kill()


def read_rows(path: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]
