"""The student against HuggingFace's T5 with the same random weights, on the CPU in float32.

The comparisons are those of `benchmarks/parity.py`, and so are their limits; docs/parity.md has
the numbers. Run with `pytest -m parity -s tests/model/test_parity_transformers.py` to see them.
Text is CommonsenseQA's where DISTILL_SBS_SOURCE_DIR names the published data (with T5's vocabulary
beside it), else random tokens.
"""

from __future__ import annotations

import dataclasses
import gc
import os
import pathlib
import sys
from collections.abc import Iterator

import jax
import optax
import pytest

from distill_sbs import constants
from distill_sbs.config import OptimizerConfig
from distill_sbs.data import registration
from distill_sbs.data.records import build
from distill_sbs.model import losses
from distill_sbs.training import optimizer

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent.parent / "benchmarks"))
import parity_outputs  # noqa: E402
import parity_pairs  # noqa: E402
import parity_table  # noqa: E402
import parity_training  # noqa: E402

pytestmark = pytest.mark.parity

EXAMPLES_A_BATCH = 4


@pytest.fixture(scope="module", autouse=True)
def optimised() -> Iterator[None]:
    """Compiled as for users: tests/conftest.py asks for less."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    asked = os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1"
    jax.config.update("jax_disable_most_optimizations", asked)


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> parity_pairs.Examples:
    folder = os.environ.get("DISTILL_SBS_SOURCE_DIR")
    if not folder:
        return parity_pairs.random_examples()
    vocabulary = pathlib.Path(folder).parent / "vocab" / "spiece.model"
    if not vocabulary.exists():
        pytest.skip(f"T5's vocabulary is not at {vocabulary}")
    registration.load_task_files()
    prepared = str(tmp_path_factory.mktemp("data"))
    build.prepare_dataset(registration.get_dataset("cqa"), folder, prepared, ["train"])
    return parity_pairs.cqa_examples(prepared, str(vocabulary))


@pytest.fixture(scope="module", params=["1.0", "1.1"])
def tiny(request) -> parity_pairs.Pair:
    return parity_pairs.Pair.random("tiny", request.param)


def check(measured: list[parity_table.Measurement]) -> None:
    print()
    for each in measured:
        print(f"  {each.name}: {each.value:.1e} (limit {each.limit:.0e}) {each.note}")
    assert [each for each in measured if not each.within] == []


# ---------------------------------- tiny -------------------------------------


@pytest.mark.slow
def test_outputs_and_gradients(tiny, examples):
    measured = parity_outputs.compare_outputs(
        tiny, examples.rows(0, EXAMPLES_A_BATCH), rounding=False
    )
    assert {each.name for each in measured} >= {
        parity_outputs.ENCODED,
        parity_outputs.LOGITS,
        parity_outputs.LOSS,
        parity_outputs.GRADIENTS,
    }
    check(measured)


def test_outputs_are_not_degenerate(tiny, examples):
    """Else agreement would mean little: logits differ, and padding is among the inputs."""
    few = examples.rows(0, EXAMPLES_A_BATCH)
    with torch.no_grad():
        logits = tiny.theirs(
            **parity_pairs.torch_inputs(few.rationale_inputs),
            labels=parity_pairs.torch_labels(few.rationales),
        ).logits
    assert 0.5 < logits.std() < 2.0
    assert (few.rationale_inputs == constants.PAD_ID).any()


@pytest.mark.slow
@pytest.mark.parametrize("beams", [1, 4])
def test_decoding(tiny, examples, beams):
    found, expected = parity_training.decode_both(tiny, examples.label_inputs, beams)
    assert found == expected
    assert len(expected) == 64
    assert len(set(map(len, expected))) > 1  # some end early
    assert len(set(map(tuple, expected))) > 4  # and they depend on the input


@pytest.mark.slow
def test_ten_steps_of_adamw(tiny, examples):
    check(parity_training.compare_training(tiny, examples, EXAMPLES_A_BATCH))


@pytest.mark.slow
def test_a_missing_clip_would_show(examples, monkeypatch):
    """The limits are sharp enough to see a mistake that moves a tensor by little of its norm."""
    make = optimizer.make_optimizer

    def make_without_clip(
        config: OptimizerConfig, train_steps: int
    ) -> optax.GradientTransformation:
        return make(dataclasses.replace(config, gradient_clip_norm=None), train_steps)

    monkeypatch.setattr(optimizer, "make_optimizer", make_without_clip)
    measured = parity_training.compare_training(
        parity_pairs.Pair.random("tiny", "1.1"), examples, EXAMPLES_A_BATCH
    )
    assert parity_training.OF_MOVEMENT in {each.name for each in measured if not each.within}


@pytest.mark.slow
def test_objective_at_rate_one_is_twice_the_reference_s(tiny, examples):
    """2 x (0.5 * label loss + 0.5 * rationale loss), each of the same examples.

    The published implementation computes each loss by `model(labels=…)` on half a batch.
    """
    few = examples.rows(0, 8)
    with torch.no_grad():
        label, rationale = (
            float(
                tiny.theirs(
                    **parity_pairs.torch_inputs(inputs), labels=parity_pairs.torch_labels(targets)
                ).loss
            )
            for inputs, targets in (few[:2], few[2:])
        )
    reference = 0.5 * label + 0.5 * rationale

    batch = parity_pairs.both_tasks(few)
    task_ids = batch[constants.DECODER_TASK_IDS]
    cross_entropy = losses.batch_cross_entropy(
        tiny.ours, tiny.params, batch, logits_chunk_tokens=128
    )
    loss = losses.step_by_step_loss(
        cross_entropy, task_ids, 1.0, losses.task_token_counts(task_ids)
    )
    difference = abs(float(loss) - 2 * reference) / (2 * reference)
    print(f"\n  L at λ = 1 against twice the reference, relative: {difference:.1e} (limit 1e-05)")
    assert difference <= 1e-5


# ---------------------------------- Base -------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_base_at_its_full_width(version, examples):
    """A quarter of its layers and few rows; `benchmarks/parity.py` compares all of Base."""
    pair = parity_pairs.Pair.random("shallow", version)
    assert sum(each.numel() for each in pair.theirs.parameters()) > 70e6
    measured = parity_outputs.compare_outputs(pair, examples.rows(0, 2), rounding=False)
    if parity_outputs.DECIDED in {each.name for each in measured}:
        # Of a million hidden units some lie within rounding of ReLU's kink, where float32 decides
        # nothing: transformers is then as far from itself in float64 (docs/parity.md). The
        # gradient with those units decided alike is held to the same limit.
        measured = [each for each in measured if each.name != parity_outputs.GRADIENTS]
    check(measured)
    found, expected = parity_training.decode_both(pair, examples.label_inputs[:8], 1)
    assert found == expected
    del pair
    gc.collect()  # a model's cycles hold its weights
