"""Tiny students, exported for `serve`, and the same ones as JAX decodes them."""

from __future__ import annotations

import contextlib
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any

import jax
import model_examples
import quickstart_runs
from source_examples import Memory

from distill_sbs.checkpoint.description import RunDescription
from distill_sbs.convert.for_serving import write_for_serving
from distill_sbs.data import sentencepiece_model, tokenizer
from distill_sbs.distributed import sharding
from distill_sbs.inference.student import Student
from distill_sbs.model.network import Transformer
from distill_sbs.serving.answering import Answerer

# One word problem's texts, of several lengths; the last is cut at 24 tokens.
TEXTS = [
    "Anna has 12 apples. She buys 7 more.",
    "Why?",
    "Is it so</s>It is not.",
    " ".join(["Anna has 12 apples."] * 9),
]


def make_source(vocabulary: str = "embedded", **changes: Any) -> Memory:
    """Random parameters, and what a run of ours says of itself."""
    description = sentencepiece_model.describe(vocabulary)
    source = Memory(**{"vocab_size": description["size"] + 21, **changes})
    source.location = "runs/tiny/checkpoints/40"
    source.description = RunDescription(
        student=source.config,
        vocabulary=description,
        mixture="tiny_dss_gpt",
        task_feature_lengths={"inputs": 24, "targets": 16},
        max_decode_tokens=9,
    )
    source.vocabulary = description
    return source


def assert_same_answers(source: Memory, folder: str, changes: dict[str, Any]) -> Answerer:
    """Labels and rationales of all texts are those of JAX, whatever is decoded beside them."""
    by_jax = as_jax_decodes(source, **changes, vocab_size=source.config.vocab_size)
    decoder = by_jax.decoder(batch_size=4)
    answerer = Answerer(folder, threads=1)
    for task in ("label", "rationale"):
        expected = by_jax.answer(TEXTS, task, decoder)
        assert [each.text for each in answerer.answer(TEXTS, task, 3)] == expected
        assert len(set(expected)) > 1
        ids = [by_jax.tokens(text, task).tolist() for text in TEXTS]
        assert [answerer.tokens(text, task)[0] for text in TEXTS] == ids
    return answerer


def export(source: Memory, folder: pathlib.Path, form: str, quantization: str = "float32") -> str:
    """The folder, written."""
    folder.mkdir()
    write_for_serving(source, str(folder), form, quantization=quantization)
    return str(folder)


def as_jax_decodes(source: Memory, **changes: Any) -> Student:
    """The student of `make_source`, as `infer` uses it."""
    _, params = model_examples.student(**changes)
    mesh = sharding.make_mesh(1, devices=jax.devices()[:1])
    description = source.description
    assert description is not None
    return Student(
        description,
        Transformer(source.config),
        jax.device_put(params, sharding.replicated(mesh)),
        tokenizer.from_description(description.vocabulary),
        mesh,
        source.location,
    )


class Server:
    """A server in a process of its own, on a free port."""

    def __init__(self, folder: str, *flags: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "distill_sbs.serve", f"--model={folder}", "--port=0", *flags],
            cwd=quickstart_runs.ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None and self.process.stderr is not None
        self.said = self.process.stdout.readline()
        assert " answers at http://127.0.0.1:" in self.said, self.process.stderr.read()
        self.url = self.said.split(" answers at ")[1].split(";")[0]
        self.port = int(self.url.rpartition(":")[2])

    def ask(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of an answer."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            given = {"Content-Type": "application/json", **headers} if body is not None else headers
            connection.request(method, path, body, given)
            answer = connection.getresponse()
            names = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, names, answer.read()

    def end(self) -> tuple[int, str, str]:
        """After SIGTERM: exit status, and what else it said on both streams."""
        self.process.terminate()
        said, complained = self.process.communicate(timeout=60)
        return self.process.returncode, said, complained


@contextlib.contextmanager
def serve(folder: str, *flags: str) -> Iterator[Server]:
    """A server that is gone afterwards."""
    server = Server(folder, *flags)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
            server.process.communicate()


def wait_until(condition: Any, seconds: float = 60.0) -> None:
    """Until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.02)
