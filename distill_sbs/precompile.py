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

import math
import pathlib
from collections.abc import Iterator

from absl import flags

from distill_sbs.cli import command_line, terminal
from distill_sbs.config import PrecompileConfig
from distill_sbs.precompiling import advice, chips, printing, report
from distill_sbs.precompiling.report import Precompilation

DESCRIPTION = "Compiles a run's steps for a TPU slice: whether it fits, and its roofline."
DOES_NOT_FIT_EXIT_STATUS = 1


# The learning rate's schedule is part of the program, its length changes nothing in it.
_SCHEDULE_STEPS = 10_000


def precompile(
    config: PrecompileConfig,
    *,
    decoding: bool = True,
    program_folder: pathlib.Path | None = None,
    operations: int = 0,
) -> Precompilation:
    """Compiles, and returns what `--json` prints; sizes and times are of one chip and one step.

    The batch is laid out one sequence (or pair) a row, every row as long as the feature lengths (or
    twice; with SHARED_ENCODER the targets alone are twice as long): what `PACK = False` trains on,
    and more than a packed batch of the same sequences takes.

    Args:
      config: the options that shape a run's programs.
      decoding: whether the decoding step is compiled once the training step is known to fit.
      program_folder: where the programs' texts go.
      operations: how many of the training step's operations are listed, those that access most
        bytes first.

    Raises:
      UserError: something given cannot work; nothing was compiled.
    """
    topology, student = config.topology, config.student.name
    shared_encoder = config.batch.shared_encoder
    task_feature_lengths, batch_size = config.batch.task_feature_lengths, config.batch.batch_size
    num_microbatches, fsdp = config.mesh.num_microbatches, config.mesh.fsdp
    eval_batch_size = config.evaluation.eval_batch_size
    max_decode_tokens = config.evaluation.max_decode_tokens
    if topology is not None:
        chips.parse(topology)
        chips.use_compiler_only()
    import jax
    import numpy as np

    from distill_sbs.data.batches import layout
    from distill_sbs.distributed import sharding
    from distill_sbs.inference import batch_decoder
    from distill_sbs.model import flops
    from distill_sbs.training import optimizer as optimizers
    from distill_sbs.training.program import build_training_program

    # ---------------------------------- checks ----------------------------------
    architecture = config.student.architecture()
    if topology is None:
        devices, chip = chips.devices_at_hand()
    else:
        devices, chip = chips.slice_devices(topology)
    mesh = sharding.make_mesh(config.mesh.num_model_partitions, devices, config.mesh.num_slices)
    sharding.check_batch_size(batch_size, num_microbatches, mesh)
    sharding.check_attention(architecture, config.batch, config.objective, mesh)
    steps = max(_SCHEDULE_STEPS, config.optimizer.warmup_steps + 1)
    update = optimizers.make_optimizer(config.optimizer, steps)

    # ---------------------------------- program ---------------------------------
    program = build_training_program(
        architecture,
        update,
        mesh,
        objective=config.objective,
        fsdp=fsdp,
        num_microbatches=num_microbatches,
        use_hardware_rng=config.mesh.use_hardware_rng,
    )
    inputs, targets = (task_feature_lengths[name] for name in ("inputs", "targets"))
    shape = layout.shape_unpacked(
        batch_size,
        inputs,
        targets,
        sharding.data_parallelism(mesh) * num_microbatches,
        config.objective.in_pairs,
        shared_encoder,
    )
    batch = layout.empty_batch(shape)
    abstract_batch = sharding.add_shardings(
        batch, dict.fromkeys(batch, sharding.batch_sharding(mesh))
    )
    state_bytes = {
        name: sharding.bytes_per_device(tree, shardings)
        for name, tree, shardings in (
            ("parameters", program.state.params, program.shardings.params),
            ("optimizer", program.state.optimizer_state, program.shardings.optimizer_state),
        )
    }
    available = report.available_bytes(chip, devices, compile_only=topology is not None)
    per_chip = chip.devices if chip else 1

    # ---------------------------------- compile ---------------------------------
    def lower_step() -> jax.stages.Lowered:
        with sharding.rules(mesh):
            return program.step.lower(program.state, abstract_batch)

    def program_file(name: str) -> pathlib.Path | None:
        return program_folder / f"{name}.hlo" if program_folder else None

    decoder = batch_decoder.Decoder(program.model, mesh, max_decode_tokens, eval_batch_size)
    where = topology or f"{len(devices)} × {devices[0].device_kind}"
    if available is not None and sum(state_bytes.values()) > available:
        # The compiler would say the same, minutes later.
        step = report.Report(
            0.0,
            needed_bytes=sum(state_bytes.values()),
            refusal="parameters and optimizer state alone are more; nothing was compiled",
        )
        decode = None
    else:
        with terminal.show_status(f"compiling the training step for {where} …"):
            step = report.compile_report(lower_step, program_file("training"))
        decode = None
        if decoding and step.refusal is None:
            with terminal.show_status(f"compiling the decoding step for {where} …"):
                decode = report.compile_report(
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
        for name, each in (("training", step), ("decoding", decode))
        if each is not None and each.refusal is not None and name not in too_large
    ]
    share = 2 if shared_encoder else 1
    model_flops = flops.train_step_flops(architecture, batch_size // share, inputs, targets, share)
    result: Precompilation = {
        "topology": topology,
        "chip": chip.name if chip else devices[0].device_kind,
        "chips": len(devices) // per_chip,
        "devices": len(devices),
        "mesh": dict(mesh.shape),
        "fsdp": program.fsdp,
        "num_microbatches": num_microbatches,
        "student": student,
        "parameters": sum(
            int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(program.state.params)
        ),
        "remat_policy": architecture.remat_policy,
        "scan_layers": architecture.scan_layers,
        "dtype": architecture.dtype,
        "rows": shape.rows,
        "input_tokens": shape.input_tokens,
        "target_tokens": shape.target_tokens,
        "fits": None if available is None and not too_large else not too_large,
        "hbm_bytes": int(chip.hbm_gib * chips.GIB) if chip else None,
        "available_bytes": available * per_chip if available is not None else None,
        "bytes": {
            **{name: size * per_chip for name, size in state_bytes.items()},
            **step.memory_bytes(per_chip),
        },
        **step.describe_costs(chip),
        "model_flops": model_flops * per_chip / len(devices),
        "mfu_bound": None,
        "compile_seconds": round(step.compile_seconds, 1),
        "compile_processor_seconds": round(step.processor_seconds, 1),
        "refusal": step.refusal,
        "unreadable": step.unreadable,
        "operations": step.describe_operations(operations, per_chip),
        "decode": None,
        "advice": [],
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
                **decode.memory_bytes(per_chip),
                "optimizer": state_bytes["optimizer"] * per_chip,
                "total": needs["decoding"] * per_chip,
            },
            **decode.describe_costs(chip),
            "compile_seconds": round(decode.compile_seconds, 1),
            "refusal": decode.refusal,
            "unreadable": decode.unreadable,
        }
    result["advice"] = advice.advise(result, too_large, sum(state_bytes.values()), available)
    return result


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
    flags.DEFINE_integer(
        "operations",
        0,
        "So many operations of the training step are listed, those that access most bytes.",
        lower_bound=0,
        flag_values=values,
    )
    flags.DEFINE_string(
        "programs",
        None,
        "A folder for the texts of the compiled programs: training.hlo, decoding.hlo.",
        flag_values=values,
    )


def _without_infinity(value: object) -> object:
    """The same for JSON, which has no infinity: null."""
    if isinstance(value, dict):
        return {name: _without_infinity(each) for name, each in value.items()}
    return None if isinstance(value, float) and math.isinf(value) else value


def main(configuration: command_line.Configuration[PrecompileConfig]) -> int:
    """Compiles what the command line and the gin files say; returns the exit status."""
    programs = configuration.flags["programs"]
    result = precompile(
        configuration.config,
        decoding=bool(configuration.flags["decoding"]),
        program_folder=pathlib.Path(programs) if programs else None,
        operations=configuration.flags["operations"],
    )
    as_json = bool(configuration.flags["json"])
    printing.print_table(result, to_standard_error=as_json)
    if as_json:
        terminal.say_json(_without_infinity(result))
    return DOES_NOT_FIT_EXIT_STATUS if result["fits"] is False else 0


def dry_run(configuration: command_line.Configuration[PrecompileConfig]) -> Iterator[str]:
    """Checks what needs no compiler; gives what there is to say.

    Raises:
      UserError: there is no such slice.
    """
    if configuration.config.topology is not None:
        chips.parse(configuration.config.topology)
    yield "nothing was compiled; whether the batch divides over the devices was not looked at"


if __name__ == "__main__":
    command_line.run(
        main,
        PrecompileConfig,
        "runs/precompile.gin",
        DESCRIPTION,
        _define_flags,
        interrupted="whether the run fits was not found out",
        check=dry_run,
    )
