"""Half a million answers: how long `extract` and `prepare` take over them, and how much memory.

    python benchmarks/answer_index.py --examples=549367

Enters: a number of examples (the default is e-SNLI's training split). Leaves: for the index of
answers alone, for an `extract` that has 300 answers to go, for `extract --report` and for `prepare
--teacher_outputs` the CPU time and the peak memory, each in a process of its own. The rows are made
up, as long as e-SNLI's.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).parents[1]
sys.path += [str(ROOT), str(ROOT / "tests" / "helpers")]

import teacher_server  # noqa: E402  (beside the tests)

from distill_sbs.data.readers import responses  # noqa: E402  (beside this folder)

LABELS = ("( 1 + 2 )", "( 2 + 3 )", "( 3 * 4 )")
TO_GO = 300

TASK_FILE = """
from distill_sbs.data import metrics, registration
from distill_sbs.data.dataset import DatasetSpec
from distill_sbs.data.jsonl import JsonlReader

registration.register_dataset(
    DatasetSpec(
        name="pairs",
        reader=JsonlReader(train="pairs.jsonl", validation="few.jsonl", test="few2.jsonl"),
        is_correct=metrics.answers_match,
        teachers=(),
    )
)
"""


def make_examples(count: int, first: int = 0) -> Iterator[dict[str, str]]:
    """Inputs with gold labels."""
    for number in range(first, first + count):
        text = (
            f"Two people in shirt {number} stand at a market stall and look at the fruit that is on"
            f" sale. Hypothesis: somebody buys {number % 97} apples."
        )
        yield {"id": f"train-{number}", "input": text, "label": LABELS[number % 3]}


def write_lines(path: pathlib.Path, rows: Iterator[dict]) -> None:
    """JSON Lines."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def make_answers(count: int) -> Iterator[dict]:
    """What `extract` would have written, but for the first and the last ones."""
    for number, example in enumerate(make_examples(count - TO_GO - 1, 1), 1):
        rationale = (
            f"The people look at fruit, and looking is not buying {number % 97} of them, so nothing"
            " can be said of it."
        )
        label = example["label"]
        yield {
            "id": example["id"],
            "raw": f"{rationale} The answer is {label}.",
            "rationale": rationale,
            "label": label,
            "sample": 0,
            "model": "made-up",
            "usage": {"prompt_tokens": 700, "completion_tokens": 40},
            "finish_reason": "stop",
            "input_hash": responses.input_hash(example["input"]),
        }


def measure(name: str, arguments: list[str], environment: dict[str, str]) -> None:
    """Runs a command and prints what it took."""
    program = (
        "import os, resource, runpy, sys\n"
        "from distill_sbs.cli.peak_memory import peak_memory_mib\n"
        "import atexit\n"
        "atexit.register(lambda: print(f'PEAK {peak_memory_mib():.0f}', file=sys.stderr))\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)\n"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stdout}{done.stderr}")
    peak = done.stderr.rpartition("PEAK ")[2].split()[0]
    cpu = sum(after[:2]) - sum(before[:2])
    print(
        f"{name}: {cpu:.0f} s of CPU time ({time.monotonic() - started:.0f} s), {peak} MiB",
        flush=True,
    )


def measure_index(path: pathlib.Path) -> None:
    """The index alone, in this process: opened, and asked about every id once."""
    from distill_sbs.cli.peak_memory import peak_memory_mib

    before, started = peak_memory_mib(), time.process_time()
    index = responses.AnswerIndex([str(path)])
    opened = time.process_time()
    found = sum(len(index.answers(example["id"])) for example in make_examples(len(index)))
    assert found == len(index) and index.never_asked_for() == (0, [])
    print(
        f"index of {found:,} answers: {opened - started:.0f} s to open, "
        f"{time.process_time() - opened:.0f} s to ask for each, {peak_memory_mib() - before:.0f} "
        f"MiB more than the {before:.0f} MiB before"
    )
    index.close()


def main() -> int:
    """Makes the files, measures, and clears away."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--examples", type=int, default=549_367)
    parser.add_argument("--index", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.index:
        measure_index(pathlib.Path(options.index))
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write_lines(folder / "pairs.jsonl", make_examples(options.examples))
        write_lines(folder / "few.jsonl", make_examples(10, options.examples))
        write_lines(folder / "few2.jsonl", make_examples(10, options.examples + 10))
        (folder / "pairs.py").write_text(TASK_FILE)
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        answers = folder / "answers.jsonl"
        served = folder / "served.jsonl"
        first = itertools.chain(make_examples(1), make_examples(TO_GO, options.examples - TO_GO))
        said = "Looking is not buying. The answer is"
        write_lines(
            served,
            ({"input": each["input"], "answer": f"{said} {each['label']}."} for each in first),
        )
        extract = [sys.executable, "-m", "distill_sbs.extract", "--task=wordproblems"]
        extract += ["--model=made-up"]
        extract += [f"--output={answers}", f"--input={folder / 'pairs.jsonl'}"]
        with teacher_server.running(served) as server:
            extract.append(f"--base_url={server.url}")
            subprocess.run(
                [*extract, "--limit=1"], env=environment, check=True, capture_output=True
            )
            with answers.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in make_answers(options.examples))
            size = answers.stat().st_size / 2**20
            print(f"{options.examples - TO_GO:,} answers, {size:,.0f} MiB", flush=True)
            measure(f"extract, {TO_GO} to go", extract[2:], environment)
        subprocess.run(
            [sys.executable, __file__, f"--index={answers}"], env=environment, check=True
        )
        report = ["--report", "--task=wordproblems", f"--output={answers}"]
        report += [f"--input={folder / 'pairs.jsonl'}"]
        measure("extract --report", ["distill_sbs.extract", *report], environment)
        prepare = ["distill_sbs.prepare", "--dataset=pairs", f"--task_file={folder / 'pairs.py'}"]
        prepare += [f"--source_dir={folder}", f"--data_dir={folder / 'prepared'}"]
        measure("prepare", prepare, environment)
        prepare += ["--teacher=made_up", f"--teacher_outputs={answers}"]
        measure("prepare --teacher_outputs", prepare, environment)
    return 0


if __name__ == "__main__":
    sys.exit(main())
