"""Compiles a run's programs without data or weights, and reads from them what a run will need.

Enters: a student, a mesh (of devices at hand or of a slice that need not exist), a batch's shape.
Leaves: a `Report` for each program: bytes a chip by what they hold, FLOPs, traffic, collectives.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypedDict

from distill_sbs.precompiling.chips import GIB, Chip
from distill_sbs.precompiling.contributors import Contributor, list_contributors
from distill_sbs.precompiling.hlo_costs import Costs, Program

if TYPE_CHECKING:
    import jax


class CostFigures(TypedDict, total=False):
    """What a program's work comes to, of one chip and one step; nothing where not counted.

    Attributes:
      flops: of matrix products.
      bytes_accessed: read and written, on and off the chip.
      hbm_bytes_accessed: of them in HBM.
      collective_bytes: operands by the kind of collective.
      link_bytes: what crosses a link of the interconnect.
      unknown_loops: loops whose number of turns is not known; they count once.
      xla_cost_analysis: XLA's own count of `flops` and `bytes_accessed`.
      compute_seconds, memory_seconds, interconnect_seconds: what each takes at least;
        None for the interconnect where the chip's figure is not known.
      roofline_seconds: the longer one of arithmetic and HBM.
      step_seconds_at_least: the longest of all three.
      limited_by: which that is.
    """

    flops: float
    bytes_accessed: float
    hbm_bytes_accessed: float
    collective_bytes: dict[str, float]
    link_bytes: float
    unknown_loops: int
    xla_cost_analysis: dict[str, float]
    compute_seconds: float
    memory_seconds: float
    interconnect_seconds: float | None
    roofline_seconds: float
    step_seconds_at_least: float
    limited_by: str


class Operation(TypedDict):
    """What the operations of one name cost, of one chip, as often as they run.

    Attributes:
      name: where the traced program has them.
      runs: how often they run.
      flops, bytes_accessed, hbm_bytes_accessed: as in `CostFigures`.
    """

    name: str
    runs: float
    flops: float
    bytes_accessed: float
    hbm_bytes_accessed: float


class DecodingStep(CostFigures):
    """What `precompile` says of a decoding step, of one chip.

    Attributes:
      rows: inputs at a time, on all chips.
      tokens: positions that the past has room for.
      bytes: memory by what it holds, and in all.
      compile_seconds: of the compiler.
      refusal: its words, where the program does not fit.
      unreadable: why nothing was counted, where it was not.
    """

    rows: int
    tokens: int
    bytes: dict[str, float | None]
    compile_seconds: float
    refusal: str | None
    unreadable: str | None


class Precompilation(CostFigures):
    """What `precompile` returns; sizes and times are of one chip and one training step.

    Attributes:
      topology: of the slice; None where devices at hand were compiled for.
      chip: its name.
      chips: how many there are.
      devices: how many JAX sees.
      mesh: the length of each axis, in devices.
      fsdp: whether the state is split over the data axis, too.
      num_microbatches: of a step.
      student: its size by name.
      parameters: how many values they have.
      remat_policy, scan_layers, dtype: of the student.
      rows: of a batch.
      input_tokens, target_tokens: of a row.
      fits: None where nobody knows the device's memory.
      hbm_bytes: of a chip, where it is known.
      available_bytes: of them for programs.
      bytes: memory by what it holds, and in all.
      model_flops: what the student's arithmetic takes, without what is computed anew.
      mfu_bound: the most of the chip's arithmetic that can be of use, 0 to 1.
      compile_seconds: of the compiler.
      compile_processor_seconds: of the processor, on all cores; 0 where nothing was compiled.
      refusal: its words, where the program does not fit.
      unreadable: why nothing was counted, where it was not.
      operations: of the training step, those that access most bytes; as many as were asked for.
      decode: the decoding step; None where it was not compiled.
      advice: options to set where something does not fit, the likeliest remedy first.
    """

    topology: str | None
    chip: str
    chips: int
    devices: int
    mesh: dict[str, int]
    fsdp: bool
    num_microbatches: int
    student: str
    parameters: int
    remat_policy: str
    scan_layers: bool
    dtype: str
    rows: int
    input_tokens: int
    target_tokens: int
    fits: bool | None
    hbm_bytes: int | None
    available_bytes: float | None
    bytes: dict[str, float | None]
    model_flops: float
    mfu_bound: float | None
    compile_seconds: float
    compile_processor_seconds: float
    refusal: str | None
    unreadable: str | None
    operations: list[Operation]
    decode: DecodingStep | None
    advice: list[str]


@dataclasses.dataclass(frozen=True)
class Report:
    """What compiling one program for one device told.

    Attributes:
      compile_seconds: the time it took, tracing included.
      processor_seconds: the processor's time for it, on all cores, whatever else they did.
      argument_bytes: its inputs: parameters, optimizer state, batch.
      temporary_bytes: activations, gradients, and whatever else lives only inside.
      output_bytes: its results that do not take an input's place.
      code_bytes: the program itself.
      costs: see `hlo_costs.Costs`; None where it does not fit, or cannot be read.
      contributors: see `contributors`; none where there are no costs.
      xla_flops, xla_bytes: XLA's own count, which takes every loop's body once.
      needed_bytes: where the compiler refused for want of memory, what it said it needed.
      refusal: its words.
      unreadable: why the compiled program's text cannot be had, where it cannot: some of v5p's
        come back from libtpu in a form that the XLA of this JAX does not take (RET_CHECK of
        async-update). What the compiler says of memory stands all the same.
    """

    compile_seconds: float
    argument_bytes: int = 0
    temporary_bytes: int = 0
    output_bytes: int = 0
    code_bytes: int = 0
    costs: Costs | None = None
    contributors: tuple[Contributor, ...] = ()
    xla_flops: float = 0.0
    xla_bytes: float = 0.0
    processor_seconds: float = 0.0
    needed_bytes: float | None = None
    refusal: str | None = None
    unreadable: str | None = None

    @property
    def total_bytes(self) -> float:
        """All that must be in a device's memory while the program runs."""
        if self.needed_bytes is not None:
            return self.needed_bytes
        return self.argument_bytes + self.temporary_bytes + self.output_bytes + self.code_bytes

    def memory_bytes(self, times: int) -> dict[str, float | None]:
        """Bytes by what they hold, of `times` devices; None where nothing was compiled."""
        parts: dict[str, float | None]
        parts = dict.fromkeys(("arguments", "temporaries", "outputs", "program"))
        if self.refusal is None:
            parts = {
                "arguments": self.argument_bytes * times,
                "temporaries": self.temporary_bytes * times,
                "outputs": self.output_bytes * times,
                "program": self.code_bytes * times,
            }
        return {**parts, "total": self.total_bytes * times}

    def describe_operations(self, count: int, times: int) -> list[Operation]:
        """The operations that access most bytes, `count` of them, of `times` devices."""
        return [
            {
                "name": each.name,
                "runs": each.runs,
                "flops": each.costs.matrix_flops * times,
                "bytes_accessed": each.costs.accessed_bytes * times,
                "hbm_bytes_accessed": each.costs.memory_bytes * times,
            }
            for each in self.contributors[:count]
        ]

    def describe_costs(self, chip: Chip | None) -> CostFigures:
        """FLOPs, traffic and the times that follow from them, of one chip; {} where not counted."""
        if self.costs is None:
            return {}
        times = chip.devices if chip else 1
        costs: CostFigures = {
            "flops": self.costs.matrix_flops * times,
            "bytes_accessed": self.costs.accessed_bytes * times,
            "hbm_bytes_accessed": self.costs.memory_bytes * times,
            "collective_bytes": {
                kind: size * times for kind, size in sorted(self.costs.collective_bytes.items())
            },
            "link_bytes": self.costs.link_bytes * times,
            "unknown_loops": self.costs.unknown_loops,
            "xla_cost_analysis": {
                "flops": self.xla_flops * times,
                "bytes_accessed": self.xla_bytes * times,
            },
        }
        if chip is not None:
            roofline = Roofline.of(self.costs, chip)
            costs["compute_seconds"] = roofline.compute_seconds
            costs["memory_seconds"] = roofline.memory_seconds
            costs["interconnect_seconds"] = roofline.link_seconds
            costs["roofline_seconds"] = roofline.seconds
            costs["step_seconds_at_least"] = roofline.seconds_with_links
            costs["limited_by"] = roofline.limited_by
        return costs


def compile_report(
    lower: Callable[[], jax.stages.Lowered], program_file: pathlib.Path | None = None
) -> Report:
    """Compiles what `lower()` lowers.

    Args:
      lower: traces a program.
      program_file: where the compiled program's text is to be written, if anywhere.

    Raises:
      Exception: any error of the compiler but one for want of memory.
    """
    start, start_of_processor = time.monotonic(), time.process_time()
    try:
        compiled = lower().compile()
    except Exception as error:  # JaxRuntimeError; its class is not public in every version
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        needed = needed_bytes(str(error))
        return Report(time.monotonic() - start, needed_bytes=needed, refusal=_first_line(error))
    seconds = time.monotonic() - start
    processor_seconds = time.process_time() - start_of_processor
    memory = compiled.memory_analysis()
    assert memory is not None
    analysis = compiled.cost_analysis() or {}
    if isinstance(analysis, list):
        analysis = analysis[0] if analysis else {}
    text, unreadable = None, None
    try:
        text = compiled.as_text()
    except Exception as error:  # as above
        unreadable = _first_line(error)
    if program_file is not None and text is not None:
        program_file.parent.mkdir(parents=True, exist_ok=True)
        program_file.write_text(text)
    return Report(
        compile_seconds=seconds,
        argument_bytes=memory.argument_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        output_bytes=max(0, memory.output_size_in_bytes - memory.alias_size_in_bytes),
        code_bytes=memory.generated_code_size_in_bytes,
        costs=Program(text).costs() if text is not None else None,
        contributors=tuple(list_contributors(text)) if text is not None else (),
        processor_seconds=processor_seconds,
        xla_flops=float(analysis.get("flops", 0.0)),
        xla_bytes=float(analysis.get("bytes accessed", 0.0)),
        unreadable=unreadable,
    )


_AMOUNT = r"([\d.]{1,20})([KMGT]?)i?B?"
_REQUIRED = re.compile(rf"required[^()]{{0,200}}\({_AMOUNT}\)")
_USED = re.compile(rf"Used {_AMOUNT} of")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def needed_bytes(message: str) -> float:
    """What a compiler that ran out of memory says that it needed; infinite where it does not say.

    Knows "… required for HLO temporaries (25.04G) exceeds available HBM (15.75G)" and the older
    "Used 25.04G of 15.75G hbm".
    """
    found = _REQUIRED.search(message) or _USED.search(message)
    return float(found[1]) * _UNITS[found[2]] if found else float("inf")


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


@dataclasses.dataclass(frozen=True)
class Roofline:
    """How fast a chip could run a program at best.

    Attributes:
      compute_seconds: its matrix products at the chip's peak.
      memory_seconds: its traffic with main memory at the chip's bandwidth.
      link_seconds: what it sends to other chips, over all links at once; None where the chip's
        figure is not known.
    """

    compute_seconds: float
    memory_seconds: float
    link_seconds: float | None

    @classmethod
    def of(cls, costs: Costs, chip: Chip) -> Roofline:
        """The roofline of a program with these costs a device."""
        links = chip.link_gb_per_second
        return cls(
            chip.devices * costs.matrix_flops / (chip.tflops * 1e12),
            chip.devices * costs.memory_bytes / (chip.hbm_gb_per_second * 1e9),
            chip.devices * costs.link_bytes / (links * 1e9) if links else None,
        )

    @property
    def seconds(self) -> float:
        """The roofline: the slower of arithmetic and memory."""
        return max(self.compute_seconds, self.memory_seconds)

    @property
    def seconds_with_links(self) -> float:
        """The slowest of arithmetic, memory and interconnect, everything overlapping."""
        return max(self.seconds, self.link_seconds or 0.0)

    @property
    def limited_by(self) -> str:
        """Which of the three."""
        parts = {
            "arithmetic": self.compute_seconds,
            "memory": self.memory_seconds,
            "interconnect": self.link_seconds or 0.0,
        }
        return max(parts, key=lambda name: parts[name])


def available_bytes(
    chip: Chip | None, devices: Sequence[jax.Device], compile_only: bool
) -> float | None:
    """Memory that a program may use on one device; None where nobody says."""
    if not compile_only:
        try:
            limit = (devices[0].memory_stats() or {}).get("bytes_limit")
        except (RuntimeError, NotImplementedError):
            limit = None
        if limit:
            return float(limit)
    if chip is None:
        return None
    return (chip.available_gib or chip.hbm_gib) * GIB / chip.devices
