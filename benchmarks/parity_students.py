"""`python benchmarks/parity_students.py`: the students beside T5 against transformers, in numbers.

    python benchmarks/parity_students.py --results=students.jsonl --output=docs/parity.md

Enters: nothing; weights of true shapes are drawn by transformers, with a fixed seed. Leaves: a
table on standard output; where `--output` names a file, the same between its two comments
`<!-- students -->`. With `--results` every student is kept as soon as it is measured, and the same
command goes on after the last one. Exit status 1 where a difference is beyond its limit.

Every student goes the way of a checkpoint: transformers saves it, `convert.huggingface` reads it.
Both sides then run in float32 on the CPU, on the same random tokens.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import pathlib
import sys
import tempfile
import time
from typing import Any

import numpy as np

MARKER = "<!-- students -->"
# Heads of the columns, the student's size by name, and transformers' classes.
STUDENTS = {
    "FLAN-T5 Small": ("t5_1_1_small", "T5"),
    "ByT5 Small": ("byt5_small", "T5"),
    "mT5 Small": ("mt5_small", "MT5"),
    "umT5 Small": ("umt5_small", "UMT5"),
    "T5Gemma 2 270M-270M": ("t5gemma2_270m", "T5Gemma2"),
}
ENCODED, LOGITS, LOSS, GREEDY = (
    "encoder output, largest difference",
    "logits, largest difference",
    "loss, relative",
    "greedy decoding, outputs that differ",
)
LIMITS = {ENCODED: 1e-4, LOGITS: 1e-4, LOSS: 1e-5, GREEDY: 0.0}
ROWS, INPUT_TOKENS, TARGET_TOKENS, DECODED_TOKENS = 4, 48, 24, 12


def random_model(size: str, kind: str) -> Any:
    """transformers' model, drawn by itself, and scaled so that a mistake has nowhere to hide.

    As in `parity_pairs.random_model`: norms get noise of 0.3, biases are scaled to 1, embeddings
    to 0.3 and logits to about 1, and the end token is made likely now and then.
    """
    import torch
    import transformers

    from distill_sbs.convert.huggingface import settings
    from distill_sbs.model.config import named_config

    config = named_config(size, dropout_rate=0.0)
    values = settings.make_settings(config)
    values.pop("model_type")
    given = getattr(transformers, f"{kind}Config")(**values)
    is_gemma = kind == "T5Gemma2"
    if not is_gemma:
        # transformers 5 sets it for every T5, and would then draw no head.
        given.tie_word_embeddings = False
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = getattr(transformers, f"{kind}ForConditionalGeneration")(given).eval()
        for name, parameter in model.named_parameters():
            if "vision" in name or "multi_modal" in name:
                parameter.zero_()
            elif "norm" in name or "eoi_embedding" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
            elif "relative_attention_bias" in name:
                parameter.mul_(config.emb_dim**0.5)
        if is_gemma:
            model.get_input_embeddings().weight.mul_(2.0)
        else:
            model.set_input_embeddings(model.shared)
            model.shared.weight.mul_(0.3)
            model.lm_head.weight.mul_(config.emb_dim**-0.5)
            model.lm_head.weight[1].mul_(6.0)
    return model


def draw_examples(vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets of several lengths, an end token behind each, padded."""
    generator = np.random.default_rng(0)

    def rows(width: int) -> np.ndarray:
        tokens = generator.integers(3, vocab_size, (ROWS, width))
        lengths = generator.integers(width // 2, width + 1, ROWS)
        tokens[np.arange(width) >= lengths[:, None]] = 0
        tokens[np.arange(ROWS), lengths - 1] = 1
        return tokens.astype(np.int32)

    return rows(INPUT_TOKENS), rows(TARGET_TOKENS)


def their_outputs(model: Any, inputs: np.ndarray, targets: np.ndarray) -> dict[str, np.ndarray]:
    """Encoder output, logits, loss, and tokens decoded greedily."""
    import torch

    given = {"input_ids": torch.tensor(inputs), "attention_mask": torch.tensor(inputs > 0).long()}
    labels = torch.tensor(targets).long()
    with torch.no_grad():
        found = model(**given, labels=torch.where(labels == 0, -100, labels))
        tokens = model.generate(**given, max_new_tokens=DECODED_TOKENS, do_sample=False)
    decoded = np.zeros((ROWS, DECODED_TOKENS), np.int32)
    decoded[:, : tokens.shape[1] - 1] = tokens.numpy()[:, 1:]
    return {
        ENCODED: found.encoder_last_hidden_state.numpy(),
        LOGITS: found.logits.numpy(),
        LOSS: found.loss.numpy(),
        GREEDY: decoded,
    }


def our_outputs(folder: str, inputs: np.ndarray, targets: np.ndarray) -> dict[str, np.ndarray]:
    """The same of our network, with the parameters that a folder of HuggingFace holds."""
    import jax
    import jax.numpy as jnp
    from flax import traverse_util

    from distill_sbs.convert.huggingface.files import HuggingFaceSource
    from distill_sbs.model import decoding, losses, network

    source = HuggingFaceSource(folder)
    source.check(source.config)
    config = source.config
    values = {path: jnp.asarray(source.read(path)) for path in source.shapes()}
    params = traverse_util.unflatten_dict(values, sep="/")
    del values
    model = network.Transformer(config)
    shifted = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]

    @jax.jit
    def run(params: Any, inputs: jax.Array, targets: jax.Array) -> dict[str, jax.Array]:
        variables = {"params": params}
        encoded = model.apply(variables, inputs, method="encode")
        hidden = model.apply(variables, encoded, inputs, shifted, targets, method="decoder_hidden")
        weights = network.output_weights(params, config)
        each = losses.token_losses(hidden, weights, targets, config).cross_entropy
        return {
            ENCODED: encoded,
            LOGITS: network.vocabulary_logits(hidden, weights, config),
            LOSS: jnp.sum(jnp.where(targets > 0, each, 0.0)) / (targets > 0).sum(),
            GREEDY: decoding.greedy_decode(model, params, inputs, DECODED_TOKENS),
        }

    return {name: np.asarray(value) for name, value in run(params, inputs, targets).items()}


def compare(name: str) -> dict[str, Any]:
    """The differences of one student, and what to know of its outputs."""
    start = time.monotonic()
    size, kind = STUDENTS[name]
    model = random_model(size, kind)
    vocab_size = model.get_input_embeddings().weight.shape[0]
    inputs, targets = draw_examples(vocab_size)
    theirs = their_outputs(model, inputs, targets)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        del model
        gc.collect()
        ours = our_outputs(folder, inputs, targets)
    real = {ENCODED: inputs > 0, LOGITS: targets > 0}
    found = {each: float(np.abs(ours[each] - theirs[each])[real[each]].max()) for each in real}
    found[LOSS] = abs(float(ours[LOSS]) / float(theirs[LOSS]) - 1)
    found[GREEDY] = float((ours[GREEDY] != theirs[GREEDY]).any(axis=1).sum())
    lengths = (theirs[GREEDY] > 0).sum(axis=1)
    note = (
        f"logits of standard deviation {theirs[LOGITS].std():.1f}, loss {float(theirs[LOSS]):.3f}, "
        f"{len({tuple(row) for row in theirs[GREEDY].tolist()})} distinct outputs of {ROWS}, "
        f"{lengths.min()} to {lengths.max()} tokens"
    )
    return {"name": name, "found": found, "note": note, "seconds": time.monotonic() - start}


def make_table(parts: list[dict[str, Any]]) -> str:
    """Markdown: a row a quantity, a column a student; the notes; the machine."""
    import parity_table

    heads = ["difference", "limit", *(part["name"] for part in parts)]
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    for name, limit in LIMITS.items():
        cells = []
        for part in parts:
            value = part["found"][name]
            cell = f"{value:.1e}" if limit else f"{value:.0f}"
            cells.append(cell if value <= limit else f"**{cell}**")
        lines.append([name, f"{limit:.0e}" if limit else "0", *cells])
    text = [f"| {' | '.join(cells)} |" for cells in lines]
    text += ["", *(f"- {part['name']}: {part['note']}." for part in parts), ""]
    seconds = sum(part["seconds"] for part in parts)
    machine = parity_table.describe_machine()
    return "\n".join([*text, f"Measured in {seconds:.0f} s, on {machine}."])


def write(path: str, table: str) -> None:
    """Puts the table between the file's two markers."""
    file = pathlib.Path(path)
    pieces = file.read_text(encoding="utf-8").split(MARKER)
    if len(pieces) != 3:
        sys.exit(f"error: {path}: expected two lines {MARKER} to put the table between")
    file.write_text(f"{pieces[0]}{MARKER}\n{table}\n{MARKER}{pieces[2]}", encoding="utf-8")


def main() -> int:
    """Measures, prints and writes; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--student", action="append", choices=STUDENTS)
    parser.add_argument("--results", help="keeps what is measured, as JSON lines")
    parser.add_argument("--output", help="a Markdown file to put the table in")
    options = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    done: dict[str, Any] = {}
    if options.results and os.path.exists(options.results):
        lines = pathlib.Path(options.results).read_text(encoding="utf-8").splitlines()
        done = {part["name"]: part for part in map(json.loads, lines)}
    for name in options.student or STUDENTS:
        if name in done:
            continue
        done[name] = compare(name)
        print(f"{name}: {done[name]['seconds']:.0f} s", file=sys.stderr)
        if options.results:
            with open(options.results, "a", encoding="utf-8") as file:
                file.write(json.dumps(done[name]) + "\n")
    parts = [done[name] for name in STUDENTS if name in done]
    table = make_table(parts)
    print(table)
    if options.output:
        write(options.output, table)
    kept = all(part["found"][name] <= limit for part in parts for name, limit in LIMITS.items())
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
