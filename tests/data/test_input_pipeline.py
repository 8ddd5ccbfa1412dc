"""input_pipeline: which sequences a step sees depends on seed and position alone."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter

import numpy as np
import pytest
import seqio

from distill_sbs.config import StudentConfig
from distill_sbs.data.batches import input_pipeline, layout
from distill_sbs.data.batches.layout import Sequence2Sequence
from distill_sbs.data.batches.sampler import MixtureSampler, TokenisedTask
from distill_sbs.errors import UserError
from distill_sbs.model import flops

LENGTHS = {"inputs": 64, "targets": 32, "task_ids": 32}


def task(name: str, size: int, first: int = 2) -> TokenisedTask:
    sequences = [
        Sequence2Sequence(*(np.array([first + i, 1], np.int32) for _ in range(3)))
        for i in range(size)
    ]
    return TokenisedTask(name, sequences, [""] * size, [""] * size, 0.0, 0.0)


def firsts(sequences: list[Sequence2Sequence]) -> list[int]:
    return [int(each.inputs[0]) for each in sequences]


def test_tasks_take_turns_at_their_rates() -> None:
    sampler = MixtureSampler([task("label", 10), task("rationale", 10)], [1.0, 0.5], seed=0)
    _, position = sampler.draw(sampler.start(), 12)
    assert position == {"label": 8, "rationale": 4}
    for count in range(1, 40):
        _, position = sampler.draw(sampler.start(), count)
        assert abs(position["label"] - count * 2 / 3) <= 1


def test_an_epoch_sees_every_example_once() -> None:
    sampler = MixtureSampler([task("label", 7)], [1.0], seed=3)
    drawn, position = sampler.draw(sampler.start(), 21)
    values = firsts(drawn)
    for epoch in range(3):
        assert sorted(values[7 * epoch : 7 * epoch + 7]) == list(range(2, 9))
    assert values[:7] != values[7:14]
    assert position == {"label": 21}


def test_any_position_can_be_started_from() -> None:
    sampler = MixtureSampler([task("a", 5), task("b", 9, 100)], [1.0, 0.7], seed=1)
    whole, _ = sampler.draw(sampler.start(), 60)
    first, middle = sampler.draw(sampler.start(), 23)
    again = MixtureSampler([task("a", 5), task("b", 9, 100)], [1.0, 0.7], seed=1)
    rest, _ = again.draw(middle, 37)
    assert firsts(first) + firsts(rest) == firsts(whole)


def test_a_rate_of_zero_is_the_task_alone() -> None:
    alone = MixtureSampler([task("label", 9)], [1.0], seed=4)
    mixed = MixtureSampler([task("label", 9), task("rationale", 9)], [1.0, 0.0], seed=4)
    assert firsts(alone.draw(alone.start(), 30)[0]) == firsts(mixed.draw(mixed.start(), 30)[0])


def test_rates_must_not_all_be_zero() -> None:
    with pytest.raises(UserError, match="at least one must be positive"):
        MixtureSampler([task("label", 3)], [0.0], seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("pack", [True, False])
def test_a_step_sees_exactly_batch_size_sequences(tiny_settings, pack: bool) -> None:
    tiny_settings(rationale_rate=0.5)
    mixture = seqio.get_mixture_or_task("tiny_dss_gpt")
    data = input_pipeline.load_training_data(
        mixture, LENGTHS, 12, seed=0, row_multiple=2, pack=pack
    )
    batches = data.batches(data.sampler.start())
    for step in range(1, 21):
        batch, position = next(batches)
        segments = batch["encoder_segment_ids"]
        assert segments.max(axis=1).sum() == 12
        assert len(segments) % 2 == 0
        assert position == {"tiny_label": 8 * step, "tiny_rationale_gpt": 4 * step}


@pytest.mark.slow
def test_batches_have_one_shape_for_every_seed(tiny_settings) -> None:
    tasks = [task("label", 50), task("rationale", 31)]
    for number, each in enumerate(tasks):  # of many lengths, which each seed draws otherwise
        for place, sequence in enumerate(each.sequences):
            length = 2 + (7 * place + number) % 23
            each.sequences[place] = dataclasses.replace(
                sequence, inputs=np.arange(length), targets=np.arange(length % 9 + 1)
            )
    shapes = {
        input_pipeline.lay_out_tasks(tasks, [1.0, 1.0], 10, seed=seed).batch_layout
        for seed in range(5)
    }
    assert len(shapes) == 1


@pytest.mark.slow
def test_packing_is_layout_only(tiny_settings) -> None:
    """The same sequences stand in the packed and in the unpacked batch."""
    mixture = seqio.get_mixture_or_task("tiny_dss_gpt")

    def sequences(pack: bool) -> Counter:
        data = input_pipeline.load_training_data(mixture, LENGTHS, 8, seed=5, pack=pack)
        batch, _ = next(data.batches(data.sampler.start()))
        found = []
        for row in range(len(batch["encoder_segment_ids"])):
            for segment in range(1, batch["encoder_segment_ids"][row].max() + 1):
                inside = batch["encoder_segment_ids"][row] == segment
                target = batch["decoder_segment_ids"][row] == segment
                found.append(
                    (
                        *batch["encoder_input_tokens"][row][inside],
                        -1,
                        *batch["decoder_target_tokens"][row][target],
                        -1,
                        *batch["decoder_input_tokens"][row][target],
                        -1,
                        *batch["decoder_task_ids"][row][target],
                    )
                )
        return Counter(found)

    assert sequences(True) == sequences(False)


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_settings")
def test_tokens_equal_seqios_own() -> None:
    """Cutting here equals `append_eos_after_trim`, and the share that was cut is known."""
    lengths = {"inputs": 18, "targets": 7, "task_ids": 7}
    ours = input_pipeline.tokenise(seqio.get_mixture_or_task("tiny_label"), "train", lengths)
    theirs = seqio.get_mixture_or_task("tiny_label").get_dataset(lengths, "train", shuffle=False)
    for one, row in zip(ours.sequences, theirs, strict=False):
        assert one.inputs.tolist() == row["inputs"].numpy().tolist()
        assert one.targets.tolist() == row["targets"].numpy().tolist()
        assert one.task_ids.tolist() == row["task_ids"].numpy().tolist()
    # "predict: question 10" and its end token are 21 tokens, "yes 10" and its own 7.
    assert ours.cut_inputs == 1.0
    assert ours.cut_targets == 0.0
    assert ours.texts[10] == "yes 10"
    assert input_pipeline.warn_of_cuts([ours], 0.01) == [
        "TASK_FEATURE_LENGTHS cuts 100.0% of the inputs of tiny_label; "
        "raise TASK_FEATURE_LENGTHS['inputs']"
    ]


def test_prefetcher_passes_items_and_errors_on() -> None:
    def source():
        yield 1
        yield 2
        raise RuntimeError("broken source")

    prefetcher = input_pipeline.Prefetcher(source())
    assert [next(prefetcher), next(prefetcher)] == [1, 2]
    for _ in range(2):
        with pytest.raises(RuntimeError, match="broken source"):
            next(prefetcher)
    prefetcher.close()


@pytest.mark.realdata
@pytest.mark.slow
@pytest.mark.parametrize(
    ("dataset", "split"),
    [
        pytest.param("cqa", "train", marks=pytest.mark.campaign),
        pytest.param("svamp", "train", marks=pytest.mark.campaign),
        pytest.param("esnli", "train", marks=pytest.mark.campaign),
        ("anli1", "validation"),
    ],
)
def test_padding_on_real_data(real_settings, dataset: str, split: str) -> None:
    """At the paper's batch (64 examples, two rows each) at most 5 % of positions are padding.

    For T5 v1.1 Base, as where no student is known.
    """
    tasks = [
        input_pipeline.tokenise(
            seqio.get_mixture_or_task(name),
            split,
            {"inputs": 1024, "targets": 256, "task_ids": 256},
        )
        for name in (f"{dataset}_label", f"{dataset}_rationale_palm")
    ]
    base = StudentConfig(name="t5_1_1_base").architecture()
    for cost in (layout.count_positions, functools.partial(flops.step_cost, base)):
        data = input_pipeline.lay_out_tasks(
            tasks, [1.0, 1.0], batch_size=128, seed=0, step_cost=cost
        )
        batches = data.batches(data.sampler.start())
        shares = [layout.padding_share(next(batches)[0]) for _ in range(200)]
        assert np.mean(shares) <= 0.05, (cost, data.batch_layout)
