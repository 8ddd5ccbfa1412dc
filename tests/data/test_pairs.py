"""pairs: a label and a rationale of one example, side by side in every batch."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import seqio

from distill_sbs.data import registration
from distill_sbs.data.batches import input_pipeline, layout, pairs
from distill_sbs.data.batches.layout import BatchShape, Layout, Sequence2Sequence
from distill_sbs.data.batches.sampler import MixtureSampler, TokenisedTask
from distill_sbs.errors import UserError

LENGTHS = {"inputs": 64, "targets": 32, "task_ids": 32}
BYTES = seqio.ByteVocabulary()


def load(batch_size: int = 8, **options: object) -> input_pipeline.TrainingData:
    mixture = registration.get_mixture_or_task("tiny_dss_gpt")
    return input_pipeline.load_training_data(
        mixture, LENGTHS, batch_size, **{"seed": 5, "in_pairs": True, **options}
    )


def read_pairs(batch: layout.Batch) -> list[str]:
    """'label target | rationale target' of every pair, whose inputs are checked to be alike."""
    found = []
    for row, slots in enumerate(batch["pairs"]):
        used = [pair for pair in slots.tolist() if pair != [0, 0]]
        assert used == [[2 * i + 1, 2 * i + 2] for i in range(len(used))]
        assert batch["decoder_segment_ids"][row].max() == 2 * len(used)
        for pair in used:
            inputs, targets, tasks = [], [], []
            for segment in pair:
                here = batch["encoder_segment_ids"][row] == segment
                inputs.append(BYTES.decode(batch["encoder_input_tokens"][row][here].tolist()))
                here = batch["decoder_segment_ids"][row] == segment
                targets.append(BYTES.decode(batch["decoder_target_tokens"][row][here].tolist()))
                tasks.append(set(batch["decoder_task_ids"][row][here].tolist()))
            assert tasks == [{1}, {2}]
            assert inputs[0].removeprefix("predict: ") == inputs[1].removeprefix("explain: ")
            found.append(" | ".join(targets))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.usefixtures("tiny_settings")
def test_every_pair_is_one_label_and_one_rationale_of_an_example(pack: bool) -> None:
    data = load(pack=pack, row_multiple=2)
    batches = data.batches(data.sampler.start())
    seen = []
    for step in range(1, 19):
        batch, position = next(batches)
        assert len(batch["pairs"]) % 2 == 0
        found = read_pairs(batch)
        assert len(found) == 4
        assert position == {"tiny_label": 4 * step}
        seen += found
    # Row 9, 19, … have no rationale; the other 36 come once in each of two epochs.
    parsed = sorted(f"yes {i} | rationale {i}" for i in range(40) if i % 10 != 9)
    assert sorted(seen[:36]) == sorted(seen[36:]) == parsed
    assert seen[:36] != seen[36:]
    assert data.describe().startswith(
        "36 of tiny_label (4 that cannot be paired left out), 36 of tiny_rationale_gpt, in pairs "
        "of one example; a step lays 8 into "
    )


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_settings")
def test_packing_of_pairs_is_layout_only_and_any_position_can_be_started_from() -> None:
    packed, plain = load(pack=True), load(pack=False)
    stream = packed.batches(packed.sampler.start())
    _, middle = next(stream)
    second, _ = next(stream)
    (again, _), (unpacked, _) = next(packed.batches(middle)), next(plain.batches(middle))
    assert sorted(read_pairs(second)) == sorted(read_pairs(unpacked))
    for name, array in second.items():
        np.testing.assert_array_equal(again[name], array)
    assert unpacked["encoder_input_tokens"].shape == (4, 128)
    assert unpacked["decoder_target_tokens"].shape == (4, 64)
    assert unpacked["pairs"].tolist() == [[[1, 2]]] * 4


@pytest.mark.slow
def test_a_fraction_keeps_pairs_whole(tiny_settings) -> None:
    tiny_settings(data_fraction=0.25)
    data = load(batch_size=2)
    (labels, rationales) = data.tasks
    assert labels.indices.tolist() == rationales.indices.tolist()
    assert 0 < len(labels.sequences) == len(rationales.sequences) <= 10
    batches = data.batches(data.sampler.start())
    seen = {pair for _ in range(len(labels.sequences)) for pair in read_pairs(next(batches)[0])}
    assert seen == {f"yes {i} | rationale {i}" for i in labels.indices}


# ---------------------------------- by hand ----------------------------------


def task(name: str, indices: list[int], first: int, length: int = 2) -> TokenisedTask:
    sequences = [
        Sequence2Sequence(*(np.full(length, first + i, np.int32) for _ in range(3)))
        for i in indices
    ]
    made = TokenisedTask(name, sequences, [], [], 0.0, 0.0)
    return dataclasses.replace(made, indices=np.array(indices, np.int64))


def drawn(sampler: MixtureSampler, count: int) -> list[tuple[int, int]]:
    sequences, _ = sampler.draw(sampler.start(), count)
    values = [int(each.inputs[0]) for each in sequences]
    return list(zip(values[::2], values[1::2], strict=True))


def test_several_rationales_take_turns_beside_their_label() -> None:
    labels, first, second = (
        task("label", [0, 1, 2, 5], 100),
        task("rationale", [1, 4, 5], 200),
        task("rationale", [1, 4, 5], 300, length=9),
    )
    rationales = dataclasses.replace(
        first, redraw=lambda epoch: (first, second)[epoch % 2].sequences, others=second.sequences
    )
    paired = pairs.pair_tasks(labels, rationales)
    assert paired.lengths().max(axis=0).tolist() == [11, 11]
    sampler = MixtureSampler([paired], [1.0], seed=0)
    found = drawn(sampler, 6)
    assert sorted(found[:2]) == sorted(found[4:]) == [(101, 201), (105, 205)]
    assert sorted(found[2:4]) == [(101, 301), (105, 305)]


def test_pairs_of_two_datasets_take_turns_at_their_rates() -> None:
    names = [("a_label", "a_rationale"), ("b_label", "b_rationale")]
    tasks = [
        task("a_label", [0, 1], 100),
        task("b_label", [0, 1], 300),
        task("a_rationale", [0, 1], 200),
        task("b_rationale", [0, 1], 400),
    ]
    paired, rates = pairs.pair_mixture(names, tasks, [3.0, 1.0, 3.0, 1.0])
    found = drawn(MixtureSampler(paired, rates, seed=0), 8)
    assert sum(label < 300 for label, _ in found) == 6
    assert all(rationale - label == 100 for label, rationale in found)
    with pytest.raises(UserError, match="a_label is drawn at rate 3, a_rationale at 2; with"):
        pairs.pair_mixture(names, tasks, [3.0, 1.0, 2.0, 1.0])


def test_nothing_to_pair() -> None:
    with pytest.raises(UserError, match="no training example has both a row of label and one of r"):
        pairs.pair_tasks(task("label", [0, 1], 2), task("rationale", [2, 3], 2))


@pytest.mark.usefixtures("tiny_settings")
def test_which_mixtures_have_pairs() -> None:
    def find(name: str) -> list[tuple[str, str]]:
        return registration.find_pairs(registration.get_mixture_or_task(name))

    assert find("tiny_dss_gpt") == [("tiny_label", "tiny_rationale_gpt")]
    assert find("tiny_dss_distill_gpt") == [("tiny_label_gpt", "tiny_rationale_gpt")]
    assert find("svamp_asdiv_dss_palm") == [
        ("svamp_label", "svamp_rationale_palm"),
        ("asdiv_label_palm", "asdiv_rationale_palm"),
    ]
    for name in (
        *("tiny_finetune", "tiny_distill_gpt", "tiny_joint_gpt", "tiny_pinto_gpt", "tiny_label"),
        *("tiny_rationale_gpt", "tiny_pretrain", "text_pretrain", "svamp_asdiv_finetune"),
    ):
        with pytest.raises(UserError, match=f"MIXTURE_OR_TASK_NAME='{name}' does not pair them"):
            find(name)


# ---------------------------------- layout -----------------------------------


def test_a_row_holds_no_more_pairs_than_its_shape_says() -> None:
    lengths = np.array([[1, 1]] * 6 + [[6, 6]])
    assert layout.assign_rows(lengths, BatchShape(2, 12, 12)) == [[6], [0, 1, 2, 3, 4, 5]]
    rows = layout.assign_rows(lengths, BatchShape(2, 12, 12, pairs=4))
    assert rows is not None
    assert sorted(map(len, rows)) == [3, 4]
    assert layout.assign_rows(lengths, BatchShape(2, 12, 12, pairs=3)) is None


def test_two_pairs_in_one_row() -> None:
    members = task("", [0, 1, 2, 3], 2).sequences
    shape = BatchShape(1, 9, 9, pairs=3)
    batch = layout.fill(members, Layout(shape, shape))
    assert batch["decoder_segment_ids"].tolist() == [[1, 1, 2, 2, 3, 3, 4, 4, 0]]
    assert batch["decoder_target_tokens"].tolist() == [[2, 2, 3, 3, 4, 4, 5, 5, 0]]
    assert batch["pairs"].tolist() == [[[1, 2], [3, 4], [0, 0]]]
    empty = layout.empty_batch(shape)
    assert {key: array.shape for key, array in empty.items()} == {
        key: array.shape for key, array in batch.items()
    }
    with pytest.raises(UserError, match="a pair of 4 input and 4 target tokens does not fit a row"):
        layout.fill(members, Layout(*[BatchShape(1, 3, 3, pairs=1)] * 2))


@pytest.mark.parametrize("row_multiple", [1, 8, 64])
def test_chosen_layout_holds_pairs_with_little_padding(row_multiple: int) -> None:
    random = np.random.default_rng(0)
    batches = []
    for _ in range(256):
        inputs = 2 * random.normal(48, 9, 64)
        batch = np.stack([inputs, 4 + random.normal(31, 7, 64)], axis=1)
        batches.append(np.maximum(batch.round(), 4).astype(int))
    longest = np.max([batch.max(axis=0) for batch in batches], axis=0)
    chosen = layout.choose_layout(batches, longest, row_multiple, in_pairs=True)
    assert chosen.usual.rows % row_multiple == 0
    assert chosen.usual.pairs == -(-96 // chosen.usual.rows)
    used = np.array([chosen.shape_for(batch)[0].positions for batch in batches])
    assert (used == chosen.usual.positions).mean() > 0.6
    if row_multiple < 64:  # else each row has one pair
        assert 1 - np.sum(batches) / used.sum() <= 0.15
