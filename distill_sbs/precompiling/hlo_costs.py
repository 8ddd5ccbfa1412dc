"""Counts what a compiled program computes and moves, loops included.

Enters: the text of a compiled XLA program (`compiled.as_text()`), the program of one device.
Leaves: its `Costs` for one run on that device: FLOPs of matrix products, bytes to and from memory,
bytes of collectives.

XLA's own `cost_analysis()` counts the body of a loop once, however often it runs, so a program with
scanned layers, microbatches or chunks of logits comes out too small. Here every body counts as
often as its loop runs: by `known_trip_count` where XLA states it, else by the constant that the
loop's condition compares its counter with. A loop that may end early (decoding) counts in full.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

from distill_sbs.precompiling.convolutions import convolution_flops
from distill_sbs.precompiling.hlo_text import Array, Computations, Instruction, read_program

# These name buffers, or stand for work that is counted elsewhere.
_FREE = {
    "parameter",
    "constant",
    "get-tuple-element",
    "tuple",
    "bitcast",
    "after-all",
    "while",
    "conditional",
    "call",
    "partition-id",
    "replica-id",
    "opt-barrier",
    "async-start",
    "async-update",
}
# Custom calls of the TPU compiler that name memory and move nothing.
_FREE_TARGETS = ("AllocateBuffer", "ConcatBitcast", "AssumeGatherIndicesInBound")
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
# What a Pallas kernel says of itself.
_KERNEL_FLOPS = re.compile(r'"cost_estimate":\{"flops":"(\d+)"')
COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)


@dataclasses.dataclass
class Costs:
    """What one run of a program costs one device.

    Attributes:
      matrix_flops: floating-point operations of matrix products and convolutions, a multiplication
        and an addition being two. Elementwise work, which other units do, is not in it. Of a
        Pallas kernel, which nothing can look into, what it says of itself.
      memory_bytes: bytes read from and written to main memory: every instruction's operands and
        results that lie there. What a fusion keeps inside, and arrays that the compiler put into
        memory on the chip, do not count.
      accessed_bytes: the same with memory on the chip: what XLA calls bytes accessed.
      collective_bytes: kind of collective → bytes of its operands.
      link_bytes: bytes that a device must send for the collectives at least, over all its links.
      unknown_loops: loops whose number of turns the program does not state; counted once.
    """

    matrix_flops: float = 0.0
    memory_bytes: float = 0.0
    accessed_bytes: float = 0.0
    collective_bytes: dict[str, float] = dataclasses.field(default_factory=dict)
    link_bytes: float = 0.0
    unknown_loops: int = 0

    def add(self, other: Costs, times: float = 1.0) -> None:
        """Adds what `times` runs of `other` cost."""
        self.matrix_flops += times * other.matrix_flops
        self.memory_bytes += times * other.memory_bytes
        self.accessed_bytes += times * other.accessed_bytes
        self.link_bytes += times * other.link_bytes
        self.unknown_loops += other.unknown_loops
        for kind, size in other.collective_bytes.items():
            self.collective_bytes[kind] = self.collective_bytes.get(kind, 0.0) + times * size


class Program:
    """A compiled program, read from its text.

    Args:
      text: what `compiled.as_text()` gave.
      loops_once: count every loop's body once, as XLA's own analysis does.

    Raises:
      ValueError: the text holds no program.
    """

    def __init__(self, text: str, loops_once: bool = False) -> None:
        self._loops_once = loops_once
        self._computations, self._entry = read_program(text)
        self._costs_of = functools.cache(self._computation_costs)

    def costs(self) -> Costs:
        """The costs of one run."""
        return self._costs_of(self._entry)

    def list_operations(self) -> Iterator[tuple[Instruction, float, Costs]]:
        """Every instruction that costs something, how often it runs, and what one run costs."""
        yield from self._operations_of(self._entry, 1.0)

    # ---------------------------------- walking ----------------------------------

    def _operations_of(self, name: str, times: float) -> Iterator[tuple[Instruction, float, Costs]]:
        computation = self._computations[name]
        for each in computation.values():
            calls = self._calls(each)
            if calls is None:
                yield each, times, self._instruction_costs(computation, each)
            else:
                for called, turns in calls:
                    yield from self._operations_of(called, times * turns)

    def _computation_costs(self, name: str) -> Costs:
        total = Costs()
        computation = self._computations[name]
        for each in computation.values():
            calls = self._calls(each)
            if calls is None:
                total.add(self._instruction_costs(computation, each))
                continue
            if each.opcode == "while" and self._trip_count(each) is None:
                total.unknown_loops += 1
            for called, turns in calls:
                total.add(self._costs_of(called), turns)
        return total

    def _calls(self, each: Instruction) -> list[tuple[str, float]] | None:
        """The computations that run in its place, and how often; None for one that costs itself."""
        if each.opcode == "while":
            turns = 1 if self._loops_once else self._trip_count(each) or 1
            return [(called, turns) for called in each.list_called("body", "condition")]
        if each.opcode in ("call", "async-start"):
            return [(called, 1) for called in each.list_called()]
        if each.opcode == "conditional":
            branches = each.list_called("branch_computations")
            # One of them runs: the one with most arithmetic.
            most = max(branches, key=lambda name: self._costs_of(name).matrix_flops, default=None)
            return [(most, 1)] if most is not None else []
        return None

    def _instruction_costs(self, computation: dict[str, Instruction], each: Instruction) -> Costs:
        costs = Costs(matrix_flops=self._matrix_flops(computation, each))
        self._add_collectives(costs, computation, each)
        target = _TARGET.search(each.attributes) if each.opcode == "custom-call" else None
        free = each.opcode in _FREE or (target is not None and target[1] in _FREE_TARGETS)
        if not free and not each.opcode.endswith("-done"):
            for array, size in self._traffic(computation, each):
                costs.accessed_bytes += size
                costs.memory_bytes += size if array.in_main_memory else 0
        return costs

    def _trip_count(self, loop: Instruction) -> int | None:
        known = re.search(r'known_trip_count[^0-9]{0,20}"(\d+)"', loop.attributes)
        if known:
            return int(known[1])
        for condition in loop.list_called("condition"):
            computation = self._computations[condition]
            for each in [*computation.values(), *self._inside(computation)]:
                if each.opcode == "compare" and "direction=LT" in each.attributes:
                    # Loops of jax.lax count up from 0.
                    for operand in each.operands:
                        constant = self._constant(computation, each, operand)
                        if constant is not None:
                            return -(-constant // self._step(loop, computation, each))
        return None

    def _step(self, loop: Instruction, condition: dict[str, Instruction], test: Instruction) -> int:
        """By how much a loop's counter rises a turn.

        By 2 where the compiler wrote two turns of a product and its collective into one.
        """
        counters = [condition[name] for name in test.operands if name in condition]
        places = [re.search(r"\bindex=(\d+)", each.attributes) for each in counters]
        place = next((int(found[1]) for found in places if found), None)
        if place is None:
            return 1
        for name in loop.list_called("body"):
            body = self._computations[name]
            root = next((each for each in body.values() if each.is_root), None)
            if root is None or root.opcode != "tuple" or place >= len(root.operands):
                continue
            raised = body.get(root.operands[place])
            if raised is None or raised.opcode != "add":
                continue
            for operand in raised.operands:
                step = self._constant(body, raised, operand)
                if step:
                    return step
        return 1

    def _constant(
        self, computation: dict[str, Instruction], each: Instruction, operand: str
    ) -> int | None:
        for body in (computation, *self._computations_called_by(computation)):
            found = body.get(operand)
            if found is None or found is each:
                continue
            if found.opcode == "parameter" and body is not computation:
                # A parameter of a fused comparison: what the fusion was given.
                number = int(found.literal)
                for outer in computation.values():
                    if outer.list_called() and number < len(outer.operands):
                        return self._constant(computation, outer, outer.operands[number])
            if found.opcode == "constant" and re.fullmatch(r"\d+", found.literal):
                return int(found.literal)
        return None

    def _computations_called_by(
        self, computation: dict[str, Instruction]
    ) -> list[dict[str, Instruction]]:
        return [
            self._computations[name]
            for each in computation.values()
            for name in each.list_called("calls")
            if name in self._computations
        ]

    def _inside(self, computation: dict[str, Instruction]) -> Iterator[Instruction]:
        for called in self._computations_called_by(computation):
            yield from called.values()

    # ---------------------------------- counting ---------------------------------

    def _matrix_flops(self, computation: dict[str, Instruction], each: Instruction) -> float:
        if each.opcode == "fusion":
            return sum(
                self._matrix_flops(self._computations[name], inner)
                for name in each.list_called("calls")
                for inner in self._computations[name].values()
            )
        if each.opcode == "dot":
            left = computation[each.operands[0]].arrays[0].dimensions
            contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", each.attributes)
            axes = [int(axis) for axis in contracted[1].split(",") if axis] if contracted else []
            result = math.prod(each.arrays[0].dimensions)
            return 2.0 * result * math.prod(left[axis] for axis in axes)
        if each.opcode == "convolution":
            left, right = (computation[name].arrays[0].dimensions for name in each.operands[:2])
            return convolution_flops(left, right, each.arrays[0].dimensions, each.attributes)
        kernel = _KERNEL_FLOPS.search(each.attributes) if each.opcode == "custom-call" else None
        if kernel:
            return float(kernel[1])
        if each.opcode == "custom-call" and re.search(
            r'target="[^"]*(gemm|matmul)', each.attributes
        ):
            left, right = (computation[name].arrays[0].dimensions for name in each.operands[:2])
            result = math.prod(each.arrays[0].dimensions)
            # Left × right = result × contracted², batch dimensions aside (which they all share).
            return 2.0 * result * math.sqrt(math.prod(left) * math.prod(right) / max(result, 1))
        return 0.0

    def _add_collectives(
        self,
        total: Costs,
        computation: dict[str, Instruction],
        each: Instruction,
        scatters: bool = False,
    ) -> None:
        if each.opcode == "fusion":
            for name in each.list_called("calls"):
                # The TPU's reduce-scatter is a fusion of an all-reduce and a slice of its result.
                scatters = name.startswith("all-reduce-scatter")
                for inner in self._computations[name].values():
                    self._add_collectives(total, self._computations[name], inner, scatters)
        kind = each.opcode.removesuffix("-start")
        if scatters and kind == "all-reduce":
            kind = "reduce-scatter"
        if kind not in COLLECTIVES or _asynchronous_part(each) == "later":
            return
        size = sum(
            array.bytes
            for name in each.operands
            if name in computation
            for array in computation[name].arrays
        )
        group = _group_size(each.attributes)
        total.collective_bytes[kind] = total.collective_bytes.get(kind, 0.0) + size
        # Of the ring algorithms, which send the least that is possible.
        share = (group - 1) / group if group else 1.0
        total.link_bytes += size * {
            "all-gather": (group - 1) if group else 1.0,
            "all-reduce": 2.0 * share,
            "collective-permute": 1.0,
        }.get(kind, share)

    def _traffic(
        self, computation: dict[str, Instruction], each: Instruction
    ) -> Iterator[tuple[Array, int]]:
        """What an instruction reads and writes: arrays, and how many bytes of each."""
        operands = [computation[name] for name in each.operands if name in computation]
        if each.opcode in ("dynamic-slice", "slice", "gather"):
            # Only the part that is taken is read.
            yield operands[0].arrays[0], each.arrays[0].bytes
            yield each.arrays[0], each.arrays[0].bytes
            return
        if each.opcode == "dynamic-update-slice":
            update = operands[1].arrays[0]
            yield update, update.bytes
            yield each.arrays[0], update.bytes
            return
        if each.opcode in ("copy-start", "slice-start"):
            # The result of a copy is (destination, source, context), that of a slice begins with
            # the source.
            destination = each.arrays[0 if each.opcode == "copy-start" else 1]
            yield operands[0].arrays[0], destination.bytes
            yield destination, destination.bytes
            return
        if each.opcode.endswith("-start"):
            for operand in operands:
                for array in operand.arrays:
                    yield array, array.bytes
            # A start's result repeats its operands before the results.
            count = sum(len(operand.arrays) for operand in operands)
            for array in each.arrays[count:] if len(each.arrays) > count else each.arrays:
                yield array, array.bytes
            return
        fused = each.list_called("calls")[0] if each.opcode == "fusion" else None
        for number, operand in enumerate(operands):
            for array in operand.arrays:
                size = array.bytes
                if fused:
                    size = _read_of_fused(self._computations, fused, number, array)
                yield array, size
        results = [array.bytes for array in each.arrays]
        if fused:
            results = _results_of_fused(self._computations, fused, each.arrays)
        yield from zip(each.arrays, results, strict=True)


# ---------------------------------- one operation ----------------------------


def _group_size(attributes: str) -> int:
    """How many devices a collective joins; 0 where it does not say.

    Three notations: `[groups,size]<=…`, `{{0,1},{2,3}}`, and axes of a mesh, or parts of axes:
    `mesh['a'=64,'b'=4] {'a','b':(1)2}`.
    """
    shape = re.search(r"replica_groups=\[(\d+),(\d+)\]", attributes)
    if shape:
        return int(shape[2])
    mesh = re.search(r"replica_groups=mesh\[([^\[\]]*)\][^{]{0,999}\{([^{}]*)\}", attributes)
    if mesh:
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", mesh[2])
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    first = re.search(r"replica_groups=\{\{([\d,]+)\}", attributes)
    return len(first[1].split(",")) if first else 0


def _asynchronous_part(each: Instruction) -> str | None:
    """Whether it begins an asynchronous collective ("first"), or goes on with it ("later").

    The TPU compiler spreads one collective over several fusions, to compute meanwhile: a start, any
    number of steps, a done. Each of them repeats the collective's instruction and hands its
    buffers on.
    """
    flag = re.search(r'"flag_start":"(-?\d+)"', each.attributes)
    return None if flag is None else "first" if flag[1] == "-1" else "later"


def _users(body: dict[str, Instruction], name: str) -> list[tuple[Instruction, int]]:
    """Who uses a value inside a fusion, as which operand; other names of its buffer included."""
    users = []
    for each in body.values():
        for position, operand in enumerate(each.operands):
            if operand == name:
                aliases = _users(body, each.name) if each.opcode == "bitcast" else []
                users += aliases or [(each, position)]
    return users


def _read_of_fused(computations: Computations, name: str, number: int, array: Array) -> int:
    """Bytes that a fusion reads of its operand: only the slices, where it takes slices only."""
    body = computations[name]
    parameter = next(
        (
            each.name
            for each in body.values()
            if each.opcode == "parameter" and each.literal == str(number)
        ),
        None,
    )
    if parameter is None:
        return array.bytes
    hands_on = any(_asynchronous_part(each) for each in body.values())
    read = 0
    for user, position in _users(body, parameter):
        if _asynchronous_part(user) == "later" or (
            hands_on and user.opcode in ("tuple", "custom-call")
        ):
            continue
        if user.opcode in ("dynamic-slice", "slice"):
            read += user.arrays[0].bytes
        elif user.opcode == "dynamic-update-slice" and position == 0:
            continue  # updated in place: what is not overwritten is not touched
        elif user.opcode == "fusion":
            read += _read_of_fused(computations, user.list_called("calls")[0], position, array)
        else:
            return array.bytes
    return min(read, array.bytes)


def _results_of_fused(
    computations: Computations, name: str, arrays: tuple[Array, ...]
) -> list[int]:
    """Bytes that a fusion writes of each result: only the update, where it updates in place."""
    body = computations[name]
    root = next((each for each in body.values() if each.is_root), None)
    if root is None:
        return [array.bytes for array in arrays]
    sources = [body.get(name) for name in root.operands] if root.opcode == "tuple" else [root]
    hands_on = any(_asynchronous_part(each) for each in body.values())
    sizes = []
    for array, source in zip(arrays, sources, strict=False):
        while source is not None and source.opcode == "bitcast":
            source = body.get(source.operands[0])
        size = array.bytes
        if hands_on and (
            source is None
            or source.opcode in ("parameter", "custom-call")
            or _asynchronous_part(source) == "later"
        ):
            size = 0
        elif source is not None and source.opcode == "dynamic-update-slice":
            update = body.get(source.operands[1])
            if update is not None:
                size = min(size, update.arrays[0].bytes)
        elif source is not None and source.opcode == "fusion" and len(source.arrays) == 1:
            inner = _results_of_fused(computations, source.list_called("calls")[0], (array,))
            size = min(size, inner[0])
        sizes.append(size)
    return sizes + [array.bytes for array in arrays[len(sizes) :]]
