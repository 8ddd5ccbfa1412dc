"""Ours beside the published implementation's way, with its libraries: training and decoding.

    PYTHONPATH=. python benchmarks/reference.py --dataset=cqa --vocabulary_file=spiece.model
    … --alone=peer

Enters: prepared records of a dataset, a SentencePiece model. Leaves: a line of JSON. Wanted beside
our own libraries: torch and transformers.

The student is a T5 v1.1 of width 256 with 4 + 4 layers and random parameters, float32, no dropout.
The peer trains as the published code does: labels and rationales of the same examples in two
passes, each padded to its longest text, L = L_label + L_rationale, gradients clipped, AdamW. Ours
trains on the same examples in packed rows; and, as further ways, with what does less than equal
work: a shared encoder, a vocabulary trimmed to the dataset, both. Losses of the first steps are
compared, and a difference ends the program. Decoding is greedy, so many tokens for every input;
outputs are compared: two may part only where the peer's logits of both tokens are all but equal.
All take turns in one process, and what is told is the least, the median and
the most of the rounds, by the clock and by the processor. `--alone` trains one of them in a process
of its own, and tells what its turns took and the most memory that the process had.
"""

from __future__ import annotations

import functools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import small_student
from absl import flags

from distill_sbs import constants
from distill_sbs.cli import terminal
from distill_sbs.cli.peak_memory import peak_memory_mib
from distill_sbs.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import torch

    from distill_sbs.data.batches.layout import Batch, Sequence2Sequence
    from distill_sbs.model.config import T5Config

LARGEST_DIFFERENCE = 1e-4
PEER = "peer"
# Ours: whether the encoder is shared, whether the vocabulary is trimmed.
OURS = {
    "ours": (False, False),
    "shared encoder": (True, False),
    "trimmed vocabulary": (False, True),
    "both": (True, True),
}


def _define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("vocabulary_file", None, "The model.", flag_values=values, required=True)
    flags.DEFINE_string("dataset", "cqa", "What is trained on.", flag_values=values)
    flags.DEFINE_string("teacher", "palm", "Whose rationales.", flag_values=values)
    flags.DEFINE_string("data_dir", None, "Of its records.", flag_values=values)
    flags.DEFINE_float("data_fraction", 0.2, "Of the training examples.", flag_values=values)
    flags.DEFINE_integer("batch_size", 32, "Sequences a step.", flag_values=values)
    flags.DEFINE_integer("rounds", 5, "Turns of each.", flag_values=values)
    flags.DEFINE_integer("steps", 4, "Steps of a turn, each of another batch.", flag_values=values)
    flags.DEFINE_integer("decoded", 128, "Inputs that are answered.", flag_values=values)
    flags.DEFINE_integer("tokens", 52, "Of each answer.", flag_values=values)
    flags.DEFINE_enum("alone", None, [PEER, *OURS], "Only this one.", flag_values=values)


# ---------------------------------- the data -----------------------------------


class Data:
    """The same batches in the form of each way."""

    def __init__(self, values: flags.FlagValues) -> None:
        from distill_sbs.data import sentencepiece_model
        from distill_sbs.data import vocabulary as vocabularies

        self._values = values
        described = sentencepiece_model.describe(values.vocabulary_file)
        _, self.kept = small_student.find_kept(described, values.dataset, values.data_dir)
        self._vocabularies = {
            False: vocabularies.from_description(described),
            True: vocabularies.from_description(sentencepiece_model.trim(described, self.kept)),
        }

    def rows(self, is_trimmed: bool) -> int:
        """Of embedding and head."""
        return len(self.kept) if is_trimmed else small_student.ROWS

    def draw(self, shared: bool, is_trimmed: bool) -> list[tuple[list[Sequence2Sequence], Batch]]:
        """For each step of a turn its sequences, label and rationale in turn, and its rows."""
        from distill_sbs.data import registration, settings
        from distill_sbs.data.batches import input_pipeline, layout, pairs
        from distill_sbs.data.batches.sampler import MixtureSampler
        from distill_sbs.model import flops

        values = self._values
        settings.use(
            settings.DataSettings(
                values.data_dir,
                values.data_fraction,
                vocabulary=self._vocabularies[is_trimmed],
                shared_encoder=shared,
            )
        )
        found = registration.get_mixture_or_task(f"{values.dataset}_dss_{values.teacher}")
        labels, rationales = (
            input_pipeline.tokenise(task, "train", small_student.LENGTHS, keep_texts=False)
            for task in registration.tasks_of(found)
        )
        if shared:
            paired = pairs.share_inputs(labels, rationales, complete=True)
        else:
            paired = pairs.pair_tasks(labels, rationales)
        mixed = [paired] if shared else [labels, rationales]
        cost = functools.partial(flops.step_cost, small_student.make_config(self.rows(is_trimmed)))
        chosen = input_pipeline.lay_out_tasks(
            mixed, [1.0] * len(mixed), values.batch_size, 0, step_cost=cost
        ).batch_layout
        sampler = MixtureSampler([paired], [1.0], seed=0)
        position, drawn = sampler.start(), []
        for _ in range(values.steps):
            sequences, position = sampler.draw(position, values.batch_size // 2)
            drawn.append((sequences, layout.fill(sequences, chosen)))
        return drawn


# ---------------------------------- both ways ----------------------------------


class Ours:
    """Our training program and decoder."""

    def __init__(self, rows: int, batches: Sequence[Batch], tokens: int, batch_size: int) -> None:
        from distill_sbs.config import OptimizerConfig
        from distill_sbs.distributed import sharding
        from distill_sbs.inference.batch_decoder import Decoder
        from distill_sbs.model.network import Transformer
        from distill_sbs.training import optimizer, program

        self.config = small_student.make_config(rows, dropout_rate=0.0)
        self._mesh = sharding.make_mesh(1)
        update = optimizer.make_optimizer(
            OptimizerConfig(
                learning_rate=small_student.LEARNING_RATE,
                final_learning_rate=small_student.LEARNING_RATE,
            ),
            1000,
        )
        self._program = program.build_training_program(self.config, update, self._mesh)
        with sharding.rules(self._mesh):
            self._state = self._program.make_state()
        self._batches = [sharding.put_batch(batch, self._mesh) for batch in batches]
        self._decoder = Decoder(Transformer(self.config), self._mesh, tokens, batch_size)

    def parameters(self) -> Any:
        """Of the next step, on the host."""
        import jax

        return jax.device_get(self._state.params)

    def step(self, number: int) -> float:
        """One step; waits for its loss."""
        from distill_sbs.distributed import sharding

        with sharding.rules(self._mesh):
            self._state, metrics = self._program.step(self._state, self._batches[number])
        return float(metrics["loss"])

    def decode(self, inputs: Sequence[np.ndarray]) -> list[list[int]]:
        """Answers."""
        return [row.tolist() for row in self._decoder(self._state.params, inputs)]


class Peer:
    """transformers' T5 as the published code trains it."""

    def __init__(
        self,
        config: T5Config,
        parameters: Mapping[str, Any],
        batches: Sequence[Sequence[Sequence2Sequence]],
        tokens: int,
        batch_size: int,
    ) -> None:
        import torch
        import torch_student

        self._model = torch_student.make_model(config, parameters).train()
        self._update = torch.optim.AdamW(
            self._model.parameters(), lr=small_student.LEARNING_RATE, weight_decay=0.0
        )
        self._batches = [[collate(part) for part in split(batch)] for batch in batches]
        self._tokens, self._batch_size = tokens, batch_size

    def step(self, number: int) -> float:
        """One step: two passes, one update."""
        import torch

        label, rationale = (self._model(**part).loss for part in self._batches[number])
        loss = label + rationale
        self._update.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        self._update.step()
        return float(loss.detach())

    def decode(self, inputs: Sequence[np.ndarray]) -> list[list[int]]:
        """Answers, a batch of neighbours after the other, as a Trainer predicts."""
        import torch

        answers: list[list[int]] = []
        self._model.eval()
        with torch.no_grad():
            for start in range(0, len(inputs), self._batch_size):
                tokens, mask = pad(inputs[start : start + self._batch_size])
                answers += self._model.generate(
                    input_ids=tokens,
                    attention_mask=mask,
                    max_new_tokens=self._tokens,
                    do_sample=False,
                    num_beams=1,
                )[:, 1:].tolist()
        self._model.train()
        return answers

    def gap(self, inputs: np.ndarray, answer: Sequence[int], other: Sequence[int]) -> float:
        """How far apart the logits are of the first two tokens in which these answers differ.

        0 where they do not.
        """
        import torch

        at = next(
            (at for at, pair in enumerate(zip(answer, other, strict=False)) if len(set(pair)) > 1),
            None,
        )
        if at is None:
            return 0.0
        self._model.eval()
        with torch.no_grad():
            tokens, mask = pad([inputs])
            before = torch.tensor([[constants.PAD_ID, *other[:at]]])
            logits = self._model(
                input_ids=tokens, attention_mask=mask, decoder_input_ids=before
            ).logits[0, -1]
        self._model.train()
        return abs(float(logits[answer[at]] - logits[other[at]]))


def split(sequences: Sequence[Sequence2Sequence]) -> Iterator[list[Sequence2Sequence]]:
    """The labels of a batch, then its rationales."""
    for task in (constants.LABEL_TASK_ID, constants.RATIONALE_TASK_ID):
        yield [each for each in sequences if each.task_ids[0] == task]


def choose_inputs(batches: Sequence[Sequence[Sequence2Sequence]], count: int) -> list[np.ndarray]:
    """So many inputs with the label's prefix, again from the first where there are fewer."""
    inputs = [each.inputs for batch in batches for each in next(split(batch))]
    return (inputs * -(-count // len(inputs)))[:count]


def pad(arrays: Sequence[np.ndarray], fill: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows as long as the longest of them, and where they have tokens."""
    import numpy as np
    import torch

    width = max(len(each) for each in arrays)
    rows = [np.pad(each, (0, width - len(each)), constant_values=fill) for each in arrays]
    mask = [np.arange(width) < len(each) for each in arrays]
    tokens = torch.from_numpy(np.stack(rows).astype(np.int64))
    return tokens, torch.from_numpy(np.stack(mask).astype(np.int64))


def collate(sequences: Sequence[Sequence2Sequence]) -> dict[str, torch.Tensor]:
    """What a pass takes."""
    tokens, mask = pad([each.inputs for each in sequences])
    labels, _ = pad([each.targets for each in sequences], fill=-100)
    return {"input_ids": tokens, "attention_mask": mask, "labels": labels}


# ---------------------------------- measuring ----------------------------------


def take_turns(functions: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Any]:
    """Seconds of each, by the clock and by the processor: [least, median, most]."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in functions}
    for number in range(rounds):
        names = list(functions) if number % 2 else list(reversed(functions))
        for name in names:
            since, processor_since = time.perf_counter(), time.process_time()
            functions[name]()
            taken[name].append((time.perf_counter() - since, time.process_time() - processor_since))
    return {
        name: {
            what: [min(each), statistics.median(each), max(each)]
            for what, each in zip(("seconds", "processor"), zip(*times, strict=True), strict=True)
        }
        for name, times in taken.items()
    }


def train_all(steps: int, step: Callable[[int], float]) -> Callable[[], list[float]]:
    """A turn: a step on each batch."""
    return lambda: [step(number) for number in range(steps)]


def train_alone(values: flags.FlagValues, data: Data) -> None:
    """Trains one way, and tells its times and memory; the first turn compiles and is not told."""
    shared, is_trimmed = OURS.get(values.alone, (False, False))
    drawn = data.draw(shared, is_trimmed)
    before = peak_memory_mib()
    batches = [batch for _, batch in drawn]
    chosen: Ours | Peer = Ours(data.rows(is_trimmed), batches, values.tokens, values.batch_size)
    if values.alone == PEER:
        assert isinstance(chosen, Ours)
        chosen = Peer(
            chosen.config,
            chosen.parameters(),
            [sequences for sequences, _ in drawn],
            values.tokens,
            values.batch_size,
        )
    turn = train_all(values.steps, chosen.step)
    turn()
    times = take_turns({values.alone: turn}, values.rounds)[values.alone]
    memory = {"MiB": peak_memory_mib(), "MiB before it": before}
    terminal.say(json.dumps({"trained": values.alone, **times, **memory}))


def compare(values: flags.FlagValues) -> None:
    """Compares, times, and prints the line."""
    import jax
    import torch

    data = Data(values)
    if values.alone:
        train_alone(values, data)
        return
    ours, drawn = {}, {}
    for name, (shared, is_trimmed) in OURS.items():
        drawn[name] = data.draw(shared, is_trimmed)
        batches = [batch for _, batch in drawn[name]]
        ours[name] = Ours(data.rows(is_trimmed), batches, values.tokens, values.batch_size)
    of_peer = [sequences for sequences, _ in drawn["ours"]]
    one = ours["ours"]
    peer = Peer(one.config, one.parameters(), of_peer, values.tokens, values.batch_size)

    # ------------------------------ the same? -----------------------------------
    inputs = choose_inputs(of_peer, values.decoded)
    answers, others = one.decode(inputs), peer.decode(inputs)
    equal = sum(mine[: len(each)] == each for mine, each in zip(answers, others, strict=True))
    gap = max(map(peer.gap, inputs, answers, others))
    if gap > LARGEST_DIFFERENCE:
        raise UserError(f"answers of ours and of the peer part where logits differ by {gap:.1e}")
    losses = [(one.step(number), peer.step(number)) for number in range(values.steps)]
    if max(abs(mine - other) / other for mine, other in losses) > LARGEST_DIFFERENCE:
        raise UserError(f"losses of ours and of the peer differ: {losses}")

    # ------------------------------ time ----------------------------------------
    trained = {
        name: train_all(values.steps, each.step) for name, each in {**ours, PEER: peer}.items()
    }
    take_turns(trained, 1)  # compiles, and settles
    training = take_turns(trained, values.rounds)
    trimmed = ours["trimmed vocabulary"]
    mapped = choose_inputs([each for each, _ in drawn["trimmed vocabulary"]], values.decoded)
    trimmed.decode(mapped)  # compiles
    decoding = take_turns(
        {
            "ours": lambda: one.decode(inputs),
            "trimmed vocabulary": lambda: trimmed.decode(mapped),
            PEER: lambda: peer.decode(inputs),
        },
        values.rounds,
    )
    for times, size in ((training, values.batch_size * values.steps), (decoding, len(inputs))):
        for found in times.values():
            for what in ("seconds", "processor"):
                found[f"times as fast, {what}"] = times[PEER][what][1] / found[what][1]
            found["a second"] = size / found["seconds"][1]
    shapes = {
        name: {key: list(value.shape) for key, value in batches[0][1].items() if "tokens" in key}
        for name, batches in drawn.items()
    }
    found = {
        "dataset": values.dataset,
        "sequences a step": values.batch_size,
        "rounds": values.rounds,
        "steps a turn": values.steps,
        "rows kept": data.rows(True),
        "shapes": shapes,
        "losses": losses,
        "training": training,
        "decoded": [len(inputs), values.tokens],
        "equal answers": equal,
        "largest gap of logits where they part": gap,
        "decoding": decoding,
        "versions": {"jax": jax.__version__, "torch": torch.__version__},
        "threads of torch": torch.get_num_threads(),
    }
    terminal.say(json.dumps(found))


if __name__ == "__main__":
    sys.exit(small_student.run(compare, _define_flags, __doc__ or "", sys.argv))
