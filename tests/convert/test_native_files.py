"""Our own checkpoints as a source, and written from one; layers stacked and one by one."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import subprocess
import sys
import textwrap
import threading
from typing import Any

import jax
import numpy as np
import pytest
from flax import traverse_util
from layer_stacking import stack_layers
from source_examples import (
    BYTE_SIZED,
    BYTES,
    UNEQUAL,
    V1_0,
    Memory,
    assert_same_values,
    description_of,
    stacked_like,
)

from distill_sbs.checkpoint import checkpointer as checkpoint
from distill_sbs.checkpoint import orbax_adapter, steps
from distill_sbs.convert.mesh_reader import read_sharded
from distill_sbs.convert.native import NativeSource, write_native
from distill_sbs.errors import UserError
from distill_sbs.inference.student import Student

ROOT = pathlib.Path(__file__).parent.parent.parent
PATH = "encoder/layers_1/mlp/wo/kernel"


def written(folder: pathlib.Path, memory: Memory, **options: Any) -> NativeSource:
    write_native(memory, str(folder), vocabulary=BYTES, **options)
    return NativeSource(str(folder))


@pytest.fixture
def run_folder(tmp_path: pathlib.Path) -> tuple[pathlib.Path, Memory]:
    """A MODEL_DIR as training leaves it, layers stacked, with more than parameters in its state."""
    memory = Memory(scan_layers=True, **UNEQUAL)
    tree = stack_layers(traverse_util.unflatten_dict(memory.values, sep="/"))
    state = jax.tree.map(jax.numpy.asarray, {"step": np.int32(7), "params": tree, "more": tree})
    checkpointer = checkpoint.Checkpointer(str(tmp_path / "run"))
    progress = steps.Progress({"tiny": 3})
    checkpointer.save(7, state, progress, description_of(memory.config))
    checkpointer.close()
    return tmp_path / "run", memory


def test_reads_what_training_wrote(run_folder: tuple[pathlib.Path, Memory]) -> None:
    folder, memory = run_folder
    for location in (folder, folder / "checkpoints", folder / "checkpoints" / "7"):
        source = NativeSource(str(location))
        assert source.location == str(folder / "checkpoints" / "7")
        assert source.config == memory.config
        assert source.vocabulary == BYTES
        assert source.shapes() == dict(memory.shapes())
    assert_same_values(source, memory)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "scan_layers"),
    [({}, False), (V1_0, True), (UNEQUAL, True)],
    ids=["v1.1", "1.0, stacked", "unequal, stacked"],
)
def test_there_and_back(tmp_path: pathlib.Path, changes: dict[str, Any], scan_layers: bool) -> None:
    memory = Memory(**BYTE_SIZED, **changes)
    done: list[int] = []
    source = written(tmp_path / "new", memory, scan_layers=scan_layers, advance=done.append)
    assert source.config == dataclasses.replace(memory.config, scan_layers=scan_layers)
    assert source.shapes() == dict(memory.shapes())
    assert_same_values(source, memory)
    assert sum(done) == sum(array.size for array in memory.values.values())
    again = tmp_path / "again"
    write_native(source, str(again), scan_layers=not scan_layers)
    assert_same_values(NativeSource(str(again)), memory)


@pytest.mark.slow
def test_one_tensor_of_one_layer_is_in_memory(tmp_path: pathlib.Path) -> None:
    memory = Memory(**BYTE_SIZED, num_encoder_layers=6)
    written(tmp_path / "new", memory, scan_layers=True)
    assert memory.reads == len(memory.values)
    assert memory.most_alive <= 2  # one that is written, one that is read


def test_layers_of_a_stack_have_chunks_of_their_own(tmp_path: pathlib.Path) -> None:
    written(tmp_path / "new", Memory(**BYTE_SIZED), scan_layers=True)
    stored = orbax_adapter.list_stored(tmp_path / "new")
    kernel = stored["encoder/layers/mlp/wo/kernel"]
    assert (kernel.shape, kernel.storage.chunk_shape) == ((2, 24, 16), (1, 24, 16))
    embedding = stored["token_embedder/embedding"]
    assert embedding.storage.chunk_shape == embedding.shape


@pytest.mark.slow
@pytest.mark.parametrize("scan_layers", [False, True])
def test_what_is_written_is_used_as_any_checkpoint(
    tmp_path: pathlib.Path, scan_layers: bool
) -> None:
    memory = Memory(**BYTE_SIZED)
    source = written(tmp_path / "new", memory, scan_layers=scan_layers)
    loaded = Student.load(str(tmp_path / "new"))
    expected = read_sharded(source, stacked_like(source))
    jax.tree.map(np.testing.assert_array_equal, loaded.params, expected)
    assert loaded.description.mixture is None
    assert loaded.description.converted_from == "memory"
    assert loaded.tokens("ab", "label").tolist() == [
        *(each + 3 for each in b"predict: ab"),
        1,
    ]
    (answer,) = loaded.answer(["ab"])
    assert isinstance(answer, str)


@pytest.mark.slow
def test_what_a_run_said_of_itself_is_kept(
    run_folder: tuple[pathlib.Path, Memory], tmp_path: pathlib.Path
) -> None:
    source = NativeSource(str(run_folder[0]))
    source.vocabulary = {"kind": "bytes", "size": 40}  # its 48 rows hold no 259
    write_native(source, str(tmp_path / "new"), scan_layers=False)
    description = NativeSource(str(tmp_path / "new")).description
    assert description is not None and source.description is not None
    for name in ("mixture", "task_feature_lengths", "max_decode_tokens", "prefixes"):
        assert getattr(description, name) == getattr(source.description, name)
    assert not description.student.scan_layers


@pytest.mark.slow
def test_restores_into_other_layouts(tmp_path: pathlib.Path) -> None:
    """Stacked on disk, one by one in memory, and the other way round."""
    memory = Memory(**BYTE_SIZED)
    source = written(tmp_path / "stacked", memory, scan_layers=True)
    source.config = memory.config
    tree = read_sharded(source, stacked_like(source))
    np.testing.assert_array_equal(
        tree["encoder"]["layers_1"]["mlp"]["wo"]["kernel"], memory.values[PATH]
    )
    source = written(tmp_path / "single", memory, scan_layers=False)
    source.config = dataclasses.replace(memory.config, scan_layers=True)
    tree = read_sharded(source, stacked_like(source))
    np.testing.assert_array_equal(
        tree["encoder"]["layers"]["mlp"]["wo"]["kernel"][1], memory.values[PATH]
    )


PLACED_ON_EIGHT_DEVICES = """
    import contextlib, sys
    import jax, numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec
    from distill_sbs.convert import mesh_reader
    from distill_sbs.convert.native import NativeSource

    class Counting(NativeSource):
        reads = 0
        def read(self, path, index=None):
            self.reads += path == "encoder/layers_1/mlp/wo/kernel"
            return super().read(path, index)

    source = Counting(sys.argv[1])
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "model"))
    from distill_sbs.model.network import initial_parameters
    shapes = jax.eval_shape(lambda: initial_parameters(source.config, jax.random.key(0)))

    def placed(leaf):  # the last axis but one over two devices, each part on four
        names = [None] * (leaf.ndim - 2) + ["model", None] if leaf.ndim > 1 else [None]
        place = NamedSharding(mesh, PartitionSpec(*names))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)

    abstract = jax.tree.map(placed, shapes)
    told, values = [], []

    @contextlib.contextmanager
    def show_values(what, count, silent):
        told.append(count)
        yield values.append

    mesh_reader.show_values = show_values
    tree = mesh_reader.read_sharded(source, abstract)
    stack = tree["encoder"]["layers"]["mlp"]["wo"]["kernel"]
    assert [shard.data.shape for shard in stack.addressable_shards] == [(2, 12, 16)] * 8
    # Two parts, each of them on four devices and read once.
    assert source.reads == 2, source.reads
    assert [sum(values)] == told == [sum(leaf.size for leaf in jax.tree.leaves(tree))]
    for layer in range(2):
        expected = NativeSource.read(source, f"encoder/layers_{layer}/mlp/wo/kernel")
        np.testing.assert_array_equal(stack[layer], expected)
    np.testing.assert_array_equal(
        tree["token_embedder"]["embedding"], source.read("token_embedder/embedding"))
    print("placed")
"""


@pytest.mark.slow
def test_each_part_is_read_once_for_all_its_devices(tmp_path: pathlib.Path) -> None:
    written(tmp_path / "new", Memory(**BYTE_SIZED), scan_layers=True)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PLACED_ON_EIGHT_DEVICES), str(tmp_path / "new")],
        cwd=ROOT,
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout == "placed\n", done.stderr[-3000:]


# ---------------------------------- refusals ---------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("state/**/d/*", r"new cannot be read \(state/.* bytes, .* were written\)"),
        ("state/_METADATA", r"new cannot be read \(state/_METADATA has .* were written\)"),
        ("description/metadata", r"new cannot be read \(description/metadata: broken JSON"),
    ],
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of orbax
def test_a_truncated_checkpoint(tmp_path: pathlib.Path, part: str, message: str) -> None:
    written(tmp_path / "new", Memory(**BYTE_SIZED))
    files = [path for path in (tmp_path / "new").glob(part) if path.is_file()]
    assert files
    for file in files:
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=rf"{message}.*copy it again"):
        NativeSource(str(tmp_path / "new"))


@pytest.mark.slow
def test_a_damaged_tensor_is_named_with_its_shape(tmp_path: pathlib.Path) -> None:
    memory = Memory(**BYTE_SIZED)
    source = written(tmp_path / "new", memory)
    source.read(PATH)
    # The values lie in files of their own; the database that names them is kept.
    for file in (tmp_path / "new" / "state" / "ocdbt.process_0" / "d").iterdir():
        file.write_bytes(b"")
    fresh = NativeSource.__new__(NativeSource)
    fresh.__dict__ |= source.__dict__
    with pytest.raises(UserError, match=rf"tensor {PATH} of shape \(24, 16\) cannot be read"):
        fresh.read(PATH)


def test_shapes_and_computation_are_compared(tmp_path: pathlib.Path) -> None:
    memory = Memory(**BYTE_SIZED)
    source = written(tmp_path / "new", memory, scan_layers=True)
    with pytest.raises(UserError, match=r"layer_norm_epsilon=1e-06, expected 1e-05"):
        source.check(dataclasses.replace(memory.config, layer_norm_epsilon=1e-5))
    with pytest.raises(UserError, match=r"tensor .*mlp.* has shape .*24.*, expected .*32"):
        source.check(dataclasses.replace(memory.config, mlp_dim=32))
    with pytest.raises(UserError, match=r"no tensor encoder/layers_2/.*; expected one of shape"):
        source.check(dataclasses.replace(memory.config, num_encoder_layers=3))
    with pytest.raises(UserError, match=r"encoder/layers_1/.* has no place in the student"):
        source.check(dataclasses.replace(memory.config, num_encoder_layers=1))


def test_a_vocabulary_is_needed_and_must_fit(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match="carries no vocabulary.*--vocabulary_file"):
        write_native(Memory(), str(tmp_path / "new"))
    with pytest.raises(UserError, match="the vocabulary has 259 pieces, memory embeds 48"):
        write_native(Memory(), str(tmp_path / "new"), vocabulary=BYTES)
    assert not (tmp_path / "new").exists()


def test_a_failure_stops_writing(tmp_path: pathlib.Path) -> None:
    memory = Memory(**BYTE_SIZED)
    memory.fails_at = 9
    with pytest.raises(OSError, match="the disk is gone"):
        write_native(memory, str(tmp_path / "new"), vocabulary=BYTES)
    assert memory.reads == 9
    assert not (tmp_path / "new").exists()
    assert not [each for each in threading.enumerate() if "tensor_by_tensor" in each.name]
