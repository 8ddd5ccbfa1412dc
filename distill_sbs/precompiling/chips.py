"""Accelerators: their figures, those at hand, and slices of TPUs that are not at hand.

Enters: a TOPOLOGY such as 'v5e:16x16', or none. Leaves: JAX devices to build a mesh of and to
compile for, and the `Chip` they belong to. Slices need libtpu, which compiles for TPUs on machines
that have none.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
import sys
from typing import TYPE_CHECKING

from distill_sbs.errors import UserError, nearest_names

if TYPE_CHECKING:
    import jax

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """What one chip can do.

    Attributes:
      name: 'TPU v5e', 'H100', …
      kinds: how JAX calls its devices (`device_kind`); the beginning is enough.
      tflops: bfloat16 matrix products, 10¹² floating-point operations a second.
      hbm_gib: its main memory.
      available_gib: what of it the TPU compiler gives to a program; as libtpu 0.0.52 says when
        one does not fit. None: no such compiler.
      hbm_gb_per_second: bytes to and from main memory, 10⁹ a second.
      link_gb_per_second: bytes sent over all interconnect links together, 10⁹ a second, one way:
        half of what Google's documentation states for both ways (for v4: six links of 50 GB/s,
        Jouppi et al. 2023, arXiv 2304.01433). None where it depends on the machine.
      devices: JAX devices a chip. On TPU v4 and v5p both cores of a chip are one device
        ("megacore"), on TPU7x two.
    """

    name: str
    kinds: tuple[str, ...]
    tflops: float
    hbm_gib: float
    available_gib: float | None
    hbm_gb_per_second: float
    link_gb_per_second: float | None
    devices: int = 1


# Generation, as TOPOLOGY names it → chip and the slices that Google offers (for 4x4x4 and larger,
# the smaller ones of many).
_SQUARES = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")
TPUS: dict[str, tuple[Chip, tuple[str, ...]]] = {
    "v4": (Chip("TPU v4", ("TPU v4",), 275, 32, 30.75, 1228, 300), _CUBES),
    "v5e": (Chip("TPU v5e", ("TPU v5 lite", "TPU v5e"), 197, 16, 15.75, 819, 200), _SQUARES),
    "v5p": (Chip("TPU v5p", ("TPU v5p", "TPU v5"), 459, 95, 95.73, 2765, 600), _CUBES),
    "v6e": (Chip("TPU v6e", ("TPU v6 lite", "TPU v6e"), 918, 32, 31.24, 1640, 400), _SQUARES),
    "tpu7x": (Chip("TPU7x", ("TPU7x",), 2307, 192, 189.48, 7380, None, devices=2), _CUBES),
}
GPUS = (
    Chip("H100", ("NVIDIA H100",), 989, 80, None, 3350, None),
    Chip("H200", ("NVIDIA H200",), 989, 141, None, 4800, None),
)


def use_compiler_only() -> None:
    """Sets the environment for compiling without a TPU; to be called before JAX is imported.

    Raises:
      UserError: libtpu is not installed.
      RuntimeError: JAX was imported before.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "TOPOLOGY needs libtpu, the TPU compiler, which is not installed (no TPU is needed): "
            "pip install -e '.[precompile]' in the checkout, or pip install 'libtpu>=0.0.51,<0.1'"
        )
    if "jax" in sys.modules and os.environ.get("JAX_PLATFORMS") != "cpu":
        raise RuntimeError("jax was imported before use_compiler_only()")
    os.environ["JAX_PLATFORMS"] = "cpu"
    # Without these libtpu asks the metadata server of a TPU machine, and complains at length.
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")


def parse(topology: str) -> tuple[Chip, str, str]:
    """The chip, generation and shape of a name such as 'v5e:16x16'.

    Raises:
      UserError: no such generation, or not a shape; the message names near ones.
    """
    example = "expected GENERATION:SHAPE, such as 'v5e:2x4' or 'v4:2x2x1'"
    if not isinstance(topology, str):
        raise UserError(f"TOPOLOGY={topology!r}: {example}")
    generation, colon, shape = topology.partition(":")
    if not colon or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", shape):
        name = generation.split("-")[0]
        if name in TPUS:
            shapes = TPUS[name][1]
            near = nearest_names(shape, shapes) or shapes
            raise UserError(f"TOPOLOGY={topology!r}: {example}; slices: {_names(name, near)}")
        raise UserError(f"TOPOLOGY={topology!r}: {example}; {_known(generation)}")
    if generation not in TPUS:
        raise UserError(f"TOPOLOGY={topology!r}: unknown TPU {generation!r}; {_known(generation)}")
    return TPUS[generation][0], generation, shape


def _names(generation: str, shapes: tuple[str, ...] | list[str]) -> str:
    return ", ".join(f"{generation}:{shape}" for shape in shapes)


def _known(generation: str) -> str:
    near = nearest_names(generation, TPUS)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return f"{hint}(known: {', '.join(TPUS)})"


def slice_devices(topology: str) -> tuple[list[jax.Device], Chip]:
    """Devices of a slice that need not exist, to compile for; call `use_compiler_only` first.

    Raises:
      UserError: no such slice, with near ones.
    """
    chip, generation, shape = parse(topology)
    from jax.experimental import topologies

    # JAX on a TPU v4 sees a chip as one device; without this the compiler would see two.
    options = {"chip_config_name": "megacore"} if generation == "v4" else {}
    try:
        description = topologies.get_topology_desc(
            platform="tpu", topology_name=topology, **options
        )
    except Exception as error:  # what the compiler raises differs from version to version
        shapes = TPUS[generation][1]
        near = nearest_names(shape, shapes) or shapes
        reason = re.sub(r"^[A-Z_]+: ", "", str(error).splitlines()[0])
        raise UserError(
            f"TOPOLOGY={topology!r}: libtpu knows no such slice ({reason}); near matches: "
            f"{_names(generation, near)}"
        ) from error
    return list(description.devices), chip


def devices_at_hand() -> tuple[list[jax.Device], Chip | None]:
    """All of JAX's devices, and their chip where its figures are known."""
    import jax

    devices = jax.devices()
    chips = [chip for chip, _ in TPUS.values()] + list(GPUS)
    for chip in chips:
        if any(devices[0].device_kind.startswith(kind) for kind in chip.kinds):
            return devices, chip
    return devices, None
