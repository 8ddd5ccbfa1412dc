"""sharding: meshes, batch sizes that fit them, and where arrays lie. Eight simulated devices."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from distill_sbs.config import OptimizerConfig
from distill_sbs.distributed import sharding
from distill_sbs.errors import UserError
from distill_sbs.model.config import named_config
from distill_sbs.model.network import Transformer
from distill_sbs.training.optimizer import make_optimizer
from distill_sbs.training.train_step import TrainState, initial_state

ROOT = pathlib.Path(__file__).parent.parent.parent


def mesh_of(data: int, model: int) -> Mesh:
    """A mesh of one device repeated: enough to ask for sizes and specs."""
    return Mesh(
        np.array([jax.devices()[0]] * data * model).reshape(1, data, model),
        ("slice", "data", "model"),
    )


@pytest.mark.parametrize(("partitions", "shape"), [(1, (8, 1)), (2, (4, 2)), (8, (1, 8))])
def test_mesh_shapes(partitions: int, shape: tuple[int, int]) -> None:
    mesh = sharding.make_mesh(partitions, [jax.devices()[0]] * 8)
    assert (mesh.shape["data"], mesh.shape["model"]) == shape


def test_partitions_must_divide_the_devices() -> None:
    with pytest.raises(UserError, match=r"=3 does not divide 8 devices; use one of \[1, 2, 4, 8\]"):
        sharding.make_mesh(3, [jax.devices()[0]] * 8)


def test_batch_size_must_fit() -> None:
    sharding.check_batch_size(16, 1, mesh_of(8, 1))
    with pytest.raises(UserError, match="BATCH_SIZE=10 is not a multiple of 8 devices; use 16"):
        sharding.check_batch_size(10, 1, mesh_of(8, 1))
    with pytest.raises(UserError, match="8 devices × 4 microbatches; use 32"):
        sharding.check_batch_size(16, 4, mesh_of(8, 1))


def test_slices() -> None:
    devices = [jax.devices()[0]] * 8
    mesh = sharding.make_mesh(2, devices, num_slices=2)
    assert dict(mesh.shape) == {"slice": 2, "data": 2, "model": 2}
    assert sharding.data_parallelism(mesh) == 4
    with pytest.raises(UserError, match="NUM_SLICES=3 does not divide 8 devices"):
        sharding.make_mesh(1, devices, num_slices=3)
    with pytest.raises(UserError, match=r"=8 does not divide 4 devices of a slice; use one of"):
        sharding.make_mesh(8, devices, num_slices=2)


@pytest.mark.tpu_aot
@pytest.mark.parametrize(
    ("topology", "options", "partitions", "shape", "neighbours"),
    [
        # A row of the 16 × 16 torus.
        ("v5e:16x16", {}, 4, (1, 64, 4), [[0, 0, 0], [1, 0, 0], [2, 0, 0], [3, 0, 0]]),
        # Two slices, known by what their devices report.
        ("v5e:2x4", {"num_slices": 2}, 2, (2, 4, 2), [[0, 0, 0], [1, 0, 0]]),
        # Two devices a chip.
        ("tpu7x:2x2x1", {}, 2, (1, 4, 2), [[0, 0, 0], [0, 0, 0]]),
    ],
)
def test_meshes_of_real_topologies(
    monkeypatch: pytest.MonkeyPatch,
    topology: str,
    options: dict,
    partitions: int,
    shape: tuple[int, int, int],
    neighbours: list,
) -> None:
    """Devices on the model axis lie side by side in the machine."""
    pytest.importorskip("libtpu")
    from jax.experimental import topologies

    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    described = topologies.get_topology_desc(
        platform="tpu", topology_name=topology, **options
    ).devices
    mesh = sharding.make_mesh(partitions, described)
    assert mesh.devices.shape == shape
    assert [list(device.coords) for device in mesh.devices[0, 0]] == neighbours
    assert len(set(mesh.devices.flat)) == len(described)
    if options:
        slices = {device.slice_index for device in mesh.devices[0].flat}
        assert slices == {0}, "the slice axis holds whole slices"


def shapes_of(name: str, **overrides: object) -> TrainState:
    model = Transformer(named_config(name, scan_layers=True, **overrides))
    return jax.eval_shape(lambda: initial_state(model, ADAMW, 0))


ADAMW = make_optimizer(OptimizerConfig(learning_rate=1e-3), 100)


@pytest.mark.parametrize(
    ("name", "partitions", "fsdp"),
    [
        # Parameters, gradients and two moments, 16 bytes a parameter, against 4 GiB.
        ("t5_1_1_base", 1, False),  # 248 M: 3.7 GiB
        ("t5_1_1_large", 1, True),  # 783 M: 11.7 GiB
        ("t5_1_1_large", 4, False),  # a quarter of it
        ("t5_1_1_xxl", 8, True),
    ],
)
def test_fsdp_by_size(name: str, partitions: int, fsdp: bool) -> None:
    mesh = mesh_of(8 // partitions, partitions)
    state = shapes_of(name)
    assert sharding.choose_fsdp(None, mesh, ADAMW, state) == fsdp
    assert sharding.choose_fsdp(not fsdp, mesh, ADAMW, state) != fsdp


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_xxl_is_never_whole(optimizer: str) -> None:
    """State of 11.1 B parameters on 64 × 4 devices: 1/256 each, but for small vectors."""
    update = make_optimizer(OptimizerConfig(name=optimizer, learning_rate=1e-3), 100)
    model = Transformer(named_config("t5_1_1_xxl", scan_layers=True))
    state = jax.eval_shape(lambda: initial_state(model, update, 0))
    mesh = mesh_of(64, 4)
    places = sharding.state_shardings(mesh, update, state, fsdp=True)
    whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    assert sharding.bytes_per_device(state, places) < 1.02 * whole / 256


def test_a_dimension_that_does_not_divide_stays_whole() -> None:
    """Six heads of T5 v1.1 Small on four partitions."""
    state = shapes_of("t5_1_1_small")
    places = sharding.parameter_shardings(mesh_of(2, 4), state.params, fsdp=True)
    bias = places["encoder"]["relpos_bias"]["rel_embedding"]
    assert bias.shard_shape((6, 32)) == (6, 32)
    mlp = places["encoder"]["layers"]["mlp"]["wo"]["kernel"]
    assert mlp.shard_shape((8, 1024, 512)) == (8, 256, 256)


def test_rows_of_this_process() -> None:
    mesh = sharding.make_mesh(1, jax.devices()[:1])
    assert sharding.rows_here(mesh, 4).tolist() == [True] * 4


@pytest.mark.campaign
@pytest.mark.slow
@pytest.mark.parametrize("student", ["t5", "t5gemma"])
def test_every_mesh_gives_one_devices_parameters(tmp_path: pathlib.Path, student: str) -> None:
    """8×1, 4×2, 2×4 and 1×8, with FSDP and without, slices, and a change of mesh in mid-run."""
    result = subprocess.run(
        [sys.executable, ROOT / "tests" / "helpers" / "mesh_equality.py", tmp_path, student],
        env={
            **os.environ,
            "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": str(ROOT),
        },
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    print(result.stdout)
    assert result.returncode == 0, result.stderr[-3000:]
