"""T5X itself writes what we read, and restores what we write as `t5x.train` does.

Run with T5X importable: `pytest -m t5x tests/convert/test_t5x_restores.py`.
"""

from __future__ import annotations

import functools
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from flax import traverse_util
from flax.core import unfreeze
from model_examples import batch

from distill_sbs.convert.source import ParameterSource
from distill_sbs.convert.t5x import files
from distill_sbs.errors import UserError
from distill_sbs.model.config import T5Config
from distill_sbs.model.network import Transformer

pytestmark = pytest.mark.t5x

# Sizes unlike one another; Adafactor factors where both are 128 or more.
SIZES: dict[str, Any] = {
    "vocab_size": 384,
    "emb_dim": 128,
    "num_heads": 2,
    "head_dim": 12,
    "mlp_dim": 144,
    "num_encoder_layers": 2,
    "num_decoder_layers": 3,
}
VERSIONS: dict[str, dict[str, Any]] = {
    "v1.1": {"mlp_activations": ("gelu", "linear"), "logits_via_embedding": False},
    "1.0": {"mlp_activations": ("relu",), "logits_via_embedding": True},
}
NETWORKS = ("t5", "scalable_t5", "scalable_t5 stacked")
FEATURES = ("encoder_input_tokens", "decoder_input_tokens", "decoder_target_tokens")
STEP = 7


class Run(NamedTuple):
    """A network of T5X with random weights, and what T5X's own functions handle it with."""

    network: str
    version: str
    module: Any
    partitioner: Any
    initializer: Any
    state: Any

    def values(self) -> dict[str, np.ndarray]:
        """Its parameters by T5X's names."""
        return flat(self.state.params)


def flat(tree: Any) -> dict[str, np.ndarray]:
    leaves = traverse_util.flatten_dict(unfreeze(tree), sep="/")
    return {path: np.asarray(leaf) for path, leaf in leaves.items()}


@pytest.fixture(scope="module")
def t5x() -> Any:
    """T5X with its modules; skips, saying so, where they cannot be imported."""
    pytest.importorskip(
        "t5x.checkpoints",
        reason="T5X is not importable; setup.py says how to install it",
        exc_type=ImportError,
    )
    import t5x
    from t5x import adafactor, models, optimizers, partitioning, utils  # noqa: F401
    from t5x.examples.scalable_t5 import network as scalable  # noqa: F401
    from t5x.examples.t5 import network  # noqa: F401

    return t5x


def initializer(t5x: Any, network: str, version: str, optimizer: Any) -> tuple[Any, ...]:
    """T5X's module, partitioner and initializer, as a gin file of T5X's makes them."""
    import seqio

    examples = t5x.examples.t5 if network == "t5" else t5x.examples.scalable_t5
    scan = {} if network == "t5" else {"scan_layers": "stacked" in network}
    config = examples.network.T5Config(
        **SIZES, **VERSIONS[version], **scan, dtype="float32", dropout_rate=0.0
    )
    module = examples.network.Transformer(config=config)
    vocabulary = seqio.ByteVocabulary()
    model = t5x.models.EncoderDecoderModel(
        module=module,
        input_vocabulary=vocabulary,
        output_vocabulary=vocabulary,
        optimizer_def=optimizer,
    )
    partitioner = t5x.partitioning.PjitPartitioner(
        num_partitions=1, logical_axis_rules=t5x.partitioning.standard_logical_axis_rules()
    )
    shapes = dict.fromkeys(FEATURES, (2, 8))
    return (
        module,
        partitioner,
        t5x.utils.TrainStateInitializer(
            optimizer, model.get_initial_variables, shapes, partitioner
        ),
    )


def adafactor(t5x: Any) -> Any:
    """The optimizer of all of T5X's model files."""
    rules = t5x.adafactor.standard_logical_factor_rules()
    return t5x.adafactor.Adafactor(decay_rate=0.8, step_offset=0, logical_factor_rules=rules)


@pytest.fixture(scope="module")
def make_run(t5x: Any) -> Any:
    """`make_run(network, version)`: random weights; scalable_t5's tables equal in all layers."""

    @functools.cache
    def make(network: str, version: str) -> Run:
        parts = initializer(t5x, network, version, adafactor(t5x))
        state = parts[-1].from_scratch(jax.random.PRNGKey(0))
        generator = np.random.default_rng(0)
        drawn = {}
        for path, leaf in sorted(flat(state.params).items()):
            drawn[path] = leaf * generator.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
            if path.endswith("relpos_bias/rel_embedding"):
                if leaf.ndim == 3:
                    drawn[path][...] = drawn[path][:, :1]
                elif "/layers_" in path:
                    side = path.partition("/")[0]
                    drawn[path] = drawn[f"{side}/layers_0/relpos_bias/rel_embedding"]
        params = traverse_util.unflatten_dict(
            {path: jax.device_put(value) for path, value in drawn.items()}, sep="/"
        )
        state = state.replace_params(params).replace_step(np.array(STEP, np.int32))
        return Run(network, version, *parts, state)

    return make


def save(t5x: Any, run: Run, layout: str, folder: pathlib.Path) -> None:
    """As `t5x.train` saves with `use_orbax` False, its older layout, and True."""
    folder.mkdir(exist_ok=True)  # as t5x.train; the Orbax manager goes a folder up otherwise
    shapes = run.initializer.global_train_state_shape
    if layout == "older":
        t5x.checkpoints.Checkpointer(shapes, run.partitioner, str(folder)).save(run.state)
        return
    manager = t5x.checkpoints.OrbaxCheckpointManagerInterface(str(folder), shapes, run.partitioner)
    manager.save(run.state)
    manager.close()


def restore(t5x: Any, parts: tuple[Any, ...], folder: pathlib.Path, use_orbax: bool, **more: Any):
    """As `t5x.train` does from INITIAL_CHECKPOINT_PATH, with finetune.gin's settings."""
    config = t5x.utils.RestoreCheckpointConfig(
        path=str(folder), mode="specific", dtype="float32", **more
    )
    _, partitioner, start = parts
    model_dir = folder.parent.parent / "model_dir"
    model_dir.mkdir(exist_ok=True)
    valid, paths = t5x.utils.get_first_valid_restore_config_and_paths([config])
    state, _ = t5x.utils.create_checkpoint_manager_and_restore(
        start,
        partitioner,
        valid,
        paths[0],
        jax.random.PRNGKey(1),
        save_checkpoint_cfg=None,
        model_dir=str(model_dir),
        use_orbax=use_orbax,
    )
    return state


def as_ours(run: Run) -> dict[str, np.ndarray]:
    """T5X's values by our names and in our shapes, written out for each network."""
    ours = {}
    for path, value in run.values().items():
        side, _, rest = path.partition("/")
        if rest.startswith(f"{side}/"):
            layers = {
                f"{side}/layers_{layer}/{rest.partition('/')[2]}": value[:, layer]
                for layer in range(value.shape[1])
            }
        else:
            layers = {path: value}
        for name, each in layers.items():
            if "/layers_" in name and name.endswith("relpos_bias/rel_embedding"):
                name = f"{side}/relpos_bias/rel_embedding"
            elif each.ndim == 3:
                each = each.reshape((24, 128) if name.endswith("out/kernel") else (128, 24))
            ours[name] = each
    return ours


def assert_bits(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(found[path], value, err_msg=path, strict=True)


def read_all(source: ParameterSource) -> dict[str, np.ndarray]:
    return {path: source.read(path) for path in source.shapes()}


@pytest.mark.parametrize("layout", ["older", "orbax"])
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("network", NETWORKS)
def test_reads_what_t5x_writes(t5x, make_run, tmp_path, network, version, layout):
    run = make_run(network, version)
    save(t5x, run, layout, tmp_path)
    assert (tmp_path / f"checkpoint_{STEP}" / "checkpoint").exists() == (layout == "older")
    source = files.T5XSource(str(tmp_path))
    assert source.config == T5Config(**SIZES, **VERSIONS[version])
    source.check(source.config)
    assert_bits(read_all(source), as_ours(run))


@pytest.mark.parametrize("network", NETWORKS)
def test_the_same_logits(t5x, make_run, tmp_path, network):
    """What is read means the same to our network."""
    run = make_run(network, "v1.1")
    save(t5x, run, "older", tmp_path)
    source = files.T5XSource(str(tmp_path))
    params = traverse_util.unflatten_dict(read_all(source), sep="/")
    features = [batch(vocab_size=384)[name] for name in FEATURES]
    found = Transformer(source.config).apply({"params": params}, *features)
    expected = run.module.apply({"params": run.state.params}, *features, enable_dropout=False)
    real = features[-1] > 0
    assert np.asarray(expected)[real].std() > 0.5
    np.testing.assert_allclose(found[real], expected[real], atol=2e-5)


@pytest.mark.parametrize("use_orbax", [True, False], ids=["orbax", "older"])
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("network", ["t5", "scalable_t5 stacked"])
def test_t5x_restores_what_we_write(t5x, make_run, tmp_path, network, version, use_orbax):
    """There and back through T5X's own functions; with its own settings, optimizer included."""
    run = make_run(network, version)
    save(t5x, run, "orbax", tmp_path / "theirs")
    source = files.T5XSource(str(tmp_path / "theirs"))
    files.write_t5x(source, str(tmp_path / "ours"), scan_layers="stacked" in network, step=STEP)
    parts = (run.module, run.partitioner, run.initializer)
    state = restore(t5x, parts, tmp_path / "ours" / f"checkpoint_{STEP}", use_orbax)
    assert_bits(flat(state.params), run.values())
    assert state.step == STEP
    fresh = run.initializer.from_scratch(jax.random.PRNGKey(0))
    assert_bits(flat(state.state_dict()["state"]), flat(fresh.state_dict()["state"]) | {
        "step": np.array(STEP, np.int32)
    })  # fmt: skip


def test_t5x_restores_with_another_optimizer_or_none(t5x, make_run, tmp_path):
    run = make_run("t5", "v1.1")
    save(t5x, run, "older", tmp_path / "theirs")
    files.write_t5x(files.T5XSource(str(tmp_path / "theirs")), str(tmp_path / "ours"))
    folder = tmp_path / "ours" / "checkpoint_0"
    for optimizer in (t5x.optimizers.adamw(1e-3), None):
        parts = initializer(t5x, "t5", "v1.1", optimizer)
        fallback = {
            "fallback_to_scratch": True,
            "assignment_map": (("state/param_states/.*", None),),
        }
        state = restore(t5x, parts, folder, True, **(fallback if optimizer else {}))
        assert_bits(flat(state.params), run.values())
        assert state.step == 0


def test_trained_tables_of_every_layer_are_refused(t5x, tmp_path):
    """scalable_t5 draws and trains a table for each layer, which no T5 of ours has."""
    parts = initializer(t5x, "scalable_t5 stacked", "v1.1", adafactor(t5x))
    state = parts[-1].from_scratch(jax.random.PRNGKey(0))
    save(t5x, Run("", "", *parts, state), "orbax", tmp_path)
    with pytest.raises(UserError, match="have different tables of relative positions"):
        files.T5XSource(str(tmp_path))
