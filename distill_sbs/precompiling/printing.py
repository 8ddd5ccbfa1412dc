"""The table of a precompilation, for people.

Enters: what `precompile` returned. Leaves: memory, traffic, times and advice on the console.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rich.table import Table

from distill_sbs.cli import terminal
from distill_sbs.precompiling.chips import GIB
from distill_sbs.precompiling.report import Operation, Precompilation

_WIDTH_OFF_TERMINAL = 110  # a file need not fold it


def _gib(size: float | None) -> str:
    if size is None:
        return "–"
    if size == float("inf"):
        return "more than there is"
    if size < 0.1 * GIB:
        return f"{size / 2**20:,.1f} MiB"
    return f"{size / GIB:,.2f} GiB"


def _scale(value: float, unit: str) -> str:
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= factor:
            return f"{value / factor:,.2f} {prefix}{unit}"
    return f"{value:,.0f} {unit}"


def _milliseconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds * 1e3:,.2f} ms"


def _operations_table(operations: list[Operation]) -> Table:
    table = terminal.make_table(
        *("operation", "runs", "FLOPs", "accessed", "in HBM"),
        title="operations of the training step that access most bytes",
        right_from=1,
    )
    for each in operations:
        terminal.add_row(
            table,
            each["name"],
            f"{each['runs']:,.0f}",
            _scale(each["flops"], "FLOP"),
            _scale(each["bytes_accessed"], "B"),
            _scale(each["hbm_bytes_accessed"], "B"),
        )
    return table


def print_table(result: Precompilation, to_standard_error: bool = False) -> None:
    """Prints what `precompile` returned, for people."""
    mesh = result["mesh"]
    decode = result["decode"]
    table = terminal.make_table(
        *("per chip", "training step", "decoding"),
        title=f"{result['student']} on {result['topology'] or 'the devices at hand'}: "
        f"{result['chips']} × {result['chip']}",
        right_from=1,
    )

    def row(name: str, form: Callable[[Any], str], *keys: str) -> None:
        cells = []
        for source in (result, decode):
            value: Any = source
            for key in keys:
                value = value.get(key) if isinstance(value, Mapping) else None
            cells.append("–" if value is None else form(value))
        if cells != ["–", "–"]:
            terminal.add_row(table, name, *cells)

    axes = f"{mesh['data']} data × {mesh['model']} model"
    if mesh["slice"] > 1:
        axes = f"{mesh['slice']} slices × {axes}"
    parts = result["num_microbatches"]
    rows = f"{result['rows']} × ({result['input_tokens']} + {result['target_tokens']})"
    terminal.add_row(table, "mesh", axes + (", FSDP" if result["fsdp"] else ""), "")
    terminal.add_row(
        table,
        "rows × (input + target tokens), unpacked",
        rows + (f" in {parts} microbatches" if parts > 1 else ""),
        f"{decode['rows']} × ({result['input_tokens']} + {decode['tokens']})" if decode else "",
    )
    terminal.add_row(
        table,
        "layers",
        f"{'scanned' if result['scan_layers'] else 'unrolled'}, remat {result['remat_policy']}",
        "",
        end_section=True,
    )
    row("parameters", _gib, "bytes", "parameters")
    row("optimizer state", _gib, "bytes", "optimizer")
    row("arguments (those, and the batch)", _gib, "bytes", "arguments")
    row("temporaries (activations, gradients)", _gib, "bytes", "temporaries")
    terminal.add_row(
        table,
        "results, program",
        *(
            " + ".join(_gib(each["bytes"][name]) for name in ("outputs", "program"))
            if each and each["bytes"]["outputs"] is not None
            else "–"
            for each in (result, decode)
        ),
    )
    row("needed in all", _gib, "bytes", "total")
    hbm = "–" if result["hbm_bytes"] is None else _gib(result["hbm_bytes"])
    terminal.add_row(
        table, "there is (of it for programs)", f"{hbm} ({_gib(result['available_bytes'])})", ""
    )
    fits = {True: "yes", False: "NO", None: "nobody knows this device's memory"}
    terminal.add_row(table, "fits", fits[result["fits"]], "", end_section=True)
    row("FLOPs of matrix products", lambda value: _scale(value, "FLOP"), "flops")
    row("bytes accessed", lambda value: _scale(value, "B"), "bytes_accessed")
    row("… of them in HBM", lambda value: _scale(value, "B"), "hbm_bytes_accessed")
    kinds = {
        *result.get("collective_bytes", {}),
        *(decode.get("collective_bytes", {}) if decode else {}),
    }
    for kind in sorted(kinds):
        row(f"{kind} operands", lambda value: _scale(value, "B"), "collective_bytes", kind)
    row("time: arithmetic", _milliseconds, "compute_seconds")
    row("time: HBM", _milliseconds, "memory_seconds")
    row("time: interconnect, at least", _milliseconds, "interconnect_seconds")
    row("roofline (arithmetic, HBM)", _milliseconds, "roofline_seconds")
    row("limited by", str, "limited_by")
    row("MFU at most", lambda value: f"{value:.1%}", "mfu_bound")
    row("compile time", lambda value: f"{value:.1f} s", "compile_seconds")
    console = terminal.make_console(to_standard_error)
    if not console.is_terminal:
        console.width = _WIDTH_OFF_TERMINAL
    console.print(table)
    if result["operations"]:
        console.print(_operations_table(result["operations"]))
    lines = []
    for each in (result, decode):
        if each and each.get("refusal"):
            lines.append(f"does not fit: {each['refusal']}")
        if each and each.get("unreadable"):
            lines.append(f"FLOPs and traffic not counted, no text of it: {each['unreadable']}")
    if result["advice"]:
        lines += ["To change, one or more of:", *(f"  {text}" for text in result["advice"])]
    for line in lines:
        terminal.say(line, to_standard_error)
