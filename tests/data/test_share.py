"""share: each process reads its part, and all have the whole in order. Threads stand for them."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import seqio

from distill_sbs.data.batches import input_pipeline, sampler
from distill_sbs.data.batches.share import Share

LENGTHS = {"inputs": 64, "targets": 32, "task_ids": 32}


def together(count: int, work: Callable[[Share], Any]) -> list[Any]:
    """Runs `work` for every share at the same time; they exchange as processes do."""
    barrier = threading.Barrier(count, timeout=60)
    offered: list[Any] = [None] * count
    results: list[Any] = [None] * count

    def run(index: int) -> None:
        def exchange(array: np.ndarray) -> list[np.ndarray]:
            offered[index] = array
            barrier.wait()
            everyone = list(offered)
            barrier.wait()
            return everyone

        results[index] = work(Share(index, count, exchange))

    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    return results


def as_lists(task: sampler.TokenisedTask) -> list[Any]:
    rows = [(each.inputs, each.targets, each.task_ids) for each in task.sequences]
    assert all(part.dtype == np.int32 for row in rows for part in row)
    return [[part.tolist() for part in row] for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("split", ["train", "test"])
def test_all_have_the_whole_split_in_order(tiny_settings, count: int, split: str) -> None:
    tiny_settings(data_fraction=0.5)
    task = seqio.get_mixture_or_task("tiny_rationale_gpt")
    alone = input_pipeline.tokenise(task, split, LENGTHS)
    read: list[int] = []

    def work(share: Share) -> sampler.TokenisedTask:
        return input_pipeline.tokenise(task, split, LENGTHS, read.append, share)

    for shared in together(count, work):
        assert as_lists(shared) == as_lists(alone)
        assert shared.texts == alone.texts
        assert shared.input_texts == alone.input_texts
        assert (shared.cut_inputs, shared.cut_targets) == (alone.cut_inputs, alone.cut_targets)
    # Each row was tokenised by one of them.
    assert sum(read) == len(alone.sequences)
    assert len(read) == count


@pytest.mark.slow
def test_a_process_may_have_nothing_to_read(tiny_settings) -> None:
    """Eight rows of `test` for ten processes."""
    task = seqio.get_mixture_or_task("tiny_label")
    alone = input_pipeline.tokenise(task, "test", LENGTHS)
    for shared in together(
        10, lambda share: input_pipeline.tokenise(task, "test", LENGTHS, share=share)
    ):
        assert as_lists(shared) == as_lists(alone)
        assert shared.texts == alone.texts


def test_records_are_parsed_by_one_process_only(tiny_settings) -> None:
    """Also where there are fewer files than processes."""
    source = seqio.get_mixture_or_task("tiny_label").source

    def indices(number: int) -> list[int]:
        info = seqio.ShardInfo(number, 3)
        dataset = source.get_dataset("train", shuffle=False, shard_info=info)
        return [int(row["index"]) for row in dataset]

    parts = [indices(number) for number in range(3)]
    assert sorted(sum(parts, [])) == list(range(40))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.slow
@pytest.mark.parametrize(("in_pairs", "steps"), [(False, 10), (True, 9)])
def test_an_epoch_is_laid_out_once_over_the_processes(
    tiny_settings, in_pairs: bool, steps: int
) -> None:
    """The rows that the processes fill are those of the single process, no more and no less."""
    tiny_settings(rationale_rate=1.0)
    mixture = seqio.get_mixture_or_task("tiny_dss_gpt")
    count = 2  # four labels and four rationales a step; of 40 examples 36 have both

    def batches(share: Share) -> list[dict[str, np.ndarray]]:
        def half(rows: int) -> np.ndarray:
            return np.arange(rows) * count // rows == share.index

        data = input_pipeline.load_training_data(
            mixture,
            LENGTHS,
            8,
            0,
            row_multiple=2,
            share=share,
            rows_here=half,
            in_pairs=in_pairs,
        )
        stream = data.batches(data.sampler.start())
        return [next(stream)[0] for _ in range(steps)]

    data = input_pipeline.load_training_data(
        mixture, LENGTHS, 8, 0, row_multiple=2, in_pairs=in_pairs
    )
    stream = data.batches(data.sampler.start())
    shares = together(count, batches)
    for step in range(steps):
        whole, _ = next(stream)
        parts = [share[step] for share in shares]
        for name, expected in whole.items():
            half = len(expected) // 2
            np.testing.assert_array_equal(parts[0][name][:half], expected[:half])
            np.testing.assert_array_equal(parts[1][name][half:], expected[half:])
            # What is another's is not even filled.
            assert not parts[0][name][half:].any()
            assert not parts[1][name][:half].any()
    # Their label rows are one epoch: each example once.
    seen: Counter[tuple[int, ...]] = Counter()
    for share in shares:
        for batch in share:
            for row in range(len(batch["encoder_segment_ids"])):
                tokens, segments = (
                    batch[f"encoder_{name}"][row] for name in ("input_tokens", "segment_ids")
                )
                ids = batch["decoder_task_ids"][row]
                targets = batch["decoder_segment_ids"][row]
                for segment in range(1, segments.max() + 1):
                    if (ids[targets == segment] == 1).all():
                        seen[tuple(tokens[segments == segment])] += 1
    assert len(seen) == 4 * steps
    assert set(seen.values()) == {1}
