"""T5X's checkpoints read and written, without T5X; tests/convert/test_t5x_restores.py asks T5X
itself.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import shutil
from typing import Any

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore
from etils import epath
from flax import serialization, traverse_util
from model_examples import student

from distill_sbs.convert import source as sources
from distill_sbs.convert.t5x import disk_layouts, files, network_kinds
from distill_sbs.errors import UserError
from distill_sbs.files import replace_folder
from distill_sbs.model.config import T5Config

VERSIONS: dict[str, dict[str, Any]] = {
    "v1.1": {"num_decoder_layers": 3},
    "1.0": {"mlp_activations": ("relu",), "logits_via_embedding": True, "num_encoder_layers": 1},
}
MISSING = object()
NAME = "encoder/layers_1/attention/query/kernel"  # [16, 16]: two heads of 8
ARRAY = "target.encoder.layers_1.attention.query.kernel"


class Tree(sources.ParameterSource):
    """Parameters in memory, by path."""

    location = "memory"

    def __init__(self, config: T5Config, values: dict[str, np.ndarray]) -> None:
        self.config, self.values = config, values

    def shapes(self):
        return {path: array.shape for path, array in self.values.items()}

    def _read(self, path, index):
        return self.values[path] if index is None else self.values[path][index]


def tree(**changes: Any) -> Tree:
    model, params = student(**changes)
    return Tree(model.config, traverse_util.flatten_dict(params, sep="/"))


def assert_same(found: sources.ParameterSource, expected: sources.ParameterSource) -> None:
    """The same parameters, to the bit; and the configuration, as far as shapes show it."""
    shown = {"dropout_rate": 0.1}
    assert found.config == dataclasses.replace(expected.config, **shown)
    found.check(expected.config)
    assert found.shapes() == dict(expected.shapes())
    for path in expected.shapes():
        np.testing.assert_array_equal(
            found.read(path), expected.read(path), err_msg=path, strict=True
        )


@pytest.fixture
def written(tmp_path: pathlib.Path) -> pathlib.Path:
    """A checkpoint of ours in T5X's layout, of the t5 network."""
    files.write_t5x(tree(), str(tmp_path / "t5x"), step=7)
    return tmp_path / "t5x" / "checkpoint_7"


# ------------------------------- there and back -------------------------------


@pytest.mark.parametrize("scan_layers", [False, True], ids=["one by one", "stacked"])
@pytest.mark.parametrize("changes", VERSIONS.values(), ids=VERSIONS)
def test_there_and_back_is_identical(tmp_path, changes, scan_layers):
    source = tree(**changes)
    # A chunk of zeros is data like any other.
    source.values["decoder/layers_0/mlp/wo/kernel"][...] = 0
    done: list[int] = []
    output = tmp_path / "t5x"
    files.write_t5x(source, str(output), scan_layers=scan_layers, advance=done.append)
    assert_same(files.T5XSource(str(output)), source)
    assert sum(done) == sum(array.size for array in source.values.values())
    assert [child.name for child in tmp_path.iterdir()] == ["t5x"]


def test_names_and_shapes_are_t5x_s():
    """Worked out by hand from t5x/examples/{t5,scalable_t5}/network.py."""
    config = tree(num_decoder_layers=3).config
    unrolled = {each.name: each.shape for each in network_kinds.list_tensors(config, False)}
    assert unrolled["decoder/layers_2/self_attention/out/kernel"] == (16, 16)
    assert unrolled["encoder/relpos_bias/rel_embedding"] == (2, 32)
    stacked = {each.name: each.shape for each in network_kinds.list_tensors(config, True)}
    assert stacked["decoder/decoder/self_attention/query/kernel"] == (16, 3, 2, 8)
    assert stacked["decoder/decoder/self_attention/out/kernel"] == (2, 3, 8, 16)
    assert stacked["encoder/encoder/mlp/wi_0/kernel"] == (16, 2, 24)
    assert stacked["encoder/encoder/pre_mlp_layer_norm/scale"] == (16, 2)
    assert stacked["encoder/encoder/relpos_bias/rel_embedding"] == (2, 2, 32)
    assert stacked["encoder/encoder_norm/scale"] == (16,)
    # Norms, attention, feed-forward and positions of a side; embedding, final norms, logits.
    assert len(stacked) == (2 + 4 + 3 + 1) + (3 + 8 + 3 + 1) + 4


@pytest.mark.parametrize("scan_layers", [False, True], ids=["one by one", "stacked"])
def test_reads_the_slices_asked_for(tmp_path, scan_layers):
    source = tree()
    files.write_t5x(source, str(tmp_path / "t5x"), scan_layers=scan_layers)
    found = files.T5XSource(str(tmp_path / "t5x"))
    # [16, 16] for [16, 2, 8] and [2, 8, 16]: bounds on, inside and across heads; nothing; steps.
    slices = [slice(None), slice(0, 8), slice(3, 5), slice(6, 13), slice(8, 8), slice(1, 16, 3)]
    for name in ("query", "out"):
        path = f"decoder/layers_1/encoder_decoder_attention/{name}/kernel"
        for rows in slices:
            for columns in slices:
                np.testing.assert_array_equal(
                    found.read(path, (rows, columns)),
                    source.values[path][rows, columns],
                    err_msg=f"{name} {rows} {columns}",
                    strict=True,
                )
    scale = "encoder/layers_1/pre_mlp_layer_norm/scale"
    np.testing.assert_array_equal(found.read(scale, (slice(4, 9),)), source.values[scale][4:9])


def test_chunks_are_of_one_layer_and_of_at_most_64_mib(tmp_path):
    def chunks(shape: tuple[int, ...], layers_axis: int | None) -> list[int]:
        _, listed = disk_layouts.create_array(epath.Path(tmp_path), "a/b", shape, layers_axis)
        return listed["metadata"]["chunks"]

    assert chunks((4096, 24, 64, 64), 1) == [4096, 1, 64, 64]
    assert chunks((32128, 4096), None) == [4096, 4096]
    assert chunks((1024, 24, 65536), 1) == [256, 1, 65536]
    assert (tmp_path / "target.a.b" / ".zarray").is_file()


# ---------------------------------- layouts -----------------------------------


def model_tree(source: Tree, **replaced: Any) -> dict[str, Any]:
    flat = dict(source.values) | replaced
    return traverse_util.unflatten_dict(
        {path: array for path, array in flat.items() if array is not MISSING}, sep="/"
    )


@pytest.mark.parametrize("ocdbt", [True, False], ids=["database", "folders"])
def test_reads_orbax(tmp_path, ocdbt):
    source = tree(num_decoder_layers=3)
    state = {"target": model_tree(source), "state": {"step": np.int32(5)}}
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=ocdbt)
    ocp.Checkpointer(handler).save(tmp_path / "checkpoint_5" / "state", state)
    assert (tmp_path / "checkpoint_5/state/manifest.ocdbt").exists() == ocdbt
    assert_same(files.T5XSource(str(tmp_path)), source)


def test_reads_the_listing_of_orbax_s_first_releases(written):
    source = tree()
    placeholders = {
        path: array if array.ndim == 1 else f"PLACEHOLDER://target.{path.replace('/', '.')}"
        for path, array in source.values.items()
    }
    model = traverse_util.unflatten_dict(placeholders, sep="/")
    content = serialization.msgpack_serialize({"target": model, "state": {}})
    (written / "checkpoint").write_bytes(content)
    assert_same(files.T5XSource(str(written)), source)


@pytest.mark.parametrize("version", [0, 3])
def test_reads_arrays_inside_the_listing(tmp_path, version):
    source = tree()
    content: dict[str, Any] = {"target": model_tree(source), "state": {}}
    if version:
        content = {"version": version, "optimizer": content}
    (tmp_path / "checkpoint").write_bytes(serialization.msgpack_serialize(content))
    assert_same(files.T5XSource(str(tmp_path)), source)
    assert_same(files.T5XSource(str(tmp_path / "checkpoint")), source)


@pytest.mark.parametrize(
    "elsewhere",
    [
        {"kvstore": {"driver": "gcs", "bucket": "t5x-dummy-bucket", "path": f"{ARRAY}/"}},
        {"kvstore": {"driver": "gfile", "path": ARRAY}},
        {"kvstore": {"driver": "gcs", "bucket": "t5x-dummy-bucket"}, "path": ARRAY},
    ],
    ids=["written to gs://", "written at Google", "old TensorStore"],
)
def test_reads_arrays_listed_as_elsewhere(written, elsewhere):
    """A checkpoint that was copied here from where T5X wrote it."""
    listing = written / "checkpoint"
    content = serialization.msgpack_restore(listing.read_bytes())
    node = content["optimizer"]["target"]["encoder"]["layers_1"]["attention"]["query"]
    del node["kernel"]["kvstore"]
    node["kernel"].update(elsewhere)
    listing.write_bytes(serialization.msgpack_serialize(content))
    assert_same(files.T5XSource(str(written)), tree())


def test_bfloat16_becomes_float32(tmp_path):
    source = tree()
    rounded = {path: jnp.asarray(array, jnp.bfloat16) for path, array in source.values.items()}
    expected = Tree(source.config, {p: np.asarray(a, np.float32) for p, a in rounded.items()})
    assert not np.array_equal(expected.values[NAME], source.values[NAME])
    state = {"target": traverse_util.unflatten_dict(rounded, sep="/")}
    ocp.PyTreeCheckpointer().save(tmp_path / "orbax" / "state", state)
    assert_same(files.T5XSource(str(tmp_path / "orbax")), expected)
    (tmp_path / "inside").mkdir()
    listing = serialization.msgpack_serialize({"version": 3, "optimizer": state})
    (tmp_path / "inside" / "checkpoint").write_bytes(listing)
    assert_same(files.T5XSource(str(tmp_path / "inside")), expected)


def test_takes_the_newest_of_a_model_dir(tmp_path, monkeypatch):
    for step, seed in ((900, 1), (1000, 2)):
        files.write_t5x(tree(seed=seed), str(tmp_path / str(seed)), step=step)
        (tmp_path / str(seed) / f"checkpoint_{step}").rename(tmp_path / f"checkpoint_{step}")
    (tmp_path / "checkpoint_2000.tmp-1700000000").mkdir()  # one that T5X was killed at
    assert_same(files.T5XSource(str(tmp_path)), tree(seed=2))
    assert_same(files.T5XSource(str(tmp_path / "checkpoint_900")), tree(seed=1))
    monkeypatch.chdir(tmp_path)
    assert_same(files.T5XSource("checkpoint_900"), tree(seed=1))


def test_google_cloud_storage_is_named_as_tensorstore_wants_it():
    """No bucket can be reached here, but TensorStore checks the specification."""
    folder = epath.Path("gs://t5-data/pretrained_models/t5x/t5_small/checkpoint_1000000")
    spec = disk_layouts._folder_kvstore(folder)
    path = "pretrained_models/t5x/t5_small/checkpoint_1000000/"
    assert tensorstore.KvStore.Spec(spec).to_json() == {
        "driver": "gcs",
        "bucket": "t5-data",
        "path": path,
    }


# ----------------------------------- errors -----------------------------------


def remove_array(folder: pathlib.Path) -> None:
    shutil.rmtree(folder / ARRAY)


def remove_chunk(folder: pathlib.Path) -> None:
    (folder / ARRAY / "0.0").unlink()


def truncate(name: str, folder: pathlib.Path) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (remove_array, NAME),
        (remove_chunk, NAME),
        (functools.partial(truncate, f"{ARRAY}/0.0"), NAME),
        (functools.partial(truncate, f"{ARRAY}/.zarray"), NAME),
        (functools.partial(truncate, "checkpoint"), "checkpoint_7/checkpoint"),
    ],
    ids=["array", "chunk", "half a chunk", "half a description", "half a listing"],
)
def test_damage_is_one_error_that_names_the_tensor(written, damage, named):
    damage(written)
    with pytest.raises(UserError, match=rf"{named} cannot be read \(.+\); .* copy it again"):
        files.T5XSource(str(written)).read(NAME)


def test_a_damaged_database_is_one_error(tmp_path):
    ocp.PyTreeCheckpointer().save(tmp_path / "checkpoint_1/state", {"target": model_tree(tree())})
    state = tmp_path / "checkpoint_1" / "state"
    for file in (state / "ocdbt.process_0" / "d").iterdir():
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match=r"cannot be read \(.+\); .* copy it again"):
        source = files.T5XSource(str(tmp_path))
        for path in source.shapes():
            source.read(path)
    truncate("manifest.ocdbt", state)
    with pytest.raises(UserError, match=r"manifest.ocdbt cannot be read \(.+\); .*copy it again"):
        files.T5XSource(str(tmp_path))


def test_a_tensor_of_orbax_that_was_not_copied_is_missed(tmp_path):
    """Not taken for a student of fewer layers."""
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False)
    state = tmp_path / "checkpoint_1" / "state"
    ocp.Checkpointer(handler).save(state, {"target": model_tree(tree())})
    for folder in state.glob("target.encoder.layers_1.*"):
        shutil.rmtree(folder)
    with pytest.raises(UserError, match=r"tensor encoder/layers_1/.+ cannot be read \(.+does not"):
        files.T5XSource(str(tmp_path))
    truncate("_METADATA", state)
    with pytest.raises(UserError, match=r"_METADATA cannot be read \(.+\); .* copy it again"):
        files.T5XSource(str(tmp_path))


def test_an_unfinished_copy_is_one_error(written):
    (written / "checkpoint").unlink()
    with pytest.raises(UserError, match="none of the files checkpoint, manifest.ocdbt and _METAD"):
        files.T5XSource(str(written.parent))


def inside(folder: pathlib.Path, source: Tree, **replaced: Any) -> str:
    content = {"version": 3, "optimizer": {"target": model_tree(source, **replaced)}}
    (folder / "checkpoint").write_bytes(serialization.msgpack_serialize(content))
    return str(folder)


@pytest.mark.parametrize(
    ("path", "array", "message"),
    [
        (NAME, MISSING, rf"has no tensor {NAME}; expected one of shape \(16, 16\)"),
        (NAME, np.ones((16, 8), np.float32), r"has shape \(16, 8\), expected \(16, 16\)"),
        ("encoder/layers_1/adapter", np.ones(3, np.float32), "layers_1/adapter of shape"),
    ],
    ids=["missing", "of another shape", "unknown"],
)
def test_tensors_are_compared_with_the_student_s(tmp_path, path, array, message):
    source = files.T5XSource(inside(tmp_path, tree(), **{path: array}))
    with pytest.raises(UserError, match=message):
        source.check(source.config)
    with pytest.raises(UserError, match=message):
        files.write_t5x(source, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("path", "array", "message"),
    [
        ("token_embedder/embedding", MISSING, "token_embedder/embedding is missing"),
        (
            "encoder/relpos_bias/rel_embedding",
            np.ones((3, 32), np.float32),
            "16 columns, expected a multiple of the 3 heads",
        ),
        (NAME, np.ones((16, 16), np.int32), f"{NAME} is of type int32, expected one of float32"),
    ],
    ids=["no embedding", "heads", "integers"],
)
def test_what_is_no_t5_is_refused_at_once(tmp_path, path, array, message):
    with pytest.raises(UserError, match=message):
        files.T5XSource(inside(tmp_path, tree(), **{path: array}))


def test_an_unknown_tensor_is_refused_by_name(written):
    with pytest.raises(UserError, match="has no tensor encoder/layers_9/x"):
        files.T5XSource(str(written)).read("encoder/layers_9/x")


@pytest.mark.parametrize("scan_layers", [False, True], ids=["one by one", "stacked"])
def test_equal_tables_of_relative_positions_are_one(tmp_path, scan_layers):
    """scalable_t5 has one in every layer; with different ones it is a umT5."""
    source = tree()
    table = source.values["encoder/relpos_bias/rel_embedding"]
    other = table.copy()
    other[1, 31] += 1
    for second, equal in ((table, True), (other, False)):
        values = dict(source.values)
        if scan_layers:
            values = {}
            for each in network_kinds.list_tensors(source.config, True):
                layers = [source.values[path].reshape(each.layer_shape()) for path in each.paths]
                values[each.name] = np.stack(layers, 1) if each.layers_axis else layers[0]
            values["encoder/encoder/relpos_bias/rel_embedding"] = np.stack([table, second], 1)
        else:
            del values["encoder/relpos_bias/rel_embedding"]
            values["encoder/layers_0/relpos_bias/rel_embedding"] = table
            values["encoder/layers_1/relpos_bias/rel_embedding"] = second
        location = inside(tmp_path, Tree(source.config, values))
        found = files.T5XSource(location)
        if equal:
            assert_same(found, source)
        else:
            assert found.config.relative_attention_per_layer
            path = "encoder/layers_1/relpos_bias/rel_embedding"
            np.testing.assert_array_equal(found.read(path), other)


def test_umt5_there_and_back(tmp_path):
    source = tree(relative_attention_per_layer=True)
    with pytest.raises(UserError, match=r"as umT5 does; .* Use --scan_layers"):
        files.write_t5x(source, str(tmp_path / "t5"))
    assert not (tmp_path / "t5").exists()
    files.write_t5x(source, str(tmp_path / "scalable_t5"), scan_layers=True)
    assert_same(files.T5XSource(str(tmp_path / "scalable_t5")), source)


def test_no_checkpoint(tmp_path):
    with pytest.raises(UserError, match="no checkpoint of T5X there; expected a folder checkpoint"):
        files.T5XSource(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="no checkpoint of T5X there"):
        files.T5XSource(str(tmp_path))
    ocp.PyTreeCheckpointer().save(tmp_path / "ours" / "state", {"params": {"a": np.ones(3)}})
    with pytest.raises(UserError, match="has no tensors 'target'"):
        files.T5XSource(str(tmp_path / "ours"))


def test_mesh_tensorflow_is_recognised(tmp_path):
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-1000000"\n')
    (tmp_path / "model.ckpt-1000000.index").touch()
    for location in (tmp_path, tmp_path / "model.ckpt-1000000"):
        with pytest.raises(UserError, match="of Mesh TensorFlow.*convert_tf_checkpoint.py"):
            files.T5XSource(str(location))


# ----------------------------------- writing ----------------------------------


def test_nothing_that_exists_is_overwritten(written):
    before = (written / "checkpoint").read_bytes()
    with pytest.raises(UserError, match="exists already; choose another folder"):
        files.write_t5x(tree(), str(written.parent))
    assert (written / "checkpoint").read_bytes() == before
    with pytest.raises(UserError, match="is -1, expected 0 or more"):
        files.write_t5x(tree(), str(written.parent.parent / "other"), step=-1)


def test_a_failure_halfway_leaves_nothing(tmp_path, written):
    remove_chunk(written)
    source = files.T5XSource(str(written))
    done: list[int] = []
    with (
        pytest.raises(UserError, match=f"{NAME} cannot be read"),
        replace_folder(tmp_path / "out") as folder,
    ):
        files.write_t5x(source, str(folder), advance=done.append)
    assert done
    assert sorted(child.name for child in tmp_path.iterdir()) == ["t5x"]
