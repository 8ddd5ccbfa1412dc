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
import pathlib
import subprocess
import sys
import time
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "scale.jsonl"

# Table, size, topology, further bindings.
MUST_SHOW = [
    ("shown", "xxl", "v5e:16x16", {}),
    ("shown", "xxl", "v4:4x4x4", {}),
    ("shown", "base", "v5e:2x4", {}),
    (
        "shown",
        "base",
        "v5e:2x4",
        {"STUDENT_OVERRIDES": {"dtype": "bfloat16", "scan_layers": True, "remat_policy": "none"}},
    ),
]
# What is too small, and the smallest that is large enough; what is the smallest on offer stands
# alone. In as many microbatches as that may need.
SLICES = [
    ("slices", "xxl", "v4:2x2x1", {}),
    ("slices", "xxl", "v4:2x2x2", {"NUM_MICROBATCHES": 4}),
    ("slices", "xxl", "v5e:2x4", {"NUM_MICROBATCHES": 32}),
    ("slices", "xxl", "v5e:4x4", {"NUM_MICROBATCHES": 4}),
    ("slices", "xxl", "v5p:2x2x1", {"NUM_MICROBATCHES": 4}),
    ("slices", "xxl", "v6e:2x2", {"NUM_MICROBATCHES": 32}),
    ("slices", "xxl", "v6e:2x4", {"NUM_MICROBATCHES": 4}),
    ("slices", "base", "v4:2x2x1", {}),
    ("slices", "base", "v5e:1x1", {"NUM_MICROBATCHES": 16}),
    ("slices", "base", "v5p:2x2x1", {}),
    ("slices", "base", "v6e:1x1", {"NUM_MICROBATCHES": 8}),
    ("slices", "xl", "v4:2x2x1", {"NUM_MICROBATCHES": 2}),
    ("slices", "xl", "v5e:1x1", {}),
    ("slices", "xl", "v5e:2x2", {"NUM_MICROBATCHES": 8}),
    ("slices", "xl", "v5p:2x2x1", {}),
    ("slices", "xl", "v6e:1x1", {}),
    ("slices", "xl", "v6e:2x2", {"NUM_MICROBATCHES": 2}),
    ("slices", "large", "v4:2x2x1", {"NUM_MICROBATCHES": 2}),
    ("slices", "large", "v5e:1x1", {"NUM_MICROBATCHES": 64}),
    ("slices", "large", "v5e:2x2", {"NUM_MICROBATCHES": 4}),
    ("slices", "large", "v5p:2x2x1", {}),
    ("slices", "large", "v6e:1x1", {"NUM_MICROBATCHES": 16}),
]
# 64 rows leave at most 64 parts to the data axis.
MESHES = [
    *(
        ("meshes", "xxl", "v5e:16x16", {"NUM_MODEL_PARTITIONS": partitions})
        for partitions in (8, 16)
    ),
    *(("meshes", "xxl", "v4:4x4x4", {"NUM_MODEL_PARTITIONS": partitions}) for partitions in (1, 8)),
]
RUNS = [*MUST_SHOW, *SLICES, *MESHES]


def arguments_of(table: str, size: str, topology: str, bindings: dict[str, Any]) -> list[str]:
    """The command line of one run."""
    return [
        # What is asked of these is the training step; decoding is compiled for the others.
        *(["--nodecoding"] if table != "shown" else []),
        f"--gin_file=gin/experiments/cqa_dss_{size}.gin",
        f"--gin.TOPOLOGY='{topology}'",
        *(f"--gin.{name}={value!r}" for name, value in bindings.items()),
    ]


def read_results() -> dict[str, dict[str, Any]]:
    """Arguments, joined → result."""
    if not RESULTS.exists():
        return {}
    lines = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    return {" ".join(line["arguments"]): line for line in lines}


def fill(seconds: float, only: str) -> None:
    """Compiles what is missing, in order, starting nothing new after `seconds`."""
    start = time.monotonic()
    done = read_results()
    for number, (table, size, topology, bindings) in enumerate(RUNS, start=1):
        arguments = arguments_of(table, size, topology, bindings)
        if " ".join(arguments) in done:
            continue
        if not set(only.split()) <= {table, size, topology, topology.partition(":")[0]}:
            continue
        if time.monotonic() - start > seconds:
            print("out of time; the same command continues", file=sys.stderr)
            return
        print(f"{number}/{len(RUNS)} {size} {topology} {bindings}", file=sys.stderr, flush=True)
        finished = subprocess.run(
            [sys.executable, "-m", "distill_sbs.precompile", "--json", *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        if finished.returncode not in (0, 1):
            print(finished.stderr, file=sys.stderr)
            continue
        result = {"arguments": arguments, "exit_status": finished.returncode, "table": table}
        result |= json.loads(finished.stdout)
        with RESULTS.open("a") as file:
            file.write(json.dumps(result, ensure_ascii=False) + "\n")


def command_of(result: dict[str, Any]) -> str:
    """What to type, quoted for a shell."""
    parts = []
    for argument in result["arguments"]:
        parts.append(f'"{argument}"' if "'" in argument else argument)
    return " ".join(parts).replace("--gin_file=gin/experiments/", "… ")


def print_tables() -> None:
    """Prints the rows of docs/scale.md that have a result, and names those that have none."""
    done = read_results()
    for table in ("shown", "slices", "meshes"):
        print(f"\n### {table}\n")
        print(
            "| size | slice | chips | mesh (data × model) | microbatches | GiB needed / available "
            "| fits | TFLOP | HBM GB | link GB | time at least, ms (limit) | MFU at most "
            "| compiled in |"
        )
        print("| --- " * 13 + "|")
        for its_table, size, topology, bindings in RUNS:
            if its_table != table:
                continue
            result = done.get(" ".join(arguments_of(table, size, topology, bindings)))
            if result is None:
                print(f"| {size} | {topology} {bindings or ''} |{' not run |' * 11}")
                continue
            print(_row(size, topology, result))


def _row(size: str, topology: str, result: dict[str, Any]) -> str:
    gib = 2**30
    needed = max(
        result["bytes"]["total"] or 0.0,
        (result["decode"] or {"bytes": {"total": 0.0}})["bytes"]["total"] or 0.0,
    )
    mesh = f"{result['mesh']['data']} × {result['mesh']['model']}"
    mesh += ", FSDP" if result["fsdp"] else ""
    if result["remat_policy"] == "none":
        mesh += ", no remat"
    cells = [
        size,
        topology,
        str(result["chips"]),
        mesh,
        str(result["num_microbatches"]),
        f"{needed / gib:.2f} / {result['available_bytes'] / gib:.2f}",
        "yes" if result["fits"] else "**no**",
    ]
    if "flops" in result:
        cells += [
            f"{result['flops'] / 1e12:.2f}",
            f"{result['hbm_bytes_accessed'] / 1e9:.1f}",
            f"{result['link_bytes'] / 1e9:.2f}",
            f"{result['step_seconds_at_least'] * 1e3:.0f} ({result['limited_by']})",
            f"{result['mfu_bound']:.0%}",
        ]
    else:
        cells += ["–"] * 5
    return "| " + " | ".join([*cells, f"{result['compile_seconds']:.0f} s"]) + " |"


def main() -> None:
    """Fills or prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--print", action="store_true", help="print the tables, compile nothing")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start nothing after")
    parser.add_argument("--only", default="", help="words of table, size and slice")
    options = parser.parse_args()
    if options.print:
        print_tables()
    else:
        fill(options.seconds, options.only)


if __name__ == "__main__":
    main()
