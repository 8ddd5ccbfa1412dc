"""chips: names of TPU slices, the figures of their chips, and their devices."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest

from distill_sbs.errors import UserError
from distill_sbs.precompiling import chips

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu is not installed: pip install -e '.[precompile]'",
)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5:2x4", "unknown TPU 'v5'; did you mean v5p or v5e"),
        ("H100", r"expected GENERATION:SHAPE.*known: v4, v5e, v5p, v6e"),
        ("v5e", r"expected GENERATION:SHAPE.*v5e:1x1"),
        ("v5e-16x16", r"expected GENERATION:SHAPE, such as 'v5e:2x4'"),
        ("v5e:2by4", r"slices: .*v5e:2x4"),
        ("v5e:0x4", r"expected GENERATION:SHAPE"),
        ("v4:", r"expected GENERATION:SHAPE.*v4:2x2x1"),
        (8, r"TOPOLOGY=8: expected GENERATION:SHAPE"),
    ],
)
def test_unknown_topologies(name: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        chips.parse(name)  # type: ignore[arg-type]


def test_a_name_in_parts() -> None:
    chip, generation, shape = chips.parse("v5e:16x16")
    assert (chip.name, generation, shape) == ("TPU v5e", "v5e", "16x16")


def test_figures_of_chips() -> None:
    """As the project's table of chips has them."""
    rows = {name: (c.tflops, c.hbm_gib, c.hbm_gb_per_second) for name, (c, _) in chips.TPUS.items()}
    assert rows == {
        "v4": (275, 32, 1228),
        "v5e": (197, 16, 819),
        "v5p": (459, 95, 2765),
        "v6e": (918, 32, 1640),
        "tpu7x": (2307, 192, 7380),
    }
    assert [(c.name, c.tflops, c.hbm_gib, c.hbm_gb_per_second) for c in chips.GPUS] == [
        ("H100", 989, 80, 3350),
        ("H200", 989, 141, 4800),
    ]


def test_slices_on_offer_are_names_that_parse() -> None:
    for generation, (_, shapes) in chips.TPUS.items():
        for shape in shapes:
            assert chips.parse(f"{generation}:{shape}")[1:] == (generation, shape)


def test_a_cpu_has_no_figures() -> None:
    devices, chip = chips.devices_at_hand()
    assert devices[0].platform == "cpu"
    assert chip is None


def test_missing_libtpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"which is not installed.*pip install .*libtpu"):
        chips.use_compiler_only()


DEVICES = """
import json, sys
from distill_sbs.precompiling import chips
chips.use_compiler_only()
found = {}
for name in sys.argv[1:]:
    devices, chip = chips.slice_devices(name)
    found[name] = [len(devices), len({tuple(device.coords) for device in devices}), chip.name,
                   any(devices[0].device_kind.startswith(kind) for kind in chip.kinds)]
print(json.dumps(found))
"""


@pytest.mark.slow
@needs_libtpu
@pytest.mark.tpu_aot
def test_devices_of_slices() -> None:
    """Devices, and the chips they lie on: one a chip, but for TPU7x."""
    expected = {
        "v4:2x2x1": [4, 4, "TPU v4", True],
        "v4:4x4x4": [64, 64, "TPU v4", True],
        "v5e:1x1": [1, 1, "TPU v5e", True],
        "v5e:16x16": [256, 256, "TPU v5e", True],
        "v5p:2x2x1": [4, 4, "TPU v5p", True],
        "v6e:2x4": [8, 8, "TPU v6e", True],
        "tpu7x:2x2x1": [8, 4, "TPU7x", True],
    }
    done = subprocess.run(
        [sys.executable, "-c", DEVICES, *expected], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == expected
