"""T5X's engine against ours, on the CPU in float32: network, objective, steps, microbatches.

Run with `pytest -m t5x -s tests/t5x_engine/test_t5x_engine.py` to see the numbers measured. Whole
runs of T5X's own programs are in `test_t5x_runs.py`.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import flax
import jax
import jax.numpy as jnp
import model_examples
import numpy as np
import optax
import pytest
import seqio

from distill_sbs.config import OptimizerConfig
from distill_sbs.data import registration, vocabulary
from distill_sbs.data.batches import input_pipeline
from distill_sbs.errors import UserError
from distill_sbs.model import config as configs
from distill_sbs.model import losses, network
from distill_sbs.training import optimizer as our_optimizers
from distill_sbs.training.train_step import Objective, TrainState, make_train_step

pytest.importorskip(
    "t5x", reason="T5X is not installed; requirements-t5x.txt says how", exc_type=ImportError
)

import t5x.trainer  # noqa: E402
from t5x import adafactor, models, optimizers, partitioning, utils  # noqa: E402
from t5x.examples.t5 import network as t5x_network  # noqa: E402

from distill_sbs.t5x_engine import configuration  # noqa: E402
from distill_sbs.t5x_engine.models import StepByStepModel  # noqa: E402
from distill_sbs.t5x_engine.trainer import StepByStepTrainer  # noqa: E402

pytestmark = pytest.mark.t5x

RATE = 0.5
LENGTHS = {"inputs": 64, "targets": 32, "task_ids": 32}
BASE = configs.named_config("t5_1_1_base", dropout_rate=0.0)
# One layer each where many programs are compiled.
BYTES = dataclasses.replace(
    model_examples.SMALL, vocab_size=384, num_encoder_layers=1, num_decoder_layers=1
)
TIED = dataclasses.replace(BYTES, mlp_activations=("relu",), logits_via_embedding=True)


def report(name: str, value: float, bound: float) -> None:
    print(f"\n  {name}: {value:.2e} (bound {bound:.0e})")
    assert value <= bound, name


def t5x_module(config: configs.T5Config) -> t5x_network.Transformer:
    """T5X's network of the same shape, with every field that it has."""
    names = {field.name for field in dataclasses.fields(t5x_network.T5Config)}
    shape = {name: value for name, value in vars(config).items() if name in names}
    return t5x_network.Transformer(config=t5x_network.T5Config(**shape))


def stock_model(config: configs.T5Config, **changes: Any) -> models.EncoderDecoderModel:
    pieces = seqio.ByteVocabulary()
    arguments: dict[str, Any] = {"optimizer_def": None, **changes}
    return models.EncoderDecoderModel(t5x_module(config), pieces, pieces, **arguments)


def random_parameters(config: configs.T5Config) -> Any:
    """Of about the size that T5 begins with, all of them random, norms too.

    Queries are smaller by the root of the head's width, as T5 draws them, which takes the place of
    that division in attention. Without it attention at Base takes hold of single positions, and
    rounding alone moves logits by 4e-3: our own network, compiled or op by op, as much as T5X's.
    """
    changes = {
        field.name: getattr(config, field.name) for field in dataclasses.fields(configs.T5Config)
    }

    def smaller_query(path: tuple[Any, ...], leaf: np.ndarray) -> np.ndarray:
        return leaf / np.float32(config.head_dim**0.5) if path[-2].key == "query" else leaf

    params = model_examples.student(**changes)[1]
    return jax.tree_util.tree_map_with_path(smaller_query, params)


def packed_batch(vocab_size: int) -> dict[str, np.ndarray]:
    """Two rows of four sequences each, label and rationale in turn, with padding behind them."""
    rows = [
        model_examples.packed(
            model_examples.batch(4, inputs=12, targets=9, seed=seed, vocab_size=vocab_size), 48, 36
        )
        for seed in (0, 1)
    ]
    return {key: np.concatenate([row[key] for row in rows]) for key in rows[0]}


# ---------------------------------- parity -----------------------------------


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(model_examples.SMALL, id="v1.1 tiny"),
        pytest.param(TIED, id="1.0 tiny"),
        pytest.param(BASE, id="v1.1 Base, full size", marks=pytest.mark.slow),
    ],
)
def test_network_loss_and_gradients_on_a_packed_batch(config: configs.T5Config) -> None:
    params, batch = random_parameters(config), packed_batch(config.vocab_size)
    task_ids, real = batch["decoder_task_ids"], batch["decoder_target_tokens"] > 0
    model, ours = StepByStepModel(stock_model(config), RATE), network.Transformer(config)

    def our_loss(params: Any) -> tuple[jax.Array, jax.Array]:
        logits = ours.apply(
            {"params": params},
            *(batch[f"{name}_tokens"] for name in ("encoder_input", "decoder_input")),
            batch["decoder_target_tokens"],
            batch["encoder_segment_ids"],
            batch["decoder_segment_ids"],
        )
        cross_entropy = losses.batch_cross_entropy(ours, params, batch)
        counts = losses.task_token_counts(task_ids)
        return losses.step_by_step_loss(cross_entropy, task_ids, RATE, counts), logits

    def their_loss(params: Any) -> tuple[jax.Array, jax.Array]:
        loss, _ = model.loss_fn(params, batch, dropout_rng=None)
        return loss, model._compute_logits(params, batch)

    (loss, logits), gradients = jax.jit(jax.value_and_grad(our_loss, has_aux=True))(params)
    (theirs, expected), wanted = jax.jit(jax.value_and_grad(their_loss, has_aux=True))(params)
    assert np.asarray(expected)[real].std() > 0.5  # not degenerate
    report("logits, largest difference", abs(logits - expected)[real].max(), 1e-4)
    report("loss, relative difference", abs(loss - theirs) / theirs, 1e-5)
    assert jax.tree.structure(gradients) == jax.tree.structure(wanted)
    worst = jax.tree.map(
        lambda one, other: jnp.linalg.norm(one - other) / jnp.linalg.norm(other), gradients, wanted
    )
    report("gradient, largest relative difference of a tensor", max(jax.tree.leaves(worst)), 1e-4)


def tiny_batches(name: str, count: int) -> list[dict[str, np.ndarray]]:
    """Batches of our own pipeline: rows of a mixture or task."""
    mixture = registration.get_mixture_or_task(name)
    data = input_pipeline.load_training_data(
        mixture, LENGTHS, batch_size=16, seed=0, row_multiple=4
    )
    stream = data.batches(data.sampler.start())
    return [next(stream)[0] for _ in range(count)]


def t5x_trainer(
    model: models.EncoderDecoderModel,
    batch: dict[str, np.ndarray],
    params: Any,
    trainer_class: Any = StepByStepTrainer,
    num_microbatches: int | None = 1,
) -> Any:
    partitioner = partitioning.PjitPartitioner(num_partitions=1)
    initializer = utils.TrainStateInitializer(
        optimizer_def=model.optimizer_def,
        init_fn=model.get_initial_variables,
        input_shapes={key: value.shape for key, value in batch.items()},
        partitioner=partitioner,
    )
    state = initializer.from_scratch(jax.random.PRNGKey(0))
    return trainer_class(
        model=model,
        train_state=state.replace_params(flax.core.freeze(jax.tree.map(jnp.array, params))),
        partitioner=partitioner,
        eval_names=(),
        summary_dir=None,
        train_state_axes=initializer.train_state_axes,
        rng=jax.random.PRNGKey(0),
        learning_rate_fn=lambda step: jnp.float32(0.1),  # of T5X's Adafactor
        num_microbatches=num_microbatches,
    )


@pytest.mark.usefixtures("tiny_settings")
@pytest.mark.parametrize(
    ("name", "is_packed"),
    # Of one task alone, no two of these sequences fit into a row.
    [("tiny_dss_gpt", True), ("tiny_finetune", False), ("tiny_pretrain", False)],
)
def test_twenty_steps_of_both_engines(name: str, is_packed: bool) -> None:
    """From the same weights, on the same batches in the same order, without dropout.

    Pretraining and finetuning too: what T5X computes there is its own loss, over labels alone.
    """
    batches, params = tiny_batches(name, 20), random_parameters(BYTES)
    assert (max(batch["encoder_segment_ids"].max() for batch in batches) > 1) == is_packed
    model = StepByStepModel(
        stock_model(BYTES, optimizer_def=configuration.optimizer("adamw", 20, learning_rate=1e-3)),
        RATE,
    )
    trainer = t5x_trainer(model, batches[0], params)
    theirs = trainer.train_state
    for batch in batches:
        theirs, _ = trainer._partitioned_train_step(theirs, batch)
    assert int(theirs.step) == 20

    update = our_optimizers.make_optimizer(OptimizerConfig(learning_rate=1e-3), 20)
    student = network.Transformer(BYTES)
    step = jax.jit(make_train_step(student, update, Objective(RATE), seed=0))
    ours = TrainState(jnp.zeros((), jnp.int32), params, update.init(params))
    for batch in batches:
        ours, _ = step(ours, batch)

    theirs = flax.core.unfreeze(theirs.params)
    difference = jax.tree.map(
        lambda one, other: jnp.linalg.norm(one - other) / jnp.linalg.norm(other),
        ours.params,
        theirs,
    )
    moved = jax.tree.map(
        lambda one, other: jnp.linalg.norm(one - other) / jnp.linalg.norm(other), params, theirs
    )
    assert min(jax.tree.leaves(moved)) > 1e-3  # every tensor was trained
    report("tensor after 20 steps, largest difference", max(jax.tree.leaves(difference)), 1e-4)


# ---------------------------------- objective --------------------------------


def loss_of(model: models.EncoderDecoderModel, params: Any, batch: Any) -> tuple[jax.Array, Any]:
    """Loss and metrics without dropout."""
    return jax.jit(lambda *each: model.loss_fn(*each, dropout_rng=None))(params, batch)


def uneven_batch() -> dict[str, np.ndarray]:
    """Four rows; the first two, one microbatch, hold both label rows and no rationale."""
    batch = model_examples.batch(4, inputs=10, targets=8, seed=3, vocab_size=384)
    order = [0, 2, 1, 3]
    return {key: value[order] for key, value in batch.items()}


def test_means_are_over_the_whole_batch_whatever_the_microbatches() -> None:
    batch, params = uneven_batch(), random_parameters(BYTES)
    # Plain descent at rate 1: parameters differ by the gradient.
    descent = optimizers.OptaxWrapper(optax.sgd(1.0))
    model = StepByStepModel(stock_model(BYTES, optimizer_def=descent), RATE)
    steps = []
    for parts in (1, 2):
        trainer = t5x_trainer(model, batch, params, num_microbatches=parts)
        steps.append(trainer._partitioned_train_step(trainer.train_state, batch))
    (whole, metrics), (split, split_metrics) = steps
    jax.tree.map(
        lambda one, two: np.testing.assert_allclose(one, two, atol=1e-6), whole.params, split.params
    )
    label, rationale = (metrics[f"{task}_loss"].compute() for task in ("label", "rationale"))
    np.testing.assert_allclose(metrics["loss"].total, label + RATE * rationale, rtol=1e-6)
    np.testing.assert_allclose(split_metrics["loss"].total, metrics["loss"].total, rtol=1e-6)
    np.testing.assert_allclose(split_metrics["label_loss"].compute(), label, rtol=1e-6)


def test_t5x_s_own_trainer_would_take_means_of_microbatches_and_is_refused() -> None:
    batch, params = uneven_batch(), random_parameters(BYTES)
    optimizer = configuration.optimizer("adamw", 20, learning_rate=1e-3)
    model = StepByStepModel(stock_model(BYTES, optimizer_def=optimizer))
    trainer = t5x_trainer(model, batch, params, t5x.trainer.Trainer, num_microbatches=2)
    with pytest.raises(UserError, match="StepByStepTrainer"):
        trainer._partitioned_train_step(trainer.train_state, batch)


def test_at_rate_zero_it_is_the_mean_over_label_tokens() -> None:
    batch, params = uneven_batch(), random_parameters(BYTES)
    both, _ = loss_of(StepByStepModel(stock_model(BYTES), 0.0), params, batch)
    labels = {key: value[:2] for key, value in batch.items()}
    # A rate says nothing where there is no rationale.
    alone, metrics = loss_of(StepByStepModel(stock_model(BYTES), 1.0), params, labels)
    np.testing.assert_allclose(both, alone, rtol=1e-6)
    assert np.isnan(metrics["rationale_loss"].compute())
    assert metrics["label_loss"].count == (labels["decoder_target_tokens"] > 0).sum()


def test_smoothing_and_z_loss_are_t5x_s() -> None:
    """At λ = 1 with as many label as rationale tokens, T5X's sum is our loss times that number."""
    options = {"label_smoothing": 0.1, "z_loss": 0.01}
    batch = model_examples.batch(2, inputs=10, targets=6, seed=3, vocab_size=384)
    for key in ("decoder_target_tokens", "decoder_input_tokens"):
        batch[key] = batch[key][[0, 0]]
    batch["decoder_task_ids"] = np.repeat([[1], [2]], 6, axis=1).astype(np.int32)
    params = random_parameters(BYTES)
    loss, _ = loss_of(StepByStepModel(stock_model(BYTES, **options)), params, batch)
    sum_of_tokens, _ = loss_of(stock_model(BYTES, **options), params, batch)
    np.testing.assert_allclose(loss * 6, sum_of_tokens, rtol=1e-6)


def test_a_normalizing_factor_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        StepByStepModel(stock_model(BYTES, loss_normalizing_factor=100))
    assert stopped.value.code == 2
    assert "LOSS_NORMALIZING_FACTOR=100" in capsys.readouterr().err


def test_a_vocabulary_beyond_the_embedding_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    model = StepByStepModel(stock_model(model_examples.SMALL))
    shapes = {"encoder_input_tokens": (1, 4), "decoder_input_tokens": (1, 4)}
    with pytest.raises(SystemExit):
        model.get_initial_variables(jax.random.PRNGKey(0), shapes)
    assert "has 259 pieces, T5X's network embeds 48" in capsys.readouterr().err


def test_restored_parameters_of_another_shape_are_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    optimizer = configuration.optimizer("adamw", 20, learning_rate=1e-3)
    model = StepByStepModel(stock_model(BYTES, optimizer_def=optimizer))
    wide = random_parameters(dataclasses.replace(BYTES, mlp_dim=32))
    with pytest.raises(SystemExit):
        t5x_trainer(model, uneven_batch(), wide)
    assert "mlp/wi_0/kernel has shape (16, 32), the network's has (16, 24)" in (
        capsys.readouterr().err
    )


# ---------------------------------- stock T5X --------------------------------


@pytest.mark.usefixtures("tiny_settings")
@pytest.mark.parametrize("converter", ["stock", "ours"])
def test_stock_model_and_trainer_train_on_our_mixtures(converter: str) -> None:
    """T5X's model, trainer, loss and pipeline; its converter with its own two features."""
    changes: dict[str, Any] = {"optimizer_def": adafactor.Adafactor()}
    lengths = LENGTHS
    if converter == "stock":
        lengths = {"inputs": 64, "targets": 32}
    else:
        changes["feature_converter_cls"] = StepByStepModel.FEATURE_CONVERTER_CLS
    model = stock_model(BYTES, **changes)
    data = utils.DatasetConfig("tiny_dss_gpt", lengths, "train", 16, True, 0, pack=True)
    utils.verify_matching_vocabs(data, model)
    dataset = utils.get_dataset(data, 0, 1, model.FEATURE_CONVERTER_CLS)
    batches = list(dataset.repeat().take(12).as_numpy_iterator())
    trainer = t5x_trainer(model, batches[0], random_parameters(BYTES), t5x.trainer.Trainer)
    state, first = trainer.train_state, None
    for batch in batches:
        state, metrics = trainer._partitioned_train_step(state, batch)
        mean = float(metrics["loss_per_nonpadding_target_token"].compute())
        first = first or mean
    assert mean < 0.9 * first
    # The sum over tokens that `losses.token_sum_loss` documents.
    cross_entropy = jax.jit(losses.batch_cross_entropy, static_argnums=0)(
        network.Transformer(BYTES), flax.core.unfreeze(state.params), batch
    )
    expected = losses.token_sum_loss(cross_entropy, batch["decoder_target_tokens"])
    loss, _ = loss_of(model, state.params, batch)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.usefixtures("tiny_settings")
def test_the_configured_vocabulary_equals_what_it_stands_for() -> None:
    assert vocabulary.ConfiguredVocabulary() == seqio.ByteVocabulary()
    assert vocabulary.ConfiguredVocabulary() != seqio.PassThroughVocabulary(3)


# ---------------------------------- configuration ----------------------------


def message_of(
    capsys: pytest.CaptureFixture[str], function: Any, *arguments: Any, **more: Any
) -> str:
    with pytest.raises(SystemExit) as stopped:
        function(*arguments, **more)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    return error


@pytest.mark.usefixtures("tiny_settings")
def test_mixture_is_checked_before_t5x_starts(
    capsys: pytest.CaptureFixture[str], tiny_data: pathlib.Path
) -> None:
    def prepare(name: str = "tiny_dss_gpt", **changes: Any) -> str:
        arguments = {
            "task_feature_lengths": LENGTHS,
            "required": {"MODEL_DIR": "runs/x"},
            "data_dir": str(tiny_data),
            "vocabulary_file": "bytes",
        }
        return configuration.prepared_mixture(name, **{**arguments, **changes})

    assert configuration.evaluation_task(prepare(rationale_rate=0.25)) == "tiny_label"
    assert (
        registration.get_mixture_or_task("tiny_dss_gpt").get_rate(
            seqio.get_mixture_or_task("tiny_rationale_gpt")
        )
        == 0.25
    )
    unset = {"MODEL_DIR": configuration.UNSET, "TRAIN_STEPS": configuration.UNSET}
    assert "macros not set: MODEL_DIR, TRAIN_STEPS" in message_of(capsys, prepare, required=unset)
    assert "did you mean" in message_of(capsys, prepare, "tiny_ds_gpt")
    assert "DATA_FRACTION=2.0" in message_of(capsys, prepare, data_fraction=2.0)
    unequal = {"inputs": 8, "targets": 8, "task_ids": 4}
    assert "'task_ids' differs" in message_of(capsys, prepare, task_feature_lengths=unequal)
    assert prepare(task_feature_lengths={"inputs": 8, "targets": 8}) == "tiny_dss_gpt"
    assert "no such file" in message_of(capsys, prepare, vocabulary_file="nothing.model")
    assert "is not prepared" in message_of(capsys, prepare, "cqa_dss_palm", data_dir="nothing")
    assert "TASK_FILES" in message_of(capsys, prepare, task_files=["nothing.py"])
    told = message_of(capsys, prepare, mutual_information_weight=0.1)
    assert "MUTUAL_INFORMATION_WEIGHT=0.1: T5X draws labels and rationales apart" in told
    told = message_of(capsys, prepare, shared_encoder=True)
    assert "SHARED_ENCODER=True: T5X lays every target beside an input of its own" in told


def test_steps_go_on_from_the_checkpoint(
    capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path
) -> None:
    def step_folder(path: str | None) -> str | None:
        return configuration.step_folder(path, "INITIAL_CHECKPOINT_PATH")

    assert step_folder(None) is None
    assert configuration.total_steps(10, None) == 10
    for step in (500, 1000):
        (tmp_path / f"checkpoint_{step}").mkdir()
        (tmp_path / f"checkpoint_{step}" / "checkpoint").touch()
    newest = str(tmp_path / "checkpoint_1000")
    assert step_folder(str(tmp_path)) == newest
    assert step_folder(f"{newest}/") == newest
    assert configuration.total_steps(10, newest) == 1010
    schedule = configuration.learning_rate(10, newest, learning_rate=1.0)
    assert [float(schedule(step)) for step in (1000, 1005, 1010)] == [1.0, 0.5, 0.0]
    other = tmp_path / "huggingface"
    other.mkdir()
    assert "no checkpoint of T5X" in message_of(capsys, step_folder, str(other))
    assert "no such folder" in message_of(capsys, step_folder, str(tmp_path / "nothing"))


def test_parameters_are_restored_without_the_optimizer(capsys: pytest.CaptureFixture[str]) -> None:
    saved = {"target": {"a": {"kernel": 1}}, "state": {"step": 7, "param_states": {"a": 2}}}
    wanted = {"target": {"a": {"kernel": 0}}, "state": {"step": 0, "param_states": {"b": 0}}}
    fresh = configuration.parameters_only(saved, wanted)
    assert fresh == {"target": {"a": {"kernel": 1}}, "state": {"step": 7}}
    assert configuration.parameters_only(saved, wanted, is_resuming=True) is saved
    for target in ({"a": {"kernel": 1}, "b": 0}, {"b": 0}):
        wanted["target"] = target
        assert "do not fit" in message_of(capsys, configuration.parameters_only, saved, wanted)


def test_optimizers(capsys: pytest.CaptureFixture[str]) -> None:
    build = configuration.optimizer
    assert isinstance(build("adamw", 10), optimizers.OptaxWrapper)
    assert isinstance(build("adafactor", 10), adafactor.Adafactor)
    own = adafactor.Adafactor()
    assert build(own, 10) is own
    assert "OPTIMIZER='sgd'" in message_of(capsys, build, "sgd", 10)
    assert "WEIGHT_DECAY=0.1" in message_of(capsys, build, "adafactor", 10, weight_decay=0.1)
    assert "WARMUP_STEPS" in message_of(capsys, build, "adamw", 10, warmup_steps=10)


def test_periods_batches_and_seeds(
    capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path
) -> None:
    assert configuration.checkpoint_period(None, 250) == 250
    assert configuration.checkpoint_period(50, 250) == 50
    assert "=70" in message_of(capsys, configuration.checkpoint_period, 70, 250)
    assert configuration.training_batch_size(128, 4) == 128
    assert "use 129" in message_of(capsys, configuration.training_batch_size, 128, 3)
    first = configuration.data_seed(0, str(tmp_path))
    assert first == configuration.data_seed(0, str(tmp_path)) != configuration.data_seed(1, "")
    (tmp_path / "checkpoint_5").mkdir()
    assert configuration.data_seed(0, str(tmp_path)) != first
    assert configuration.data_seed(None, str(tmp_path)) is None
    assert configuration.feature_lengths({"inputs": 64, "targets": 32}) == LENGTHS
    assert configuration.decoding_lengths(LENGTHS, 8) == {"inputs": 64, "targets": 8, "task_ids": 8}


def test_a_missing_model_file_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    error = message_of(capsys, configuration.stock_model, models.EncoderDecoderModel)
    assert "--gin_file=t5x/examples/t5/t5_1_1/base.gin" in error
