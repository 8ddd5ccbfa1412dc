"""`python -m distill_sbs.precompile`: does a run fit a TPU slice, and how fast could it be there?

    python -m distill_sbs.precompile --gin_file=gin/experiments/cqa_dss_base.gin \
      --gin.TOPOLOGY="'v5e:2x4'"

Enters: the gin files of a run, and TOPOLOGY. Leaves: a table on the console (with `--json` one JSON
object on standard output, the table on standard error), and exit status 0 where the run fits, 1
where it does not.

The real training step and the decoding step are compiled by the TPU's own compiler, on any machine;
no TPU, data or weights are needed. Without TOPOLOGY it compiles for the devices at hand.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from absl import flags

from distill_sbs.cli import command_line
from distill_sbs.config import PrecompileConfig
from distill_sbs.precompiling import topology as topologies

DESCRIPTION = "Compiles a run's steps for a TPU slice: whether it fits, and its roofline."
DOES_NOT_FIT_EXIT_STATUS = 1


# The learning rate's schedule is part of the program, its length changes nothing in it.
_SCHEDULE_STEPS = 10_000


def precompile(
    config: PrecompileConfig,
    *,
    decoding: bool = True,
    program_folder: pathlib.Path | None = None,
) -> dict[str, Any]:
    """Compiles, and returns what `--json` prints; sizes and times are of one chip and one step.

    The batch is laid out one sequence a row, every row as long as the feature lengths: what
    `PACK = False` trains on, and more than a packed batch of the same sequences takes.

    Args:
      config: the options that shape a run's programs.
      decoding: whether the decoding step is compiled once the training step is known to fit.
      program_folder: where the programs' texts go.

    Raises:
      UserError: something given cannot work; nothing was compiled.
    """
    topology, student = config.topology, config.student.name
    task_feature_lengths, batch_size = config.batch.task_feature_lengths, config.batch.batch_size
    num_microbatches, fsdp = config.mesh.num_microbatches, config.mesh.fsdp
    eval_batch_size = config.evaluation.eval_batch_size
    max_decode_tokens = config.evaluation.max_decode_tokens
    if topology is not None:
        topologies.parse(topology)
        topologies.use_compiler_only()
    import numpy as np

    from distill_sbs.data.batches import layout
    from distill_sbs.distributed import sharding
    from distill_sbs.inference import batch_decoder
    from distill_sbs.model import flops
    from distill_sbs.precompiling import compiled
    from distill_sbs.training import optimizer as optimizers
    from distill_sbs.training.program import training_program

    # ---------------------------------- checks ----------------------------------
    architecture = config.student.architecture()
    if topology is None:
        devices, chip = topologies.devices_at_hand()
    else:
        devices, chip = topologies.slice_devices(topology)
    mesh = sharding.make_mesh(config.mesh.num_model_partitions, devices, config.mesh.num_slices)
    sharding.check_batch_size(batch_size, num_microbatches, mesh)
    steps = max(_SCHEDULE_STEPS, config.optimizer.warmup_steps + 1)
    update = optimizers.make_optimizer(config.optimizer, steps)

    # ---------------------------------- program ---------------------------------
    program = training_program(
        architecture,
        update,
        mesh,
        objective=config.objective,
        fsdp=fsdp,
        num_microbatches=num_microbatches,
    )
    inputs, targets = (task_feature_lengths[name] for name in ("inputs", "targets"))
    batch = layout.empty_batch(layout.BatchShape(batch_size, inputs, targets))
    abstract_batch = sharding.with_shardings(
        batch, dict.fromkeys(batch, sharding.batch_sharding(mesh))
    )
    state_bytes = {
        name: sharding.bytes_per_device(tree, places)
        for name, tree, places in (
            ("parameters", program.state.params, program.shardings.params),
            ("optimizer", program.state.optimizer_state, program.shardings.optimizer_state),
        )
    }
    available = compiled.available_bytes(chip, devices, compile_only=topology is not None)
    per_chip = chip.devices if chip else 1

    # ---------------------------------- compile ---------------------------------
    def lower_step() -> Any:
        with sharding.rules(mesh):
            return program.step.lower(program.state, abstract_batch)

    def program_file(name: str) -> pathlib.Path | None:
        return program_folder / f"{name}.hlo" if program_folder else None

    decoder = batch_decoder.Decoder(program.model, mesh, max_decode_tokens, eval_batch_size)
    where = topology or f"{len(devices)} × {devices[0].device_kind}"
    if available is not None and sum(state_bytes.values()) > available:
        # The compiler would say the same, minutes later.
        step = compiled.Report(
            0.0,
            needed_bytes=sum(state_bytes.values()),
            refusal="parameters and optimizer state alone are more; nothing was compiled",
        )
        decode = None
    else:
        with _waiting(f"compiling the training step for {where} …"):
            step = compiled.compile_report(lower_step, program_file("training"))
        decode = None
        if decoding and step.refusal is None:
            with _waiting(f"compiling the decoding step for {where} …"):
                decode = compiled.compile_report(
                    lambda: decoder.lower(program.state.params, inputs), program_file("decoding")
                )

    # ---------------------------------- report ----------------------------------
    # The optimizer's state stays in memory while labels are decoded.
    needs = {"training": step.total_bytes}
    if decode is not None:
        needs["decoding"] = decode.total_bytes + state_bytes["optimizer"]
    too_large = [name for name, size in needs.items() if size > (available or float("inf"))]
    too_large += [
        name
        for name, report in (("training", step), ("decoding", decode))
        if report is not None and report.refusal is not None and name not in too_large
    ]
    model_flops = flops.train_step_flops(architecture, batch_size, inputs, targets)
    result: dict[str, Any] = {
        "topology": topology,
        "chip": chip.name if chip else devices[0].device_kind,
        "chips": len(devices) // per_chip,
        "devices": len(devices),
        "mesh": dict(mesh.shape),
        "fsdp": program.fsdp,
        "num_microbatches": num_microbatches,
        "student": student,
        "parameters": sum(int(np.prod(leaf.shape)) for leaf in _leaves(program.state.params)),
        "remat_policy": architecture.remat_policy,
        "scan_layers": architecture.scan_layers,
        "dtype": architecture.dtype,
        "rows": batch_size,
        "input_tokens": inputs,
        "target_tokens": targets,
        "fits": None if available is None and not too_large else not too_large,
        "hbm_bytes": int(chip.hbm_gib * topologies.GIB) if chip else None,
        "available_bytes": available * per_chip if available is not None else None,
        "bytes": {
            **{name: size * per_chip for name, size in state_bytes.items()},
            **_memory_of(step, per_chip),
        },
        **_costs_of(step, chip),
        "model_flops": model_flops * per_chip / len(devices),
        "mfu_bound": None,
        "compile_seconds": round(step.compile_seconds, 1),
        "refusal": step.refusal,
        "unreadable": step.unreadable,
        "decode": None,
    }
    if chip and step.costs:
        best = result["step_seconds_at_least"]
        result["mfu_bound"] = result["model_flops"] / (chip.tflops * 1e12 * best)
    if decode is not None:
        result["decode"] = {
            "rows": -(-eval_batch_size // sharding.data_parallelism(mesh))
            * sharding.data_parallelism(mesh),
            "tokens": max_decode_tokens,
            "bytes": {
                **_memory_of(decode, per_chip),
                "optimizer": state_bytes["optimizer"] * per_chip,
                "total": needs["decoding"] * per_chip,
            },
            **_costs_of(decode, chip),
            "compile_seconds": round(decode.compile_seconds, 1),
            "refusal": decode.refusal,
            "unreadable": decode.unreadable,
        }
    result["advice"] = _advice(result, too_large, sum(state_bytes.values()), available)
    return result


def _leaves(tree: Any) -> list[Any]:
    import jax

    return jax.tree.leaves(tree)


def _memory_of(report: Any, per_chip: int) -> dict[str, float | None]:
    if report.refusal is not None:
        names = ("arguments", "temporaries", "outputs", "program")
        return {**dict.fromkeys(names), "total": report.total_bytes * per_chip}
    return {
        "arguments": report.argument_bytes * per_chip,
        "temporaries": report.temporary_bytes * per_chip,
        "outputs": report.output_bytes * per_chip,
        "program": report.code_bytes * per_chip,
        "total": report.total_bytes * per_chip,
    }


def _costs_of(report: Any, chip: topologies.Chip | None) -> dict[str, Any]:
    """FLOPs, traffic and the times that follow from them, of one chip."""
    if report.costs is None:
        return {}
    from distill_sbs.precompiling.compiled import Roofline

    times = chip.devices if chip else 1
    costs = {
        "flops": report.costs.matrix_flops * times,
        "bytes_accessed": report.costs.accessed_bytes * times,
        "hbm_bytes_accessed": report.costs.memory_bytes * times,
        "collective_bytes": {
            kind: size * times for kind, size in sorted(report.costs.collective_bytes.items())
        },
        "link_bytes": report.costs.link_bytes * times,
        "unknown_loops": report.costs.unknown_loops,
        "xla_cost_analysis": {
            "flops": report.xla_flops * times,
            "bytes_accessed": report.xla_bytes * times,
        },
    }
    if chip is not None:
        roofline = Roofline.of(report.costs, chip)
        costs.update(
            compute_seconds=roofline.compute_seconds,
            memory_seconds=roofline.memory_seconds,
            interconnect_seconds=roofline.link_seconds,
            roofline_seconds=roofline.seconds,
            step_seconds_at_least=roofline.seconds_with_links,
            limited_by=roofline.limited_by,
        )
    return costs


def _advice(
    result: Mapping[str, Any], too_large: list[str], state: float, available: float | None
) -> list[str]:
    """What to set where it does not fit, the likeliest remedy first."""
    if not too_large:
        return []
    mesh = result["mesh"]
    data, model = mesh["slice"] * mesh["data"], mesh["model"]
    state_is_large = available is not None and state > 0.5 * available
    advice = []
    splits_state = "FSDP = True: splits parameters and optimizer state over the data axis"
    can_split_state = not result["fsdp"] and mesh["data"] > 1
    if can_split_state and state_is_large:
        advice.append(splits_state)
    elif state_is_large and result["fsdp"]:
        advice.append(
            "a larger TOPOLOGY: parameters and optimizer state are split over all chips already"
        )
    if "training" in too_large and not (state_is_large and result["fsdp"]):
        if result["remat_policy"] != "full":
            advice.append(
                "STUDENT_OVERRIDES = {…, 'remat_policy': 'full'}: recomputes activations"
                + (", or 'minimal': most of them" if result["remat_policy"] == "none" else "")
            )
        microbatches = 2 * result["num_microbatches"]
        if result["rows"] % (data * microbatches) == 0:
            advice.append(f"NUM_MICROBATCHES = {microbatches}: half the activations at a time")
    if mesh["data"] > 1 and mesh["data"] % 2 == 0:
        advice.append(
            f"NUM_MODEL_PARTITIONS = {2 * model}: more chips share each copy of the parameters"
        )
    if can_split_state and not state_is_large:
        advice.append(splits_state)
    if too_large == ["decoding"]:
        advice.insert(0, f"EVAL_BATCH_SIZE below {result['decode']['rows']}")
    if not any(text.startswith("a larger") for text in advice):
        advice.append("a larger TOPOLOGY")
    return advice


@contextlib.contextmanager
def _waiting(what: str) -> Iterator[None]:
    """A spinner on standard error; silent off a terminal."""
    from rich.console import Console

    console = Console(file=sys.stderr)
    if not console.is_terminal:
        yield
        return
    with console.status(what):
        yield


# ---------------------------------- table ------------------------------------


def _gib(size: float | None) -> str:
    if size is None:
        return "–"
    if size == float("inf"):
        return "more than there is"
    if size < 0.1 * topologies.GIB:
        return f"{size / 2**20:,.1f} MiB"
    return f"{size / topologies.GIB:,.2f} GiB"


def _scaled(value: float, unit: str) -> str:
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= factor:
            return f"{value / factor:,.2f} {prefix}{unit}"
    return f"{value:,.0f} {unit}"


def _milliseconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds * 1e3:,.2f} ms"


def print_table(result: Mapping[str, Any], to_standard_error: bool = False) -> None:
    """Prints what `precompile` returned, for people."""
    from rich.console import Console
    from rich.table import Table

    mesh = result["mesh"]
    decode = result["decode"] or {}
    table = Table(
        title=f"{result['student']} on {result['topology'] or 'the devices at hand'}: "
        f"{result['chips']} × {result['chip']}",
        title_justify="left",
    )
    table.add_column("per chip")
    table.add_column("training step", justify="right")
    table.add_column("decoding", justify="right")

    def row(name: str, form: Any, *keys: str) -> None:
        cells = []
        for source in (result, decode):
            value: Any = source
            for key in keys:
                value = value.get(key) if isinstance(value, Mapping) else None
            cells.append("–" if value is None else form(value))
        if cells != ["–", "–"]:
            table.add_row(name, *cells)

    axes = f"{mesh['data']} data × {mesh['model']} model"
    if mesh["slice"] > 1:
        axes = f"{mesh['slice']} slices × {axes}"
    parts = result["num_microbatches"]
    rows = f"{result['rows']} × ({result['input_tokens']} + {result['target_tokens']})"
    table.add_row("mesh", axes + (", FSDP" if result["fsdp"] else ""), "")
    table.add_row(
        "rows × (input + target tokens), unpacked",
        rows + (f" in {parts} microbatches" if parts > 1 else ""),
        f"{decode['rows']} × ({result['input_tokens']} + {decode['tokens']})" if decode else "",
    )
    table.add_row(
        "layers",
        f"{'scanned' if result['scan_layers'] else 'unrolled'}, remat {result['remat_policy']}",
        "",
        end_section=True,
    )
    row("parameters", _gib, "bytes", "parameters")
    row("optimizer state", _gib, "bytes", "optimizer")
    row("arguments (those, and the batch)", _gib, "bytes", "arguments")
    row("temporaries (activations, gradients)", _gib, "bytes", "temporaries")
    table.add_row(
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
    table.add_row("there is (of it for programs)", f"{hbm} ({_gib(result['available_bytes'])})", "")
    fits = {True: "yes", False: "NO", None: "nobody knows this device's memory"}
    table.add_row("fits", fits[result["fits"]], "", end_section=True)
    row("FLOPs of matrix products", lambda value: _scaled(value, "FLOP"), "flops")
    row("bytes accessed", lambda value: _scaled(value, "B"), "bytes_accessed")
    row("… of them in HBM", lambda value: _scaled(value, "B"), "hbm_bytes_accessed")
    kinds = {
        *result.get("collective_bytes", {}),
        *decode.get("collective_bytes", {}),
    }
    for kind in sorted(kinds):
        row(f"{kind} operands", lambda value: _scaled(value, "B"), "collective_bytes", kind)
    row("time: arithmetic", _milliseconds, "compute_seconds")
    row("time: HBM", _milliseconds, "memory_seconds")
    row("time: interconnect, at least", _milliseconds, "interconnect_seconds")
    row("roofline (arithmetic, HBM)", _milliseconds, "roofline_seconds")
    row("limited by", str, "limited_by")
    row("MFU at most", lambda value: f"{value:.1%}", "mfu_bound")
    row("compile time", lambda value: f"{value:.1f} s", "compile_seconds")
    console = Console(file=sys.stderr if to_standard_error else sys.stdout)
    if not console.is_terminal:
        console.width = 110  # a file need not fold it
    console.print(table)
    for each in (result, decode):
        if each and each.get("refusal"):
            console.print(f"does not fit: {each['refusal']}", highlight=False, soft_wrap=True)
        if each and each.get("unreadable"):
            message = f"FLOPs and traffic not counted, no text of it: {each['unreadable']}"
            console.print(message, highlight=False, markup=False, soft_wrap=True)
    if result["advice"]:
        console.print("To change, one or more of:", highlight=False)
        for text in result["advice"]:
            console.print(f"  {text}", highlight=False, markup=False, soft_wrap=True)


def _define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_bool(
        "json",
        False,
        "Prints one JSON object on standard output, the table on standard error.",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "decoding",
        True,
        "Compiles the decoding step too, where the training step fits.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "programs",
        None,
        "A folder for the texts of the compiled programs: training.hlo, decoding.hlo.",
        flag_values=values,
    )


def main(configuration: command_line.Configuration[PrecompileConfig]) -> int:
    """Compiles what the command line and the gin files say; returns the exit status."""
    programs = configuration.flags["programs"]
    result = precompile(
        configuration.config,
        decoding=bool(configuration.flags["decoding"]),
        program_folder=pathlib.Path(programs) if programs else None,
    )
    as_json = bool(configuration.flags["json"])
    print_table(result, to_standard_error=as_json)
    if as_json:
        # JSON has no infinity.
        text = json.dumps(result, default=str).replace("Infinity", "null")
        print(text)
    return DOES_NOT_FIT_EXIT_STATUS if result["fits"] is False else 0


def dry_run(configuration: command_line.Configuration[PrecompileConfig]) -> Iterator[str]:
    """Checks what needs no compiler; gives what there is to say.

    Raises:
      UserError: there is no such slice.
    """
    if configuration.config.topology is not None:
        topologies.parse(configuration.config.topology)
    yield "nothing was compiled; whether the batch divides over the devices was not looked at"


if __name__ == "__main__":
    command_line.run(
        main,
        PrecompileConfig,
        "runs/precompile.gin",
        DESCRIPTION,
        _define_flags,
        interrupted="nothing was written",
        check=dry_run,
    )
