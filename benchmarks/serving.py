"""Exports against our own decoding, on a test set: same answers, accuracy, latency, throughput.

    python -m distill_sbs.evaluate --checkpoint=runs/quickstart --split=test --output=test.jsonl
    python benchmarks/serving.py --inputs=test.jsonl --dataset=wordproblems runs/quickstart served …

Enters: what `evaluate --output` wrote (inputs with their prefix and gold labels); a run, then
folders of `convert --to=ctranslate2` or `--to=onnx`. Leaves: a table in Markdown on standard
output. Each is measured in a process of its own, in turn, several times; the median of these is
written. A batch of one is answered input by input; throughput is that of the whole test set at a
batch size of 32. Labels alone are timed, from text to text, by the clock and by the processors'
time, which says more where others compute beside.
"""

from __future__ import annotations

import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from absl import app, flags

_INPUTS = flags.DEFINE_string("inputs", None, "Of evaluate --output.", required=True)
_DATASET = flags.DEFINE_string("dataset", "wordproblems", "Whose answers are scored how.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Processes for each.")
_SINGLE = flags.DEFINE_integer("single", 200, "Inputs answered one by one.")
_THREADS = flags.DEFINE_list("threads", ["1", "2"], "Of the exports' libraries, one after another.")
_MEASURE = flags.DEFINE_string("measure", None, "Internal: what this process measures.")

_PREFIX = "predict: "
_BATCH_SIZE = 32
_WARM = 8
_PASSES = 3

Answer = Callable[[Sequence[str], str, int], list[str]]


def read_rows(path: str) -> list[dict[str, str]]:
    """The lines of `evaluate --output`, inputs without their prefix."""
    with open(path, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [{**row, "input": row["input"].removeprefix(_PREFIX)} for row in rows]


def open_student(folder: str, threads: int) -> Answer:
    """What answers (texts, task, batch size): JAX for a run, else the export's own library."""
    if (pathlib.Path(folder) / "student.json").exists():
        from distill_sbs.serving.answering import Answerer

        answerer = Answerer(folder, threads)
        return lambda texts, task, size: [each.text for each in answerer.answer(texts, task, size)]
    from distill_sbs.inference.student import Student

    student = Student.load(folder)
    decoders = {size: student.decoder(size) for size in (1, _BATCH_SIZE)}
    return lambda texts, task, size: student.answer(texts, task, decoders[size])


def measure(folder: str, threads: int, texts: Sequence[str], single: int) -> dict[str, object]:
    """Answers and times of one."""
    started = time.monotonic()
    answer = open_student(folder, threads)
    answer(texts[:_WARM], "label", 1)
    loaded = time.monotonic() - started
    labels = answer(texts, "label", _BATCH_SIZE)  # warms every width
    alone: list[float] = []
    for _ in range(2):  # the first time round compiles, with JAX
        alone.clear()
        of_processors = time.process_time()
        for text in texts[:single]:
            began = time.perf_counter()
            answer([text], "label", 1)
            alone.append(time.perf_counter() - began)
        of_processors = time.process_time() - of_processors
    alone.sort()
    together: list[tuple[float, float]] = []
    for _ in range(_PASSES):
        began = time.perf_counter(), time.process_time()
        assert answer(texts, "label", _BATCH_SIZE) == labels
        together.append((time.perf_counter() - began[0], time.process_time() - began[1]))
    took, took_of_processors = (statistics.median(each) for each in zip(*together, strict=True))
    return {
        "labels": labels,
        "rationales": answer(texts, "rationale", _BATCH_SIZE),
        "p50": 1000 * alone[len(alone) // 2],
        "p95": 1000 * alone[int(0.95 * len(alone))],
        "throughput": len(texts) / took,
        "processor_alone": 1000 * of_processors / single,
        "processor_together": 1000 * took_of_processors / len(texts),
        "loaded": loaded,
    }


def size_of(folder: str) -> float:
    """MiB of a folder's network."""
    paths = [
        path for pattern in ("*.bin", "*.onnx*") for path in pathlib.Path(folder).glob(pattern)
    ]
    return sum(path.stat().st_size for path in paths) / 2**20


def main(arguments: Sequence[str]) -> None:
    """Measures each in turn, and prints the table."""
    rows = read_rows(_INPUTS.value)
    texts = [row["input"] for row in rows]
    if _MEASURE.value:
        threads = int(_THREADS.value[0])
        print(json.dumps(measure(_MEASURE.value, threads, texts, _SINGLE.value)))
        return
    run, *folders = arguments[1:]
    every = [(run, "all"), *((folder, n) for folder in folders for n in _THREADS.value)]
    found: dict[tuple[str, str], list[dict]] = {each: [] for each in every}
    for _ in range(_ROUNDS.value):
        for (folder, threads), measured in found.items():
            command = [sys.executable, __file__, f"--measure={folder}", f"--inputs={_INPUTS.value}"]
            done = subprocess.run(
                [
                    *command,
                    f"--single={_SINGLE.value}",
                    f"--threads={threads if threads != 'all' else 0}",
                ],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            measured.append(json.loads(done.stdout.splitlines()[-1]))
            print(f"{folder}: {measured[-1]['p50']:.2f} ms", file=sys.stderr, flush=True)
    from distill_sbs.cli import quiet_tensorflow

    quiet_tensorflow.import_tensorflow()
    from distill_sbs.data import registration

    registration.load_task_files()
    is_correct = registration.DATASETS[_DATASET.value].is_correct
    reference = found[every[0]][0]
    print(f"{len(texts)} inputs, {len(os.sched_getaffinity(0))} processors, load average "
          f"{os.getloadavg()[0]:.1f}")  # fmt: skip
    print(
        "| | threads | same labels | same rationales | accuracy | p50 | p95 | processors | "
        "inputs/s at 32 | processors | start | size |"
    )
    print("| --- |" + " ---: |" * 11)
    for (folder, threads), measured in found.items():
        same = {
            name: sum(
                one == other for one, other in zip(measured[0][name], reference[name], strict=True)
            )
            for name in ("labels", "rationales")
        }
        right = sum(
            is_correct(row["label"], label)
            for row, label in zip(rows, measured[0]["labels"], strict=True)
        )
        values = {
            name: statistics.median(each[name] for each in measured)
            for name in measured[0]
            if name not in ("labels", "rationales")
        }
        size = "" if folder == run else f"{size_of(folder):.2f} MiB"
        print(
            f"| {pathlib.PurePath(folder).name} | {threads} | {same['labels']} | "
            f"{same['rationales']} | {right / len(rows):.1%} | {values['p50']:.2f} ms | "
            f"{values['p95']:.2f} ms | {values['processor_alone']:.2f} ms | "
            f"{values['throughput']:.0f} | {values['processor_together']:.2f} ms | "
            f"{values['loaded']:.1f} s | {size} |"
        )


if __name__ == "__main__":
    app.run(main)
