"""unknown_pieces: what a vocabulary cannot write, counted and told."""

from __future__ import annotations

import pathlib

from distill_sbs.data import metrics
from distill_sbs.data.batches import preview
from distill_sbs.data.dataset import DatasetSpec, Example, RawSplit, TeacherOutput
from distill_sbs.data.records import build, tfrecords
from distill_sbs.data.unknown_pieces import PieceCounter, PieceCounts


def test_counts_of_the_embedded_vocabulary() -> None:
    counts = PieceCounts()
    counter = PieceCounter("embedded")
    for text in ("Anna</s>Leo", "é and é", "a\nb"):
        counter.count(text, counts)
    assert (counts.texts, counts.unknown, counts.texts_with_unknown) == (3, 2, 1)
    assert counts.characters == {"é": 2}
    assert counts.texts_with_line_breaks == 1
    assert counts.describe().endswith("in 1 of 3 texts: 'é' 2")


def test_nothing_is_unknown_to_bytes() -> None:
    counts = PieceCounts()
    PieceCounter("bytes").count("é\n", counts)
    assert (counts.pieces, counts.unknown, counts.texts_with_line_breaks) == (3, 0, 0)


def test_prepare_warns(tmp_path: pathlib.Path) -> None:
    def read(source_dir, split):
        rows = [Example("1", "é", "yes", {"t": TeacherOutput("yes", "ü", ("a\nb",))})]
        return RawSplit(1, lambda: iter(rows))

    spec = DatasetSpec("mine", read, metrics.answers_match, ("t",), ("train",), False)
    told: list[str] = []
    build.prepare_dataset(spec, None, tmp_path, tell=told.append, vocabulary_file="embedded")
    of_inputs, of_rationales, of_breaks = told
    assert of_inputs.startswith("warning: mine train: inputs: unknown to embedded are 1 of 2 piec")
    assert "rationales of t: unknown to embedded are 1 of" in of_rationales
    assert of_breaks.endswith("1 of 2 hold line breaks, which are spaces to embedded")
    told.clear()
    info = tfrecords.read_info(tmp_path, "mine")
    build.tell_of_joined_pieces(info, tmp_path, "t", "embedded", tell=told.append)
    assert told == [of_rationales, of_breaks]
    told.clear()
    build.prepare_dataset(spec, None, tmp_path, tell=told.append)
    assert told == []


def test_a_preview_has_the_tokens_and_lengths_of_training() -> None:
    from distill_sbs.data import sentencepiece_model, tokenizer

    encoder = tokenizer.from_description(sentencepiece_model.describe("bytes"))
    examples = [
        Example("a", "xy", "z", {"t": TeacherOutput("z", "why")}),
        Example("b", "x</s>y", None, {"t": TeacherOutput(None, None)}),
        Example("c", "x", "zz"),
    ]
    limits = {"inputs": 12, "targets": 3}
    found = preview.preview(examples, encoder, PieceCounter("bytes"), limits, 1)
    assert (found.examples, found.without_label, found.labels) == (3, 1, {"z": 1, "zz": 1})
    label, rationale = found.tasks.values()
    assert (label.name, rationale.name) == ("label", "rationale of t")
    assert list(label.input_lengths) == [12, 11]  # "predict: xy" and an end token
    assert list(label.target_lengths) == [2, 3]
    assert rationale.cut_shares(limits) == (0.0, 1.0)
    (shown,) = rationale.shown
    assert shown.target_ids == (ord("w") + 3, ord("h") + 3, 1)
    packing = preview.lay_out(found, limits, 4)
    assert packing.unpacked_shape.rows == 4
    assert 0 <= packing.padding <= packing.unpacked_padding < 1
