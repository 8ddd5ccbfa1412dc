"""Pairs that share one input: what is drawn, how it is laid out, and which mixtures have them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import seqio
from test_pairs import LENGTHS, task

from distill_sbs.data import registration
from distill_sbs.data.batches import input_pipeline, layout, pairs
from distill_sbs.data.batches.layout import BatchShape, Layout, Sequence2Sequence
from distill_sbs.data.batches.sampler import MixtureSampler
from distill_sbs.errors import UserError

BYTES = seqio.ByteVocabulary()
NOTHING = np.zeros(0, np.int32)


def load(**options: object) -> input_pipeline.TrainingData:
    mixture = registration.get_mixture_or_task("tiny_dss_gpt")
    return input_pipeline.load_training_data(mixture, LENGTHS, 8, **{"seed": 5, **options})


def read_examples(batch: layout.Batch) -> list[str]:
    """'input | label | rationale' of every encoder segment."""
    found = []
    for row in range(len(batch["pairs"])):
        sources = batch["decoder_source_segment_ids"][row]
        for segment in np.unique(batch["encoder_segment_ids"][row]):
            if segment == 0:
                continue
            here = batch["encoder_segment_ids"][row] == segment
            texts = [BYTES.decode(batch["encoder_input_tokens"][row][here].tolist())]
            for own, (target, start, task_id) in enumerate([("label", 0, 1), ("rationale", 1, 2)]):
                there = batch["decoder_segment_ids"][row] == segment + own
                if not there.any():
                    texts.append(f"no {target}")
                    continue
                assert set(sources[there].tolist()) == {segment}
                assert set(batch["decoder_task_ids"][row][there].tolist()) == {task_id}
                targets = batch["decoder_target_tokens"][row][there].tolist()
                given = batch["decoder_input_tokens"][row][there].tolist()
                assert given == [start, *targets[:-1]]
                texts.append(BYTES.decode(targets))
            found.append(" | ".join(texts))
    return found


def read_steps(data: input_pipeline.TrainingData, steps: int) -> list[str]:
    batches = data.batches(data.sampler.start())
    return [each for _ in range(steps) for each in read_examples(next(batches)[0])]


@pytest.mark.slow
@pytest.mark.parametrize("pack", [True, False])
def test_every_example_is_encoded_once_an_epoch_with_both_of_its_targets(
    tiny_settings, pack: bool
) -> None:
    tiny_settings(shared_encoder=True)
    data = load(pack=pack, row_multiple=2)
    seen = read_steps(data, 20)
    # Row 9, 19, … have no rationale, and keep their label.
    expected = sorted(
        f"question {i} | yes {i} | " + ("no rationale" if i % 10 == 9 else f"rationale {i}")
        for i in range(40)
    )
    assert sorted(seen[:40]) == sorted(seen[40:]) == expected
    assert seen[:40] != seen[40:]
    assert data.describe().startswith(
        "40 of tiny_label, 36 of tiny_rationale_gpt, in pairs of one example, whose inputs are "
        "encoded once; a step lays 8 into "
    )
    usual = data.batch_layout.usual
    if not pack:
        assert usual == BatchShape(4, 64, 64, 1, shared_encoder=True)
    # 'question 12' and its end are 12 bytes: four of them, and not eight, go into a step's rows.
    assert not pack or usual.rows * usual.input_tokens < 8 * 12


@pytest.mark.slow
def test_with_the_mutual_information_loss_pairs_are_complete(tiny_settings) -> None:
    tiny_settings(shared_encoder=True)
    data = load(in_pairs=True)
    assert [task.left_out for task in data.tasks] == [4, 0]
    assert not any("no rationale" in each for each in read_steps(data, 5))


# ---------------------------------- by hand ----------------------------------


def same_inputs(indices: list[int]) -> pairs.TokenisedTask:
    """As `task`, whose inputs do not tell one task from another."""
    made = task("rationale", indices, 200)
    sequences = [
        dataclasses.replace(each, inputs=np.full(2, 100 + i, np.int32), start=1)
        for i, each in zip(indices, made.sequences, strict=True)
    ]
    return dataclasses.replace(made, sequences=sequences)


def draw_all(paired: pairs.TokenisedTask, count: int) -> list[tuple[list[int], ...]]:
    sampler = MixtureSampler([paired], [1.0], seed=0)
    sequences, _ = sampler.draw(sampler.start(), count)
    return [
        (one.inputs.tolist(), one.targets.tolist(), other.inputs.tolist(), other.targets.tolist())
        for one, other in zip(sequences[::2], sequences[1::2], strict=True)
    ]


def test_examples_that_lack_a_target_stay_unless_pairs_are_complete() -> None:
    labels, rationales = task("label", [0, 1, 5], 100), same_inputs([1, 4, 5])
    paired = pairs.share_inputs(labels, rationales)
    assert paired.indices.tolist() == [0, 1, 4, 5]
    assert sorted(draw_all(paired, 4)) == [
        ([100, 100], [100, 100], [], []),
        ([101, 101], [101, 101], [], [201, 201]),
        ([104, 104], [], [], [204, 204]),
        ([105, 105], [105, 105], [], [205, 205]),
    ]
    assert paired.partner is not None
    assert (paired.empty, paired.partner.empty) == (1, 1)
    assert paired.lengths().max(axis=0).tolist() == [2, 4]
    complete = pairs.share_inputs(labels, rationales, complete=True)
    assert complete.indices.tolist() == [1, 5]
    assert complete.left_out == 1


def test_several_rationales_take_turns_on_one_input() -> None:
    labels, first = task("label", [0, 1], 100), same_inputs([0, 1])
    second = [dataclasses.replace(each, targets=np.full(3, 7)) for each in first.sequences]
    rationales = dataclasses.replace(
        first, redraw=lambda epoch: (first.sequences, second)[epoch % 2], others=second
    )
    paired = pairs.share_inputs(labels, rationales)
    assert paired.lengths().max(axis=0).tolist() == [2, 5]
    found = draw_all(paired, 4)
    assert [each[3] for each in found[2:]] == [[7, 7, 7]] * 2
    assert sorted(found[:2])[0] == ([100, 100], [100, 100], [], [200, 200])


def test_rates_may_differ_and_inputs_may_not() -> None:
    labels, rationales = task("label", [0, 1], 100), same_inputs([0, 1])
    names = [("label", "rationale")]
    arguments = (names, [labels, rationales], [3.0, 1.5])
    _, rates = pairs.pair_mixture(*arguments, shared_encoder=True, complete=False)
    assert rates == [3.0]
    with pytest.raises(UserError, match="label is drawn at rate 3, rationale at 1.5"):
        pairs.pair_mixture(*arguments, shared_encoder=True)
    with pytest.raises(UserError, match="have different inputs for example 0 of the training spli"):
        pairs.share_inputs(labels, task("rationale", [0, 1], 300))


def test_layout_of_shared_inputs() -> None:
    def sequence(inputs: list[int], targets: list[int], start: int = 0) -> Sequence2Sequence:
        ids = np.full(len(targets), start + 1)
        return Sequence2Sequence(np.array(inputs), np.array(targets), ids, start=start)

    members = [
        sequence([5, 1], [8, 1]),
        sequence([], [9, 9, 1], start=1),
        sequence([6, 6, 1], []),
        sequence([], [7, 1], start=1),
    ]
    shape = BatchShape(1, 6, 8, pairs=2, shared_encoder=True)
    batch = layout.fill(members, Layout(shape, shape))
    assert batch["encoder_segment_ids"].tolist() == [[1, 1, 3, 3, 3, 0]]
    assert batch["decoder_segment_ids"].tolist() == [[1, 1, 2, 2, 2, 4, 4, 0]]
    assert batch["decoder_source_segment_ids"].tolist() == [[1, 1, 1, 1, 1, 3, 3, 0]]
    assert batch["decoder_input_tokens"].tolist() == [[0, 8, 1, 9, 9, 1, 7, 0]]
    assert batch["decoder_task_ids"].tolist() == [[1, 1, 2, 2, 2, 2, 2, 0]]
    empty = layout.empty_batch(shape)
    assert {key: array.shape for key, array in empty.items()} == {
        key: array.shape for key, array in batch.items()
    }
    assert layout.shape_unpacked(14, 9, 5, 4, shared_encoder=True) == BatchShape(
        8, 9, 10, 1, shared_encoder=True
    )


def test_which_mixtures_can_share(tiny_settings) -> None:
    tiny_settings(shared_encoder=True)
    registration.check_pairs(registration.get_mixture_or_task("tiny_dss_gpt"), False)
    for name in ("tiny_finetune", "tiny_joint_gpt", "tiny_pinto_gpt", "tiny_pretrain"):
        with pytest.raises(
            UserError, match=f"MIXTURE_OR_TASK_NAME='{name}' does not pair them .* SHARED_ENCODER ="
        ):
            registration.check_pairs(registration.get_mixture_or_task(name), False)


def test_rows_of_shared_pairs_are_not_too_long() -> None:
    # 64 pairs of CQA's lengths: shorter rows cost less attention, and a few more positions.
    random = np.random.default_rng(0)
    batches = [
        np.maximum(random.normal([45, 35], [9, 7], (64, 2)).round(), 2).astype(int)
        for _ in range(16)
    ]
    longest = np.max([batch.max(axis=0) for batch in batches], axis=0)

    def cost(rows: int, inputs: int, targets: int) -> float:
        pairs = inputs**2 + targets**2 + inputs * targets
        return rows * (inputs + targets + 0.009 * pairs)

    chosen = layout.choose_layout(batches, longest, 1, cost, in_pairs=True).usual
    least_padding = layout.BatchShape(11, 270, 211)
    assert chosen.rows > 2 * least_padding.rows
    assert chosen.cost(cost) < 0.8 * least_padding.cost(cost)
