"""What it takes to answer with one of a few labels: decoded, decoded along their trie, or scored.

    python benchmarks/closed_labels.py --vocabulary_file=spiece.model --dataset=esnli

Enters: prepared records of a dataset (--data_dir), a SentencePiece model. Leaves: for a T5 v1.1 of
random parameters, the processor's seconds on one core for the first inputs of the test split, by
each way; compiled and run once before, the ways taking turns. Of random parameters no answer ends,
so decoding is made to stop for every row after as many tokens as the longest label has, its end
token with it: what a student that says that label takes. What is computed depends on nothing else
of their values. `decode 64` is that of a student that has not learned to stop.
"""

from __future__ import annotations

import functools
import os
import statistics
import sys
import time
from collections.abc import Callable

import small_student
from absl import flags

from distill_sbs.cli import terminal

# No token: what never ends of itself is stopped by its length.
NEVER = -1


def _define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("vocabulary_file", None, "The model.", flag_values=values, required=True)
    flags.DEFINE_string("dataset", "esnli", "Whose inputs and labels.", flag_values=values)
    flags.DEFINE_string("data_dir", None, "Of its records.", flag_values=values)
    flags.DEFINE_integer("examples", 5000, "How many.", flag_values=values)
    flags.DEFINE_integer("batch_size", 128, "Inputs at a time.", flag_values=values)
    flags.DEFINE_integer("rounds", 3, "Of each way.", flag_values=values)
    flags.DEFINE_bool("decode_64", True, "Whether 64 tokens are decoded too.", flag_values=values)


def compare(values: flags.FlagValues) -> None:
    """Prints a table."""
    import jax
    import numpy as np

    from distill_sbs import constants
    from distill_sbs.data import registration, sentencepiece_model, settings, tokenizer
    from distill_sbs.data.records import tfrecords
    from distill_sbs.data.tasks.contrast_tasks import read_inputs
    from distill_sbs.distributed import sharding
    from distill_sbs.inference import batch_decoder
    from distill_sbs.model import decoding, label_trie, scoring
    from distill_sbs.model.network import Transformer, initial_parameters

    registration.load_task_files(())
    settings.use(settings.DataSettings(values.data_dir))
    spec = registration.get_dataset(values.dataset)
    encoder = tokenizer.from_description(sentencepiece_model.describe(values.vocabulary_file))

    def encode(text: str) -> np.ndarray:
        return np.array([*tokenizer.encode_text(encoder, text), constants.EOS_ID], np.int32)

    texts = read_inputs(spec, "test", values.examples)
    inputs = [encode(constants.LABEL_PREFIX + text) for text in texts]
    names = tfrecords.list_labels(settings.current().folder, values.dataset, 64)
    assert names is not None
    labels = [encode(name) for name in names]
    longest = max(map(len, labels))
    trie, packed = label_trie.build_trie(labels), scoring.pack_labels(labels)
    terminal.say(
        f"{len(inputs):,} inputs of {np.mean([len(each) for each in inputs]):.1f} tokens; labels "
        + ", ".join(f"{name} ({len(each)})" for name, each in zip(names, labels, strict=True))
        + f"; one is left after at most {trie.depth} of their tokens"
    )
    config = small_student.make_config()
    model = Transformer(config)
    params = jax.jit(lambda: initial_parameters(config, jax.random.key(0)))()
    mesh = sharding.make_mesh(1)

    def decode(length: int, params: object, tokens: jax.Array) -> jax.Array:
        return decoding.greedy_decode(model, params, tokens, length, eos_id=NEVER)

    functions: dict[str, Callable[..., jax.Array]] = {
        f"decode {longest}": functools.partial(decode, longest),
        "along the trie": lambda params, tokens: label_trie.decode_labels(
            model, params, tokens, trie
        ),
        "score": lambda params, tokens: scoring.score_labels(model, params, tokens, packed),
        "encoder alone": lambda params, tokens: model.apply(
            {"params": params}, tokens, method="encode"
        )[:, 0],
    }
    if values.decode_64:
        functions["decode 64"] = functools.partial(decode, 64)
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    ways = {
        name: functools.partial(
            batch_decoder.map_batches,
            functools.partial(jax.jit(function), params),
            batch_size=values.batch_size,
            mesh=mesh,
        )
        for name, function in functions.items()
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for round_number in range(values.rounds + 1):
        for name, way in ways.items():
            since = time.process_time()
            way(inputs)
            if round_number:  # the first one compiles
                taken[name].append(time.process_time() - since)
    base = statistics.median(taken[f"decode {longest}"])
    terminal.say("| way | processor s | inputs a s | decode / it |")
    terminal.say("| --- | ---: | ---: | ---: |")
    for name, each in taken.items():
        middle = statistics.median(each)
        spread = f"{middle:.1f} ({min(each):.1f} to {max(each):.1f})"
        rate = f"{len(inputs) / middle:,.0f} | {base / middle:.2f}"
        terminal.say(f"| {name} | {spread} | {rate} |")


if __name__ == "__main__":
    sys.exit(small_student.run(compare, _define_flags, __doc__ or "", sys.argv))
