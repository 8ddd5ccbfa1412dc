"""From SeqIO tasks to a stream of batches that can start again at any position.

Enters: a task or mixture, feature lengths, a seed. Leaves: batches (`layout.fill`) with the
position after each, a few integers that a checkpoint keeps. Which sequences a step sees is decided
by `sampler`, and what stands beside what by `pairs`.
"""

from __future__ import annotations

import dataclasses
import queue
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np
import seqio
import tensorflow as tf

from distill_sbs import constants
from distill_sbs.data import registration, settings, vocabulary
from distill_sbs.data.batches import layout, pairs, token_cache
from distill_sbs.data.batches.sampler import MixtureSampler, Position, TokenisedTask
from distill_sbs.data.batches.share import Share
from distill_sbs.data.records import soft_labels
from distill_sbs.data.tasks import texts as text_source
from distill_sbs.data.trimmed_ids import check_covered
from distill_sbs.errors import UserError

T = TypeVar("T")

# Batches whose lengths decide the shape of all.
_BATCHES_LOOKED_AT = 256
_LAYOUT_SEED = 0

# Sequences that an epoch of a pretraining task has at least.
_LEAST_IN_EPOCH = 1024

_ALL = Share()


def warn_of_cuts(tasks: Sequence[TokenisedTask], share: float) -> list[str]:
    """One line for each feature of which the lengths cut more than `share` of the examples."""
    return [
        f"TASK_FEATURE_LENGTHS cuts {cut:.1%} of the {feature} of {task.name}; "
        f"raise TASK_FEATURE_LENGTHS['{feature}']"
        for task in tasks
        for feature, cut in (("inputs", task.cut_inputs), ("targets", task.cut_targets))
        if cut > share
    ]


def _cut(tokens: np.ndarray, length: int, ends: bool) -> np.ndarray:
    """Cuts to `length`, keeping the end token last, as `seqio.append_eos_after_trim` does."""
    if len(tokens) <= length:
        return tokens
    cut = tokens[:length].copy()
    if ends:
        cut[-1] = constants.EOS_ID
    return cut


def tokenise(
    task: seqio.Task,
    split: str,
    lengths: Mapping[str, int],
    advance: Callable[[int], None] = lambda _: None,
    share: Share = _ALL,
    keep_texts: bool = True,
    seed: int = 0,
    passes: int = 1,
) -> TokenisedTask:
    """Reads and tokenises one split of a task.

    Args:
      task: what to read.
      split: of which split.
      lengths: TASK_FEATURE_LENGTHS.
      advance: told how many more rows are done.
      share: the part that this process reads; the others' comes from them.
      keep_texts: whether the texts are wanted too, as in evaluation.
      seed: of what a pretraining task takes out; other tasks draw nothing.
      passes: how often the split is read, of a pretraining task.

    Raises:
      UserError: the split holds no example of this task, or pieces that a trimmed vocabulary does
        not have.
    """
    # A pretraining task cuts its texts to measure, and has nothing that they were made from. What a
    # piece holds depends on the texts beside it, so every process reads all of them.
    pretrains = registration.is_pretraining(task)
    # A contrast's rollouts are few, and made of tokens: every process reads them all.
    is_contrast = registration.find_manifest(task) is not None
    if pretrains or is_contrast:
        share, keep_texts = _ALL, False
    is_rationale = registration.is_rationale(task)
    start = settings.current().starts()["rationale" if is_rationale else "label"]
    # Whole sequences, cut here: so the share that was cut is known.
    dataset = task.get_dataset(
        sequence_length=lengths if pretrains else None,
        split=split,
        shuffle=False,
        seed=seed,
        num_epochs=passes,
        trim_output_features=False,
        shard_info=share.shard_info,
    )
    indices: list[int] = []
    sequences: list[layout.Sequence2Sequence] = []
    texts: list[str] = []
    input_texts: list[str] = []
    cut_inputs = cut_targets = 0
    limit_inputs, limit_targets = lengths[constants.INPUTS], lengths[constants.TARGETS]
    for batch in dataset.ragged_batch(512):
        columns = [
            np.split(batch[key].flat_values.numpy(), batch[key].row_splits.numpy()[1:-1])
            for key in (constants.INPUTS, constants.TARGETS, constants.TASK_IDS)
        ]
        for inputs, targets, task_ids in zip(*columns, strict=True):
            cut_inputs += len(inputs) > limit_inputs
            cut_targets += len(targets) > limit_targets
            sequences.append(
                layout.Sequence2Sequence(
                    _cut(inputs, limit_inputs, ends=True),
                    _cut(targets, limit_targets, ends=True),
                    _cut(task_ids, limit_targets, ends=False),
                    start=start,
                )
            )
        if is_contrast:
            begin = len(sequences) - len(columns[0])
            for number, soft in enumerate(_read_soft_targets(batch), start=begin):
                sequences[number] = _add_soft_targets(sequences[number], soft)
        advance(len(columns[0]))
        indices.extend(batch[constants.INDEX].numpy().tolist())
        if not keep_texts:
            continue
        texts.extend(text.decode() for text in batch[f"{constants.TARGETS}_pretokenized"].numpy())
        input_texts.extend(
            text.decode() for text in batch[f"{constants.INPUTS}_pretokenized"].numpy()
        )
    places = np.array(indices, np.int64)
    if share.count > 1:
        order = share.gather_indices(indices)
        cut_inputs, cut_targets = share.add_up(cut_inputs, cut_targets)
        shared = (
            share.gather_rows([getattr(each, name) for each in sequences], order)
            for name in (constants.INPUTS, constants.TARGETS, constants.TASK_IDS)
        )
        sequences = [
            layout.Sequence2Sequence(inputs, targets, task_ids, start=start)
            for inputs, targets, task_ids in zip(*shared, strict=True)
        ]
        if keep_texts:
            texts, input_texts = (
                share.gather_texts(texts, order),
                share.gather_texts(input_texts, order),
            )
        places = np.sort(order)
    if not sequences and pretrains:
        raise UserError(
            f"task {task.name!r} has no text in split {split!r}; of a folder about one text of "
            f"{text_source.LINES_PER_TEXT} lines in {text_source.HELD_OUT_ONE_IN} is held out as "
            "validation: give more text"
        )
    if not sequences:
        raise UserError(
            f"task {task.name!r} has no example in split {split!r}: the prepared records hold no "
            "label or no rationale for it; prepare them with the teacher's outputs"
        )
    _check_covered(task, split, places, sequences)
    count = len(sequences)
    return TokenisedTask(
        task.name,
        sequences,
        texts,
        input_texts,
        cut_inputs / count,
        cut_targets / count,
        indices=places,
    )


def _check_covered(
    task: seqio.Task, split: str, places: np.ndarray, sequences: Sequence[layout.Sequence2Sequence]
) -> None:
    """Refuses what a trimmed vocabulary does not cover; of a whole one there is nothing to ask."""
    for name in (constants.INPUTS, constants.TARGETS):
        trimmed = vocabulary.find_trimmed(task.output_features[name].vocabulary)
        if trimmed is not None:
            check_covered(
                trimmed,
                (getattr(each, name) for each in sequences),
                f"{task.name}, split {split}, {name}",
                lambda number: f"row {places[number]} of its records",
            )


def _read_soft_targets(batch: Mapping[str, tf.RaggedTensor]) -> Iterator[layout.SoftTargets]:
    """Of every rollout of a batch, uncut."""
    columns = [
        np.split(batch[key].flat_values.numpy(), batch[key].row_splits.numpy()[1:-1])
        for key in (soft_labels.SOFT_IDS, soft_labels.SOFT_WEIGHTS, soft_labels.STEP_WEIGHTS)
    ]
    for ids, weights, steps in zip(*columns, strict=True):
        shape = (len(steps), -1)
        yield layout.SoftTargets(ids.reshape(shape), weights.reshape(shape), steps)


def _add_soft_targets(
    sequence: layout.Sequence2Sequence, soft: layout.SoftTargets
) -> layout.Sequence2Sequence:
    """The sequence with its soft labels, cut as its targets are."""
    length = len(sequence.targets)
    cut = layout.SoftTargets(soft.ids[:length], soft.weights[:length], soft.step_weights[:length])
    return dataclasses.replace(sequence, soft=cut)


def _take_turns(task: TokenisedTask) -> TokenisedTask:
    """One sequence an example, another of its own each epoch, where it has several."""
    begins = np.flatnonzero(np.diff(task.indices, prepend=-1))  # an example's stand side by side
    ends = [*begins[1:], len(task.sequences)]

    def draw(epoch: int) -> list[layout.Sequence2Sequence]:
        return [
            task.sequences[begin + epoch % (end - begin)]
            for begin, end in zip(begins, ends, strict=True)
        ]

    return dataclasses.replace(
        task, sequences=draw(0), redraw=draw, others=task.sequences, indices=task.indices[begins]
    )


def _tokenise_training(
    task: seqio.Task,
    lengths: Mapping[str, int],
    seed: int,
    advance: Callable[[int], None],
    share: Share,
) -> TokenisedTask:
    """The training split of a task; of a pretraining task, that of its first epoch.

    An epoch of little text is several passes, so that it is not read anew every few steps.
    """
    if not registration.is_pretraining(task):
        read_once = _tokenise_or_read(task, lengths, advance, share)
        takes_turns = settings.current().rationales_per_example > 1
        is_several = takes_turns and registration.reads_rationales(task)
        return _take_turns(read_once) if is_several else read_once

    def read(epoch: int, passes: int) -> TokenisedTask:
        key = np.random.SeedSequence([seed, zlib.crc32(task.name.encode()), epoch])
        corruption_seed = int(key.generate_state(1)[0] % 2**31)
        return tokenise(task, "train", lengths, seed=corruption_seed, passes=passes)

    first = read(0, passes=1)
    passes = -(-_LEAST_IN_EPOCH // len(first.sequences))
    if passes > 1:
        first = read(0, passes)
    advance(len(first.sequences))
    return dataclasses.replace(first, redraw=lambda epoch: read(epoch, passes).sequences)


def _tokenise_or_read(
    task: seqio.Task, lengths: Mapping[str, int], advance: Callable[[int], None], share: Share
) -> TokenisedTask:
    """The training split, from what an earlier start kept of it where one did."""
    # Of several processes each reads a part; one of them alone might find what others do not.
    kept = token_cache.find_path(task, lengths) if share.count == 1 else None
    if kept is not None and (found := token_cache.read(kept, task.name)) is not None:
        advance(len(found.sequences))
        return found
    tokenised = tokenise(task, "train", lengths, advance, share, keep_texts=False)
    if kept is not None:
        token_cache.keep(kept, tokenised)
    return tokenised


def lay_out_singly(
    sequences: Sequence[layout.Sequence2Sequence], batch_size: int
) -> Iterator[layout.Batch]:
    """All sequences, in batches of one shape, each in a row of its own; as to evaluate them."""
    longest = layout.measure(sequences).max(axis=0)
    shape = layout.BatchShape(batch_size, int(longest[0]), int(longest[1]))
    for start in range(0, len(sequences), batch_size):
        part = sequences[start : start + batch_size]
        yield layout.fill(part, layout.Layout(shape, shape))


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """The training side of a run: what is drawn, how it is laid out, what was cut.

    Attributes:
      sampler: draws sequences.
      batch_size: sequences a step.
      batch_layout: the shapes of its batches.
      tasks: the tokenised tasks; where they are drawn in pairs, what is left of them.
      rows_here: which of a batch's rows (given their number) the devices of this process take, as
        booleans [rows]; only these are filled. None: all.
    """

    sampler: MixtureSampler
    batch_size: int
    batch_layout: layout.Layout
    tasks: Sequence[TokenisedTask]
    rows_here: layout.RowsHere | None = None

    @property
    def draws(self) -> int:
        """How often a step draws: for every sequence, or for every pair."""
        return self.batch_size // self.sampler.together

    def describe(self) -> str:
        """One line for people: how many sequences there are, and how they are laid out."""
        shape = self.batch_layout.usual
        sizes = ", ".join(
            f"{len(task.sequences) - task.empty:,} of {task.name}"
            + (f" ({task.left_out:,} that cannot be paired left out)" if task.left_out else "")
            for task in self.tasks
        )
        in_pairs = ", in pairs of one example" if self.sampler.together > 1 else ""
        in_pairs += ", whose inputs are encoded once" if shape.shared_encoder else ""
        return (
            f"{sizes}{in_pairs}; a step lays {self.batch_size} into {shape.rows} rows of "
            f"{shape.input_tokens} input and {shape.target_tokens} target tokens"
        )

    def batches(self, position: Position) -> Iterator[tuple[layout.Batch, Position]]:
        """Batches from `position` on, without end, each with the position after it."""
        while True:
            sequences, position = self.sampler.draw(position, self.draws)
            yield layout.fill(sequences, self.batch_layout, self.rows_here), position


def load_training_data(
    mixture_or_task: seqio.Task | seqio.Mixture,
    lengths: Mapping[str, int],
    batch_size: int,
    seed: int,
    row_multiple: int = 1,
    pack: bool = True,
    advance: Callable[[int], None] = lambda _: None,
    share: Share = _ALL,
    rows_here: layout.RowsHere | None = None,
    in_pairs: bool = False,
    step_cost: layout.StepCost = layout.count_positions,
) -> TrainingData:
    """Tokenises the training split of a mixture and chooses the batch's shape.

    Args:
      mixture_or_task: what to draw from; λ is in its rates.
      lengths: TASK_FEATURE_LENGTHS.
      batch_size: sequences a step, labels and rationales together.
      seed: of the order.
      row_multiple: what the number of rows must be a multiple of.
      pack: False lays every sequence into a row of the full feature lengths of its own.
      advance: told how many more rows are tokenised.
      share: the part that this process reads.
      rows_here: see `TrainingData`.
      in_pairs: draw every example that has both a label and a rationale with both of them, side by
        side in one row; others are left out. With `SHARED_ENCODER` examples are drawn so too, on
        one encoder segment; unless `in_pairs`, those that lack one of the two come without it.
      step_cost: see `layout.choose_layout`.

    Raises:
      UserError: there is no such example, or the mixture does not pair labels with rationales.
    """
    parts = registration.tasks_of(mixture_or_task)
    rates = [
        mixture_or_task.get_rate(part) if isinstance(mixture_or_task, seqio.Mixture) else 1.0
        for part in parts
    ]
    used = [(part, rate) for part, rate in zip(parts, rates, strict=True) if rate > 0]
    tasks = [_tokenise_training(part, lengths, seed, advance, share) for part, _ in used]
    rates = [rate for _, rate in used]
    shared_encoder = settings.current().shared_encoder
    if shared_encoder or in_pairs:
        names = registration.find_pairs(mixture_or_task, shared_encoder)
        tasks, rates = pairs.pair_mixture(
            names, tasks, rates, shared_encoder=shared_encoder, complete=in_pairs
        )
    data = lay_out_tasks(tasks, rates, batch_size, seed, row_multiple, step_cost)
    data = dataclasses.replace(data, rows_here=rows_here)
    if pack:
        return data
    longest = lengths[constants.INPUTS], lengths[constants.TARGETS]
    shape = layout.shape_unpacked(batch_size, *longest, row_multiple, in_pairs, shared_encoder)
    unpacked = layout.Layout(shape, shape).add_soft_labels(data.batch_layout.usual.soft)
    return dataclasses.replace(data, batch_layout=unpacked)


def lay_out_tasks(
    tasks: Sequence[TokenisedTask],
    rates: Sequence[float],
    batch_size: int,
    seed: int,
    row_multiple: int = 1,
    step_cost: layout.StepCost = layout.count_positions,
) -> TrainingData:
    """Chooses the layout for tasks that are mixed at `rates`, from the first batches of one order.

    It is the same order for every seed, so that runs that differ in their seed alone have batches
    of one shape, and are one compiled program.
    """
    # What a later epoch draws anew has the lengths that the first had.
    looked_at = MixtureSampler(
        [dataclasses.replace(each, redraw=None) for each in tasks], rates, _LAYOUT_SEED
    )
    position = looked_at.start()
    together = looked_at.together
    batches = []
    for _ in range(_BATCHES_LOOKED_AT):
        sequences, position = looked_at.draw(position, batch_size // together)
        batches.append(layout.measure(sequences, together))
    longest = np.max([task.lengths().max(axis=0) for task in tasks], axis=0)
    shared_encoder = any(task.shared_encoder for task in tasks)
    chosen = layout.choose_layout(batches, longest, row_multiple, step_cost, in_pairs=together > 1)
    if soft_tokens := max(task.soft_tokens() for task in tasks):
        chosen = chosen.add_soft_labels(soft_tokens)
    if shared_encoder:
        chosen = chosen.share_encoder()
    drawn = [each for task in tasks for each in (task, task.partner) if each is not None]
    return TrainingData(MixtureSampler(tasks, rates, seed), batch_size, chosen, drawn)


@dataclasses.dataclass(frozen=True)
class _End:
    """No more comes: the source ended, or raised an error."""

    error: BaseException | None = None


class Prefetcher(Iterator[T]):
    """Runs an iterator in a thread, a few items ahead; an error in it is raised at `next`."""

    def __init__(self, source: Iterator[T], ahead: int = 2) -> None:
        self._queue: queue.Queue[T | _End] = queue.Queue(maxsize=ahead)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(source,), daemon=True)
        self._thread.start()

    def _put(self, item: T | _End) -> None:
        while not self._stopped.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    def _run(self, source: Iterator[T]) -> None:
        try:
            for item in source:
                self._put(item)
                if self._stopped.is_set():
                    return
            self._put(_End())
        except BaseException as error:
            self._put(_End(error))

    def __next__(self) -> T:
        item = self._queue.get()
        if not isinstance(item, _End):
            return item
        self._queue.put(item)  # what ended the source ends every later call too
        if item.error is not None:
            raise item.error
        raise StopIteration

    def close(self) -> None:
        """Ends the thread."""
        self._stopped.set()
        self._thread.join(timeout=5)
