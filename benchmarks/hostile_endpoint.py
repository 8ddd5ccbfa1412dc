r"""`extract` against an endpoint that answers in every wrong form, killed on the way.

    python benchmarks/hostile_endpoint.py --examples=2000

Enters: a number of examples. Leaves: what was lost, doubled or wrong (nothing, or status 1), how
the runs ended, time and peak memory. A real server on 127.0.0.1 in a process of its own
(`tests/helpers/scripted_teacher.py`); the forms are those of `tests/helpers/hostile_answers.py`.
"""

from __future__ import annotations

import argparse
import collections
import json
import pathlib
import random
import re
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[1]
sys.path += [str(ROOT), str(ROOT / "tests" / "helpers")]

import hostile_answers  # noqa: E402  (beside the tests)
import teacher_server  # noqa: E402

KEY = hostile_answers.KEY
MOST_RUNS = 60


def make_command(folder: pathlib.Path, url: str) -> list[str]:
    """The command that is given again and again."""
    command = [sys.executable, "-m", "distill_sbs.extract", "--task=wordproblems"]
    command += [f"--input={folder / 'in.jsonl'}", f"--output={folder / 'out.jsonl'}"]
    return [*command, f"--base_url={url}", "--model=scripted", "--timeout_seconds=20"]


def run_until_complete(folder: pathlib.Path, url: str, kills: int, examples: int) -> dict:
    """Gives the command until it ends with status 0; the first `kills` runs are killed."""
    out = folder / "out.jsonl"
    ended: collections.Counter[str] = collections.Counter()
    printed = []
    draw = random.Random(0)
    environment = {"PYTHONPATH": str(ROOT), "OPENAI_API_KEY": KEY, "PATH": "/usr/bin:/bin"}
    for run in range(MOST_RUNS):
        process = subprocess.Popen(
            make_command(folder, url),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        lines = out.read_bytes().count(b"\n") if out.exists() else 0
        goal = lines + draw.uniform(0.2, 0.4) * examples / max(kills, 1)
        if ended["killed"] < kills:
            while process.poll() is None:
                if out.exists() and out.read_bytes().count(b"\n") >= goal:
                    process.kill()
                    break
                time.sleep(0.02)
        text, _ = process.communicate()
        printed.append(text)
        status = process.returncode
        ended["killed" if status < 0 else f"status {status}"] += 1
        if status == 0:
            return {"runs": run + 1, "ended": dict(ended), "printed": printed}
        if status not in (-9, 2):
            raise SystemExit(f"run {run + 1} ended with status {status}:\n{text}")
    raise SystemExit(f"not complete after {MOST_RUNS} runs:\n{printed[-1]}")


def find_mistakes(folder: pathlib.Path, examples: tuple, share: float) -> list[str]:
    """What is lost, doubled or wrong in the output file."""
    rows = [json.loads(line) for line in (folder / "out.jsonl").read_bytes().splitlines()]
    mistakes = []
    counts = collections.Counter(row["id"] for row in rows)
    mistakes += [f"{row_id}: {count} lines" for row_id, count in counts.items() if count > 1]
    by_id = {row["id"]: row for row in rows}
    for example in examples:
        form = hostile_answers.choose_form(example.input, share, seed=0)
        row = by_id.get(example.id)
        label = example.teacher_outputs["template"].label
        if row is None:
            mistakes.append(f"{example.id} ({form}): lost")
        elif form in hostile_answers.FAILURES:
            if not row.get("error") or row["label"] is not None:
                mistakes.append(f"{example.id} ({form}): not marked as failed")
        elif form in hostile_answers.UNPARSED:
            if row.get("error") or row["label"] is not None or row["rationale"] is not None:
                mistakes.append(f"{example.id} ({form}): {row.get('error') or row['label']!r}")
        elif row.get("error") or row["label"] != label:
            mistakes.append(f"{example.id} ({form}): {row.get('error') or row['label']!r}")
        elif min(row["usage"]["prompt_tokens"], row["usage"]["completion_tokens"]) < 1:
            mistakes.append(f"{example.id} ({form}): {row['usage']}")
    everything = "".join(
        path.read_text("utf-8")
        for path in folder.rglob("*")
        if path.name != "answers.jsonl" and path.is_file()
    )
    if hostile_answers.THOUGHT in json.dumps([row["rationale"] for row in rows]):
        mistakes.append("a thought stands in a rationale")
    keys = (KEY, KEY.replace("-", "%2D"))
    return [
        *mistakes,
        *(["the key stands in a file"] if any(key in everything for key in keys) else []),
    ]


def run_campaign(folder: pathlib.Path, count: int, share: float, kills: int) -> dict:
    """Runs the campaign; returns its figures, `mistakes` among them."""
    examples = teacher_server.problems(count)
    teacher_server.write_inputs(folder / "in.jsonl", examples)
    answers = teacher_server.write_answers(folder / "answers.jsonl", examples)
    log = folder / "served.jsonl"
    started = time.monotonic()
    options = (f"--key={KEY}", f"--hostile={share}", f"--log={log}", "--seconds=0.01")
    with teacher_server.running(answers, *options) as server:
        figures = run_until_complete(folder, server.url, kills, count)
        figures["server"] = server.stop()
    figures["seconds"] = time.monotonic() - started
    text = "".join(figures["printed"])
    found = re.findall(r"peak memory *│ *([\d,]+) MiB", text)
    figures["peak_mib"] = max(int(each.replace(",", "")) for each in found)
    figures["mistakes"] = find_mistakes(folder, examples, share)
    figures["tracebacks"] = text.count("Traceback")
    forms = (hostile_answers.choose_form(each.input, share, seed=0) for each in examples)
    figures["forms"] = collections.Counter(form for form in forms if form)
    if KEY in text or "\x1b" in text:
        figures["mistakes"].append("the key or an escape sequence was printed")
    return figures


def main() -> int:
    """Runs the campaign and prints its figures; status 1 if anything was lost or doubled."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--examples", type=int, default=2_000)
    parser.add_argument("--share", type=float, default=0.7, help="of inputs with a wrong form")
    parser.add_argument("--kills", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = run_campaign(pathlib.Path(folder), options.examples, options.share, options.kills)
    print(figures["printed"][-1])
    kinds = {
        "answers": hostile_answers.ANSWERS,
        "responses without a label": hostile_answers.UNPARSED,
        "failures": hostile_answers.FAILURES,
        "hiccups": hostile_answers.HICCUPS,
    }
    for name, kind in kinds.items():
        count = sum(figures["forms"][form] for form in kind)
        print(f"{count:,} inputs in {len(kind)} forms of {name}")
    stops = {form: figures["forms"][form] for form in hostile_answers.STOPS}
    print(f"ends of the run, each mended before the next: {stops}")
    print(f"{figures['runs']} runs: {figures['ended']}; tracebacks: {figures['tracebacks']}")
    print(f"server: {figures['server']}")
    print(f"{figures['seconds']:.0f} s, at most {figures['peak_mib']} MiB")
    print(f"lost, doubled or wrong: {figures['mistakes'] or 'nothing'}")
    return 1 if figures["mistakes"] or figures["tracebacks"] else 0


if __name__ == "__main__":
    sys.exit(main())
