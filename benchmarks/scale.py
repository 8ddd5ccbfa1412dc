"""Fills docs/scale.jsonl: `precompile` for every row of docs/scale.md, one at a time.

    python benchmarks/scale.py                 # compiles what has no result yet
    python benchmarks/scale.py --seconds=900   # … until 15 minutes have passed
    python benchmarks/scale.py --only='xxl v4' # … of one size and slice
    python benchmarks/scale.py --print         # the tables of docs/scale.md

Enters: nothing. Leaves: one JSON line a run in docs/scale.jsonl, what `precompile --json` printed
with the arguments beside it. Runs that are there already are not repeated; delete a line to repeat
it. Each takes minutes on two cores and about 2 GB of memory; no TPU.
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
import subprocess
import sys
import time
from typing import Any

from distill_sbs.precompiling.chips import TPUS

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "scale.jsonl"

# Table, size, topology, further bindings.
MUST_SHOW = [
    ("shown", "xxl", "v5e:16x16", {}),
    ("shown", "xxl", "v4:4x4x4", {}),
    ("shown", "base", "v5e:2x4", {}),
]
FULL_REMAT = {"dtype": "bfloat16", "scan_layers": True, "remat_policy": "full"}
# What is too small, and the smallest that is large enough; what is the smallest on offer stands
# alone. In as many microbatches as that may need.
SLICES = [
    ("slices", "xxl", "v4:2x2x1", {}),
    ("slices", "xxl", "v4:2x2x2", {"NUM_MICROBATCHES": 16}),
    ("slices", "xxl", "v5e:2x4", {"NUM_MICROBATCHES": 32}),
    ("slices", "xxl", "v5e:4x4", {"NUM_MICROBATCHES": 8}),
    ("slices", "xxl", "v5p:2x2x1", {"NUM_MICROBATCHES": 8}),
    ("slices", "xxl", "v6e:2x2", {"NUM_MICROBATCHES": 32}),
    ("slices", "xxl", "v6e:2x4", {"NUM_MICROBATCHES": 16}),
    ("slices", "base", "v4:2x2x1", {}),
    ("slices", "base", "v5e:1x1", {"NUM_MICROBATCHES": 8}),
    ("slices", "base", "v5p:2x2x1", {}),
    ("slices", "base", "v6e:1x1", {"NUM_MICROBATCHES": 8}),
    ("slices", "xl", "v4:2x2x1", {"NUM_MICROBATCHES": 2}),
    ("slices", "xl", "v5e:1x1", {}),
    ("slices", "xl", "v5e:2x2", {"NUM_MICROBATCHES": 8}),
    ("slices", "xl", "v5e:2x2", {"STUDENT_OVERRIDES": FULL_REMAT, "NUM_MICROBATCHES": 16}),
    ("slices", "xl", "v5p:2x2x1", {}),
    ("slices", "xl", "v6e:1x1", {}),
    ("slices", "xl", "v6e:2x2", {"NUM_MICROBATCHES": 2}),
    ("slices", "large", "v4:2x2x1", {"NUM_MICROBATCHES": 2}),
    ("slices", "large", "v5e:1x1", {"STUDENT_OVERRIDES": FULL_REMAT, "NUM_MICROBATCHES": 128}),
    ("slices", "large", "v5e:2x2", {"NUM_MICROBATCHES": 4}),
    ("slices", "large", "v5p:2x2x1", {}),
    ("slices", "large", "v6e:1x1", {"NUM_MICROBATCHES": 16}),
    # What the gin files are meant for.
    ("slices", "xl", "v5e:4x8", {}),
]
# 64 rows leave at most 64 parts to the data axis.
MESHES = [
    *(
        ("meshes", "xxl", "v5e:16x16", {"NUM_MODEL_PARTITIONS": partitions})
        for partitions in (4, 8, 16)
    ),
    *(("meshes", "xxl", "v4:4x4x4", {"NUM_MODEL_PARTITIONS": partitions}) for partitions in (1, 4)),
]
RUNS = [*MUST_SHOW, *SLICES, *MESHES]


def arguments_of(table: str, size: str, slice_name: str, bindings: dict[str, Any]) -> list[str]:
    """The command line of one run."""
    return [
        # What is asked of these is the training step; decoding is compiled for the others.
        *(["--nodecoding"] if table != "shown" else []),
        f"--gin_file=gin/experiments/cqa_dss_{size}.gin",
        f"--gin.TOPOLOGY='{slice_name}'",
        *(f"--gin.{name}={value!r}" for name, value in bindings.items()),
    ]


def read_results() -> dict[str, dict[str, Any]]:
    """Arguments, joined → result."""
    if not RESULTS.exists():
        return {}
    lines = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    return {" ".join(line["arguments"]): line for line in lines}


def fill(seconds: float, only: str, programs: str | None) -> None:
    """Compiles what is missing, in order, starting nothing new after `seconds`."""
    start = time.monotonic()
    done = read_results()
    for number, (table, size, slice_name, bindings) in enumerate(RUNS, start=1):
        arguments = arguments_of(table, size, slice_name, bindings)
        if " ".join(arguments) in done:
            continue
        if not set(only.split()) <= {table, size, slice_name}:
            continue
        if time.monotonic() - start > seconds:
            print("out of time; the same command continues", file=sys.stderr)
            return
        print(f"{number}/{len(RUNS)} {size} {slice_name} {bindings}", file=sys.stderr, flush=True)
        folder = "_".join([table, size, slice_name.replace(":", "_"), *map(str, bindings.values())])
        keep = [f"--programs={pathlib.Path(programs) / folder}"] if programs else []
        finished = subprocess.run(
            [sys.executable, "-m", "distill_sbs.precompile", "--json", *arguments, *keep],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        if not finished.stdout:
            print(finished.stderr, file=sys.stderr)
            continue
        result = {"arguments": arguments, "exit_status": finished.returncode, "table": table}
        result |= json.loads(finished.stdout)
        with RESULTS.open("a") as file:
            file.write(json.dumps(result, ensure_ascii=False) + "\n")


SMALLEST_HEADER = "| size | v4 | v5e | v5p | v6e |"
HEADER = (
    "| size | slice | chips | flags | mesh (data × model) | GiB needed / there is | fits "
    "| TFLOP | HBM GB | link GB | time at least, ms (limit) | MFU at most | compiled in |"
)


def print_tables() -> None:
    """Prints the tables of docs/scale.md; what has no result says so."""
    done = read_results()
    print("\n### smallest\n")
    print(f"{SMALLEST_HEADER}\n{'| --- ' * SMALLEST_HEADER[2:].count('|')}|")
    for size in ("base", "large", "xl", "xxl"):
        cells = [_smallest(size, generation, done) for generation in ("v4", "v5e", "v5p", "v6e")]
        print(f"| {' | '.join([size, *cells])} |")
    for table in ("shown", "slices", "meshes"):
        print(f"\n### {table}\n")
        print(f"{HEADER}\n{'| --- ' * HEADER[2:].count('|')}|")
        for run in RUNS:
            if run[0] == table:
                print(_row(*run, done.get(" ".join(arguments_of(*run)))))


def _smallest(size: str, generation: str, done: dict[str, dict[str, Any]]) -> str:
    """The smallest slice that a result says to fit, where the next smaller one is known not to."""
    shapes = TPUS[generation][1]
    fits: dict[str, bool] = {}
    for run in RUNS:
        its_generation, _, shape = run[2].partition(":")
        result = done.get(" ".join(arguments_of(*run)))
        if run[1] == size and its_generation == generation and result:
            fits[shape] = fits.get(shape, False) or result["fits"]
    enough = [shape for shape in shapes if fits.get(shape)]
    if not enough:
        too_small = [shape for shape in shapes if fits.get(shape) is False]
        return f"not run; larger than {too_small[-1]}" if too_small else "not run"
    before = shapes[: shapes.index(enough[0])]
    chips = math.prod(int(side) for side in enough[0].split("x"))
    proved = not before or fits.get(before[-1]) is False
    return f"{enough[0]} ({chips})" + ("" if proved else f" fits, {before[-1]} not run")


def _row(
    table: str, size: str, slice_name: str, bindings: dict[str, Any], result: dict[str, Any] | None
) -> str:
    flags = ["--nodecoding"] if table != "shown" else []
    flags += [
        f"--gin.{name}={value if isinstance(value, int) else repr(str(value))}"
        for name, value in bindings.items()
    ]
    cells = [
        size,
        slice_name,
        str(math.prod(int(side) for side in slice_name.partition(":")[2].split("x"))),
        " ".join(f"`{flag}`" for flag in flags),
    ]
    if result is None:
        return f"| {' | '.join(cells)} |{' not run |' * 9}"
    gib = 2**30
    needed = [each["bytes"]["total"] for each in (result, result["decode"]) if each]
    there_is = f"{result['available_bytes'] / gib:.2f}"
    cells += [
        f"{result['mesh']['data']} × {result['mesh']['model']}"
        + (", FSDP" if result["fsdp"] else ""),
        f"{max(needed) / gib:.2f} / {there_is}" if None not in needed else f"– / {there_is}",
        "yes" if result["fits"] else "**no**",
    ]
    cells.append(f"{result['flops'] / 1e12:.2f}" if "flops" in result else "–")
    if "link_bytes" in result:
        cells += [
            f"{result['hbm_bytes_accessed'] / 1e9:.1f}",
            f"{result['link_bytes'] / 1e9:.2f}",
            f"{result['step_seconds_at_least'] * 1e3:.0f} ({result['limited_by']})",
            f"{result['mfu_bound']:.0%}",
        ]
    else:
        not_counted = result["refusal"] or result.get("unreadable")
        cells += ["–" if not_counted else "not run"] * 4
    seconds = [each["compile_seconds"] for each in (result, result["decode"]) if each]
    return f"| {' | '.join(cells)} | {' + '.join(f'{each:.0f}' for each in seconds)} s |"


def main() -> None:
    """Fills or prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--print", action="store_true", help="print the tables, compile nothing")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start nothing after")
    parser.add_argument("--only", default="", help="words of table, size and slice")
    parser.add_argument("--programs", help="a folder for the texts of the compiled programs")
    options = parser.parse_args()
    if options.print:
        print_tables()
    else:
        fill(options.seconds, options.only, options.programs)


if __name__ == "__main__":
    main()
