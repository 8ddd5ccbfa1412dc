"""Soft labels in batches, steps over them, names of tasks, warnings; no student is trained."""

from __future__ import annotations

import pathlib

import jax
import jax.numpy as jnp
import model_examples
import numpy as np
import optax
import pytest

from distill_sbs import constants
from distill_sbs.contrasting.contrast_summary import warn_of
from distill_sbs.data.batches import layout
from distill_sbs.data.records import soft_labels
from distill_sbs.data.tasks import contrast_tasks
from distill_sbs.errors import UserError
from distill_sbs.training import train_step

SOFT_FEATURES = {
    constants.DECODER_SOFT_IDS,
    constants.DECODER_SOFT_WEIGHTS,
    constants.DECODER_STEP_WEIGHTS,
}
ROLLOUT = layout.Sequence2Sequence(
    np.array([5, 6, 1]),
    np.array([7, 1]),
    np.array([3, 3]),
    layout.SoftTargets(
        np.array([[7, 8], [1, 9]], np.int32),
        np.array([[0.5, 0.5], [0.75, 0.25]], np.float32),
        np.array([0.0, 1.0], np.float32),
    ),
)
LABEL = layout.Sequence2Sequence(np.array([4, 1]), np.array([2, 3, 1]), np.array([1, 1, 1]))


def test_soft_labels_stand_beside_their_targets() -> None:
    shape = layout.BatchShape(1, 5, 6, soft=3)
    batch = layout.fill([LABEL, ROLLOUT], layout.Layout(shape, shape))
    assert batch["decoder_target_tokens"].tolist() == [[2, 3, 1, 7, 1, 0]]
    assert batch["decoder_task_ids"].tolist() == [[1, 1, 1, 3, 3, 0]]
    assert batch["decoder_step_weights"].tolist() == [[0, 0, 0, 0, 1, 0]]
    empty = [0, 0, 0]
    ids = [[*[empty] * 3, [7, 8, 0], [1, 9, 0], empty]]
    assert batch["decoder_soft_ids"].tolist() == ids
    assert batch["decoder_soft_weights"][0, 3:5].tolist() == [[0.5, 0.5, 0], [0.75, 0.25, 0]]
    assert not batch["decoder_soft_weights"][0, :3].any()


def test_batches_without_contrast_are_as_before() -> None:
    shape = layout.BatchShape(1, 5, 6)
    batch = layout.fill([LABEL], layout.Layout(shape, shape))
    assert not SOFT_FEATURES & set(batch)
    with_soft = layout.fill([LABEL], layout.Layout(shape, shape).add_soft_labels(2))
    for name, array in batch.items():
        np.testing.assert_array_equal(array, with_soft[name])
    assert set(with_soft) - set(batch) == SOFT_FEATURES


@pytest.mark.slow
def test_microbatches_and_loss() -> None:
    model, params = model_examples.student()
    shape = layout.BatchShape(4, 3, 3, soft=2)
    drawn = [ROLLOUT, LABEL, ROLLOUT, ROLLOUT]
    batch = {
        name: jnp.array(array)
        for name, array in layout.fill(drawn, layout.Layout(shape, shape)).items()
    }
    optimizer = optax.sgd(0.1)
    results = []
    for parts in (1, 2):
        step = train_step.make_train_step(
            model, optimizer, train_step.Objective(), 0, num_microbatches=parts
        )
        state = train_step.TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))
        results.append(jax.jit(step)(state, batch))
    (one, metrics), (two, halves) = results
    for first, second in zip(jax.tree.leaves(one.params), jax.tree.leaves(two.params), strict=True):
        np.testing.assert_allclose(first, second, atol=1e-6)
    for found in (metrics, halves):
        total, count = found["contrast_loss"]
        label, labels = found["label_loss"]
        # Three rollouts with one position of weight 1 each; one label of three tokens.
        assert float(count) == 3.0
        assert int(labels) == 3
        assert float(found["loss"]) == pytest.approx(float(total / 3 + label / 3), rel=1e-5)
        assert [float(each) for each in found["contrast_positions"]] == [3.0, 1.0]
        # H(0.75, 0.25) = 0.56234.
        assert float(found["contrast_kl"][0]) == pytest.approx(float(total) - 3 * 0.56234, abs=1e-4)


def test_names() -> None:
    contrast_tasks.check_name("mine")
    with pytest.raises(UserError, match="does not begin with label_"):
        contrast_tasks.check_name("label_mine")
    assert contrast_tasks.find_teacher(None, "tiny") is None


def test_warning_where_the_expert_is_no_better() -> None:
    assert list(warn_of({"expert": 0.5, "amateur": 0.25})) == []
    assert list(warn_of({})) == []
    (line,) = warn_of({"expert": 0.25, "amateur": 0.25})
    assert line.startswith("the expert's accuracy on validation, 25.0%, is not above the amateur's")


def test_records_come_back(tmp_path: pathlib.Path) -> None:
    assert soft_labels.read_manifest(tmp_path) is None
    (tmp_path / soft_labels.MANIFEST_FILE).write_text("{")
    with pytest.raises(UserError, match="make the contrast again"):
        soft_labels.read_manifest(tmp_path)
    row = soft_labels.ContrastRow(
        3,
        ROLLOUT.inputs,
        ROLLOUT.targets,
        ROLLOUT.soft.ids,
        ROLLOUT.soft.weights,
        ROLLOUT.soft.step_weights,
        np.array([0.1, 0.6], np.float32),
    )
    manifest = soft_labels.Manifest(
        dataset="tiny",
        name="x",
        teacher=None,
        options={"beta": 0.4},
        expert="e",
        amateur="a",
        vocabulary="bytes",
        beta=0.4,
        problems=1,
        examples=1,
        valid=1,
        kept=1,
        overflow=0,
        top_k=2,
        mean_divergence=0.6,
        histogram=[0, 0, 0, 1, 0, 0, 0],
        validation={},
    )
    folder = tmp_path / "x"
    soft_labels.write_contrast(folder, manifest, [row])
    assert soft_labels.read_manifest(folder) == manifest
    (path,) = soft_labels.list_shards(folder)
    import tensorflow as tf

    (record,) = tf.data.TFRecordDataset([path]).map(soft_labels.parse_record).as_numpy_iterator()
    assert record["index"] == 3
    assert record["targets"].tolist() == [7, 1]
    assert record["soft_ids"].tolist() == [7, 8, 1, 9]
    assert record["soft_weights"].tolist() == [0.5, 0.5, 0.75, 0.25]
    assert record["step_weights"].tolist() == [0, 1]
    pathlib.Path(path).unlink()
    with pytest.raises(UserError, match="is missing; delete"):
        soft_labels.list_shards(folder)
