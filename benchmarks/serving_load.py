"""Many clients at once ask a server, which is ended while they do: is anything lost?

    python benchmarks/serving_load.py --model=served --inputs=in.jsonl --seconds=20 --clients=16

Enters: a folder of `convert --to=ctranslate2`; JSON lines with an "input". Leaves: one JSON object
on standard output. A server is started, asked over loopback by clients that keep their connections,
and sent SIGTERM while they go on. A request is lost if its bytes were taken and no answer came.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from http.client import BadStatusLine, HTTPConnection, RemoteDisconnected

from absl import app, flags

_MODEL = flags.DEFINE_string("model", None, "The folder that is served.", required=True)
_INPUTS = flags.DEFINE_string("inputs", None, "JSON lines with an input.", required=True)
_SECONDS = flags.DEFINE_float("seconds", 20.0, "Before SIGTERM.")
_CLIENTS = flags.DEFINE_integer("clients", 16, "That ask at once.")
_FLAGS = flags.DEFINE_multi_string("server_flag", [], "Further flags of serve.")

Expected = Mapping[str, tuple[str, str]]


@dataclasses.dataclass
class Outcome:
    """What became of the requests of all clients.

    Attributes:
      right: answered, and as the student alone answers.
      wrong: answered otherwise.
      busy: answered 503: too many inputs wait.
      refused: no connection was to be had, so nothing was sent.
      lost: sent, and no whole answer came.
      seconds: of each request that was answered.
    """

    right: int = 0
    wrong: int = 0
    busy: int = 0
    refused: int = 0
    lost: int = 0
    seconds: list[float] = dataclasses.field(default_factory=list)


def ask_until_refused(
    port: int, expected: Expected, seed: int, outcome: Outcome, lock: threading.Lock
) -> None:
    """One client: asks one to four inputs at a time until no connection is to be had.

    Args:
      port: of the server on loopback.
      expected: input → label and rationale.
      seed: of what is asked in which order.
      outcome: counts.
      lock: of the counts.
    """
    generator = random.Random(seed)
    texts = sorted(expected)
    connection: HTTPConnection | None = None
    while True:
        asked = generator.choices(texts, k=generator.randint(1, 4))
        path = generator.choice(["/answer", "/explain"])
        started = time.monotonic()
        if connection is None:
            connection = HTTPConnection("127.0.0.1", port, timeout=120)
            try:
                connection.connect()
            except ConnectionError:
                with lock:
                    outcome.refused += 1
                return
        try:
            body = json.dumps({"inputs": asked})
            connection.request("POST", path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            said = json.loads(answer.read())
        except (ConnectionError, RemoteDisconnected, BadStatusLine, ValueError):
            with lock:
                outcome.lost += 1
            connection = None
            continue
        with lock:
            if answer.status == 503:
                outcome.busy += 1
            elif answer.status == 200 and _is_right(said["answers"], asked, path, expected):
                outcome.right += 1
                outcome.seconds.append(time.monotonic() - started)
            else:
                outcome.wrong += 1
        if answer.will_close:
            connection.close()
            connection = None


def _is_right(
    answers: Sequence[Mapping[str, str]], asked: Sequence[str], path: str, expected: Expected
) -> bool:
    found = [(each["label"], each.get("rationale")) for each in answers]
    wanted = [
        (expected[text][0], expected[text][1] if path == "/explain" else None) for text in asked
    ]
    return found == wanted


def load(
    process: subprocess.Popen, port: int, expected: Expected, clients: int, seconds: float
) -> tuple[Outcome, float]:
    """Lets clients ask, and ends the server meanwhile; returns the counts and how long it took.

    Args:
      process: the server.
      port: its.
      expected: input → label and rationale.
      clients: that ask at once.
      seconds: before SIGTERM.
    """
    outcome, lock = Outcome(), threading.Lock()
    threads = [
        threading.Thread(target=ask_until_refused, args=(port, expected, seed, outcome, lock))
        for seed in range(clients)
    ]
    for thread in threads:
        thread.start()
    time.sleep(seconds)
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.wait(120)
    took = time.monotonic() - started
    for thread in threads:
        thread.join(120)
    return outcome, took


def main(_: Sequence[str]) -> None:
    """Measures, and prints."""
    from distill_sbs.serving.answering import Answerer

    with open(_INPUTS.value, encoding="utf-8") as file:
        texts = sorted({json.loads(line)["input"] for line in itertools.islice(file, 100)})
    answerer = Answerer(_MODEL.value)
    labels, rationales = (answerer.answer(texts, task) for task in ("label", "rationale"))
    expected = {
        text: (label.text, rationale.text)
        for text, label, rationale in zip(texts, labels, rationales, strict=True)
    }
    del answerer
    command = [sys.executable, "-m", "distill_sbs.serve", f"--model={_MODEL.value}", "--port=0"]
    started = time.monotonic()
    process = subprocess.Popen([*command, *_FLAGS.value], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    port = int(process.stdout.readline().split(";")[0].rpartition(":")[2])
    start_seconds = time.monotonic() - started
    outcome, end_seconds = load(process, port, expected, _CLIENTS.value, _SECONDS.value)
    ordered = sorted(outcome.seconds)
    counts = {name: value for name, value in vars(outcome).items() if name != "seconds"}
    print(
        json.dumps(
            counts
            | {
                "clients": _CLIENTS.value,
                "requests_per_second": round(outcome.right / _SECONDS.value, 1),
                "p50_ms": round(1000 * ordered[len(ordered) // 2], 1),
                "p95_ms": round(1000 * ordered[int(0.95 * len(ordered))], 1),
                "start_seconds": round(start_seconds, 2),
                "end_seconds": round(end_seconds, 2),
                "exit_status": process.returncode,
                "said": process.stdout.read().strip(),
            }
        )
    )


if __name__ == "__main__":
    app.run(main)
