"""Reads the text of a compiled XLA program.

Enters: what `compiled.as_text()` gives. Leaves: its computations, `Instruction`s by name, and the
sizes of their `Array`s as they lie in memory.

The text is read, and not XLA's own HloModuleProto, which libtpu and jaxlib hand out as bytes
(`as_serialized_hlo_module_proto`): the only package that ships what decodes them, `hlo_pb2`, is
TensorFlow. Importing it takes 9 s and 505 MiB here (tensorflow 2.21, jaxlib 0.10.2), this room may
not need it, and machines with TPUs need not have it. Nor would the two shrink to one: `--programs`
writes the text.
"""

from __future__ import annotations

import dataclasses
import math
import re

_BITS = {"pred": 8, "token": 0, "opaque": 0}

_ARRAY = re.compile(r"\b([a-z]\w*+)\[([\d,]*)\](?:\{([^{}]*)\})?")
_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(")
_SOURCE = re.compile(r'op_name="([^"]*)"')
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(
    r"\b(calls|body|condition|to_apply|branch_computations)=\{?((?:%[\w.\-]+(?:, )?)+)"
)


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of an instruction's type: elements, dimensions, where and how it is laid out."""

    element: str
    dimensions: tuple[int, ...]
    layout: str

    @property
    def bytes(self) -> int:
        """Its size; dimensions that a tiled layout pads count as padded."""
        dimensions = list(self.dimensions)
        tile = re.search(r"T\(([\d,]+)\)", self.layout)
        order = re.match(r"[\d,]+", self.layout)
        if tile and order and dimensions:
            minor_to_major = [int(number) for number in order[0].split(",")]
            sizes = [int(number) for number in tile[1].split(",")]
            for axis, size in zip(minor_to_major, reversed(sizes), strict=False):
                dimensions[axis] = -(-dimensions[axis] // size) * size
        digits = re.search(r"\d+", self.element)
        bits = _BITS.get(self.element, int(digits[0]) if digits else 8)
        return math.prod(dimensions) * bits // 8

    @property
    def in_main_memory(self) -> bool:
        """Whether it lies in the device's main memory (HBM), and not in memory on the chip."""
        return re.search(r"S\([1-9]", self.layout) is None


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation: what it makes, of which operands, calling which computations.

    `source` says what it was in the traced program, by JAX's own path; "" where that is not known.
    """

    name: str
    arrays: tuple[Array, ...]
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    is_root: bool
    literal: str
    source: str = ""

    def list_called(self, *kinds: str) -> list[str]:
        """Names of the computations that it calls, by the attributes `kinds`; by any without."""
        return [
            name
            for kind, names in _CALLED.findall(self.attributes)
            if not kinds or kind in kinds
            for name in _NAME.findall(names)
        ]


Computations = dict[str, dict[str, Instruction]]


def read_program(text: str) -> tuple[Computations, str]:
    """Name → computation, which is name → instruction, in order; and the name of the first to run.

    Raises:
      ValueError: the text holds no program.
    """
    computations: Computations = {}
    entry = ""
    current: dict[str, Instruction] | None = None
    for line in text.splitlines():
        if current is None or not line.startswith(" "):
            header = _HEADER.match(line)
            if header and ") -> " in line and line.rstrip().endswith("{"):
                current = computations.setdefault(header[2], {})
                if header[1]:
                    entry = header[2]
            continue
        instruction = _read_instruction(line)
        if instruction is not None:
            current[instruction.name] = instruction
    if not entry:
        raise ValueError("expected the text of a compiled program; it has no ENTRY computation")
    return computations, entry


def _read_instruction(line: str) -> Instruction | None:
    body = line.strip()
    is_root = body.startswith("ROOT ")
    name, separator, rest = body.removeprefix("ROOT ").partition(" = ")
    if not separator:
        return None
    end = _end_of_type(rest)
    opcode, parenthesis, arguments = rest[end:].lstrip().partition("(")
    if not parenthesis:
        return None
    close = _find_closing(arguments)
    inside, attributes = arguments[:close], arguments[close + 1 :]
    source = _SOURCE.search(attributes)
    # Metadata may hold any text, and most of the bytes.
    attributes = re.sub(r"metadata=\{[^{}]*\}", "", attributes)
    return Instruction(
        name=name.lstrip("%"),
        arrays=tuple(
            Array(element, tuple(int(size) for size in sizes.split(",") if size), layout or "")
            for element, sizes, layout in _ARRAY.findall(rest[:end])
        ),
        opcode=opcode.strip(),
        operands=tuple(_NAME.findall(inside)),
        attributes=attributes,
        is_root=is_root,
        literal=inside.strip() if opcode.strip() in ("constant", "parameter") else "",
        source=source[1] if source else "",
    )


def _end_of_type(text: str) -> int:
    """Where an instruction's type ends: a tuple in parentheses, or an array without blanks."""
    if text.startswith("("):
        return _find_closing(text[1:]) + 2
    return text.find(" ")


def _find_closing(text: str) -> int:
    """The index of the parenthesis that closes what was open before `text`."""
    depth = 1
    for match in re.finditer(r"[()]", text):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    return len(text)
