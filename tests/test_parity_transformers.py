"""The student against HuggingFace's T5 with the same random weights, on the CPU in float32.

Run with `pytest -m parity -s tests/test_parity_transformers.py` to see the numbers measured.
Text is CommonsenseQA's where DISTILL_SBS_SOURCE_DIR names the published data (with T5's
vocabulary beside it), else random tokens.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_examples import shift_right

from distill_sbs import constants
from distill_sbs.convert import huggingface
from distill_sbs.model import decoding, losses, network

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

pytestmark = pytest.mark.parity

VOCAB_SIZE = 32128
EXAMPLES = 64
LIMIT = 16


def random_torch_model(version: str) -> Any:
    """A tiny T5 whose weights are scaled so that logits differ and outputs end."""
    gated = version == "v1.1"
    config = transformers.T5Config(
        vocab_size=VOCAB_SIZE,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=3,
        num_decoder_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu" if gated else "relu",
        tie_word_embeddings=not gated,
        decoder_start_token_id=0,
        dropout_rate=0.0,
    )
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Any:
        return torch.randn(*shape, generator=generator)

    model = transformers.T5ForConditionalGeneration(config).eval()
    if gated:
        # transformers 5 ties v1.1's output to its embedding unless a checkpoint says otherwise.
        model.lm_head.weight = torch.nn.Parameter(torch.empty(VOCAB_SIZE, 32))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layer_norm" in name:
                parameter.copy_(1 + 0.3 * normal(*parameter.shape))
            elif "relative_attention_bias" in name:
                parameter.copy_(normal(*parameter.shape))
            elif "shared" in name or "lm_head" in name:
                # Small, so that a tied model does not only repeat its last token.
                parameter.copy_(0.3 * normal(*parameter.shape))
            else:
                parameter.copy_(normal(*parameter.shape) * parameter.shape[1] ** -0.5)
        if not gated:
            model.decoder.final_layer_norm.weight *= 4.0  # logits as large as v1.1's
        # The end token stands out, else it would come once in 32,128 steps.
        model.lm_head.weight[constants.EOS_ID] *= 4.0 if gated else 8.0
    return model


def tokenizer(folder: str):
    import sentencepiece

    file = pathlib.Path(folder).parent / "vocab" / "spiece.model"
    if not file.exists():
        pytest.skip(f"T5's vocabulary is not at {file}")
    return sentencepiece.SentencePieceProcessor(model_file=str(file))


def question_and_answers() -> list[tuple[list[int], list[int], list[int]]]:
    """(input, label, rationale) tokens with end tokens; without the task prefixes."""
    folder = os.environ.get("DISTILL_SBS_SOURCE_DIR")
    if not folder:
        generator = np.random.default_rng(0)
        lengths = generator.integers((20, 2, 10), (60, 6, 40), (EXAMPLES, 3))
        return [
            tuple([*generator.integers(2, 32000, length).tolist(), 1] for length in row)
            for row in lengths
        ]
    pieces = tokenizer(folder)
    with open(pathlib.Path(folder, "cqa/cqa_train.json"), encoding="utf-8") as lines:
        rows = [json.loads(line) for line, _ in zip(lines, range(EXAMPLES), strict=False)]
    outputs = json.loads(
        pathlib.Path(folder, "cqa/llm/train_CoT_0.json").read_text(encoding="utf-8")
    )
    examples = []
    for row, output in zip(rows, outputs[:EXAMPLES], strict=True):
        texts = (
            f"{row['question']}\nAnswer Choices:\n" + "\n".join(row["choices"]),
            row["answer"],
            output.split("Q:")[0].split("So the answer is")[0].strip(),
        )
        examples.append(tuple([*pieces.encode(text), constants.EOS_ID] for text in texts))
    return examples


def pad(rows: list[list[int]]) -> np.ndarray:
    width = max(map(len, rows))
    return np.array([row + [0] * (width - len(row)) for row in rows], np.int32)


@pytest.fixture(scope="module")
def examples() -> dict[str, np.ndarray]:
    inputs, labels, rationales = zip(*question_and_answers(), strict=True)
    return {"inputs": pad(inputs), "label": pad(labels), "rationale": pad(rationales)}


@dataclasses.dataclass
class Pair:
    """The same weights on both sides."""

    theirs: Any
    ours: network.Transformer
    params: dict[str, Any]


@pytest.fixture(scope="module", params=["1.0", "v1.1"])
def pair(request) -> Pair:
    theirs = random_torch_model(request.param)
    config = huggingface.config_from_huggingface(theirs.config.to_dict())
    assert config.logits_via_embedding == (request.param == "1.0")
    state = {name: value.detach().numpy() for name, value in theirs.state_dict().items()}
    return Pair(
        theirs, network.Transformer(config), huggingface.from_huggingface_state(state, config)
    )


def torch_inputs(inputs: np.ndarray) -> dict[str, Any]:
    tokens = torch.tensor(inputs, dtype=torch.long)
    return {"input_ids": tokens, "attention_mask": (tokens > 0).long()}


def torch_labels(targets: np.ndarray) -> Any:
    return torch.tensor(np.where(targets > 0, targets, -100), dtype=torch.long)


def features(inputs: np.ndarray, targets: np.ndarray) -> dict[str, np.ndarray]:
    return {
        constants.ENCODER_INPUT_TOKENS: inputs,
        constants.DECODER_INPUT_TOKENS: shift_right(targets),
        constants.DECODER_TARGET_TOKENS: targets,
    }


def report(name: str, value: float, bound: float) -> None:
    print(f"\n  {name}: {value:.2e} (bound {bound:.0e})")
    assert value <= bound, name


def test_encoder_and_logits(pair, examples):
    inputs, targets = examples["inputs"][:8], examples["rationale"][:8]
    with torch.no_grad():
        output = pair.theirs(**torch_inputs(inputs), labels=torch_labels(targets))
    encoded = pair.ours.apply({"params": pair.params}, inputs, method="encode")
    error = abs(np.asarray(encoded) - output.encoder_last_hidden_state.numpy())
    report("encoder output, largest difference", error[inputs > 0].max(), 1e-4)
    logits = pair.ours.apply({"params": pair.params}, inputs, shift_right(targets), targets)
    assert np.asarray(logits).std() > 0.5  # not degenerate
    error = abs(np.asarray(logits) - output.logits.numpy())
    report("logits, largest difference", error[targets > 0].max(), 1e-4)


def test_loss_and_gradients(pair, examples):
    inputs, targets = examples["inputs"][:8], examples["rationale"][:8]
    pair.theirs.zero_grad()
    theirs = pair.theirs(**torch_inputs(inputs), labels=torch_labels(targets)).loss
    theirs.backward()
    gradients = {name: parameter.grad.numpy() for name, parameter in pair.theirs.named_parameters()}

    def mean(params):
        cross_entropy = losses.batch_cross_entropy(pair.ours, params, features(inputs, targets))
        real = targets > 0
        return jnp.sum(jnp.where(real, cross_entropy, 0.0)) / real.sum()

    loss, gradient = jax.jit(jax.value_and_grad(mean))(pair.params)
    expected = float(theirs.detach())
    report("loss, relative difference", abs(float(loss) - expected) / expected, 1e-5)
    found = huggingface.to_huggingface_state(gradient, pair.ours.config)
    assert found.keys() == gradients.keys()
    worst = max(
        np.linalg.norm(found[name] - gradients[name]) / np.linalg.norm(gradients[name])
        for name in gradients
    )
    report("gradient, largest relative difference of a tensor", worst, 1e-4)


def until_end(tokens: np.ndarray) -> list[list[int]]:
    """Rows up to their end token; transformers fills with either padding or end tokens."""
    rows = []
    for row in tokens.tolist():
        end = row.index(constants.EOS_ID) + 1 if constants.EOS_ID in row else len(row)
        rows.append(row[:end])
    return rows


@pytest.mark.parametrize("beams", [1, 4])
def test_decoding(pair, examples, beams):
    inputs = examples["inputs"]
    with torch.no_grad():
        theirs = pair.theirs.generate(
            **torch_inputs(inputs),
            max_new_tokens=LIMIT,
            do_sample=False,
            num_beams=beams,
            early_stopping=False,
            length_penalty=1.0,
        )
    expected = until_end(theirs[:, 1:].numpy())  # without the start token

    @jax.jit
    def decode(params, tokens):
        if beams == 1:
            return decoding.greedy_decode(pair.ours, params, tokens, LIMIT)
        return decoding.beam_decode(pair.ours, params, tokens, LIMIT, beams, 1.0)

    found = until_end(np.asarray(decode(pair.params, inputs)))
    same = sum(one == other for one, other in zip(found, expected, strict=True))
    lengths = sorted({len(row) for row in expected})
    print(f"\n  {beams} beam(s): {same} of {len(expected)} outputs equal; lengths {lengths}")
    assert same == len(expected) == EXAMPLES
    assert len(lengths) > 1  # some end early, some at other lengths


def test_objective_at_rate_one_is_twice_the_reference_s(pair, examples):
    """2 x (0.5 * label loss + 0.5 * rationale loss), each of the same examples.

    The published implementation computes each loss by `model(labels=…)` on half a batch.
    """
    count = 8
    inputs = examples["inputs"][:count]
    with torch.no_grad():
        label, rationale = (
            float(
                pair.theirs(
                    **torch_inputs(inputs), labels=torch_labels(examples[task][:count])
                ).loss
            )
            for task in ("label", "rationale")
        )
    reference = 0.5 * label + 0.5 * rationale

    width = max(examples[task][:count].shape[1] for task in ("label", "rationale"))
    targets = np.concatenate(
        [
            np.pad(examples[task][:count], ((0, 0), (0, width - examples[task].shape[1])))
            for task in ("label", "rationale")
        ]
    )
    tasks = np.repeat([constants.LABEL_TASK_ID, constants.RATIONALE_TASK_ID], count)[:, None]
    task_ids = np.where(targets > 0, tasks, constants.PADDING_TASK_ID)
    batch = features(np.concatenate([inputs, inputs]), targets)
    cross_entropy = losses.batch_cross_entropy(
        pair.ours, pair.params, batch, logits_chunk_tokens=128
    )
    loss = losses.step_by_step_loss(
        cross_entropy, task_ids, 1.0, losses.task_token_counts(task_ids)
    )
    difference = abs(float(loss) - 2 * reference) / (2 * reference)
    report("L at λ = 1 against twice the reference, relative", difference, 1e-5)
