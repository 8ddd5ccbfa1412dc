"""tokenizer_json: the SentencePiece model in a tokenizer.json, or a refusal."""

from __future__ import annotations

import base64
import functools
import io
import json
import pathlib
from collections.abc import Callable
from typing import Any

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from distill_sbs.convert.huggingface import tokenizer as huggingface_tokenizer
from distill_sbs.data import sentencepiece_model, tokenizer, tokenizer_json, unknown_pieces
from distill_sbs.data import vocabulary as vocabularies
from distill_sbs.errors import UserError

TEXTS = (*tokenizer_json.PROBES, "predict: If 3 boxes hold 12 apples, how many does 1 hold?")


@functools.cache
def trained() -> bytes:
    """A unigram model of T5's kind."""
    sentences = [f"Anna has {n} apples and {n * 7} pears, héllo wörld." for n in range(40)]
    output = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=output,
        model_type="unigram",
        vocab_size=55,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        normalization_rule_name="nmt_nfkc",
        minloglevel=2,
    )
    return output.getvalue()


def model() -> sentencepiece_model_pb2.ModelProto:
    return sentencepiece_model_pb2.ModelProto.FromString(trained())


def write(folder: pathlib.Path, change: Callable[[Any], object] = lambda _: None) -> str:
    """The model as `tokenizers` has it, with T5's 100 sentinels."""
    values = json.loads(huggingface_tokenizer._make_pipeline(model(), 100).to_str())
    change(values)
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(values))
    return str(file)


def test_pieces_scores_and_table_are_those_of_the_model(tmp_path: pathlib.Path) -> None:
    content = tokenizer_json.read_model(write(tmp_path))
    found, expected = sentencepiece_model_pb2.ModelProto.FromString(content), model()
    assert [(each.piece, each.score, each.type) for each in found.pieces] == [
        (each.piece, each.score, each.type) for each in expected.pieces
    ]
    table = expected.normalizer_spec.precompiled_charsmap
    assert found.normalizer_spec.precompiled_charsmap == table and table


def test_it_is_a_vocabulary_file_like_any_other(tmp_path: pathlib.Path) -> None:
    file = write(tmp_path)
    described = sentencepiece_model.describe(file)
    assert described["kind"] == "sentencepiece"
    assert described["size"] == len(model().pieces)
    (tmp_path / "spiece.model").write_bytes(trained())
    expected = vocabularies.load(str(tmp_path / "spiece.model"))
    loaded = vocabularies.load(file)
    ours = tokenizer.from_description(described)
    for text in TEXTS:
        ids = list(expected.encode(text))
        assert list(loaded.encode(text)) == list(ours.encode(text)) == ids
        assert loaded.encode_tf(text).numpy().tolist() == ids
        assert loaded.decode(ids) == expected.decode(ids)
    counts = unknown_pieces.PieceCounts()
    unknown_pieces.PieceCounter(file).count("a ☃", counts)
    assert counts.unknown == 1


def test_a_folder_with_nothing_else_has_it(tmp_path: pathlib.Path) -> None:
    file = write(tmp_path)
    assert huggingface_tokenizer.find_vocabulary_file(tmp_path, 32128) == file
    described = sentencepiece_model.describe(file)
    files = huggingface_tokenizer.make_tokenizer_files(described, 32128, 512)
    assert set(files) == {"spiece.model", "tokenizer_config.json"}
    assert base64.b64decode(described["model_base64"]) == files["spiece.model"]


@pytest.mark.slow
@pytest.mark.realdata
def test_t5_s_own(tmp_path: pathlib.Path, source_dir: pathlib.Path) -> None:
    file = source_dir.parent / "vocab" / "spiece.model"
    if not file.exists():
        pytest.skip(f"T5's vocabulary is not at {file}")
    expected = sentencepiece_model_pb2.ModelProto.FromString(file.read_bytes())
    (tmp_path / "tokenizer.json").write_text(
        huggingface_tokenizer._make_pipeline(expected, 100).to_str()
    )
    content = tokenizer_json.read_model(str(tmp_path / "tokenizer.json"))
    found = sentencepiece_model_pb2.ModelProto.FromString(content)
    assert len(found.pieces) == 32000
    assert [each.SerializeToString() for each in found.pieces] == [
        each.SerializeToString() for each in expected.pieces
    ]
    table = expected.normalizer_spec.precompiled_charsmap
    assert found.normalizer_spec.precompiled_charsmap == table


def lower(values: Any) -> None:
    steps = [values["normalizer"], {"type": "Lowercase"}]
    values["normalizer"] = {"type": "Sequence", "normalizers": steps}


def end_nothing(values: Any) -> None:
    values["post_processor"] = None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values["model"].update(type="BPE"), "kind 'BPE', expected 'Unigram'"),
        (lambda values: values.update(model=[]), "kind None, expected 'Unigram'"),
        (lambda values: values["model"].update(unk_id=3), "unk_id=3, expected 2"),
        (lambda values: values["model"]["vocab"].insert(7, ["x"]), "entry 7 of the vocabulary"),
        (lambda values: values["model"]["vocab"][9].__setitem__(1, "0"), "entry 9 of the voc"),
        (lambda values: values["model"].update(vocab=[["a", 0.0]] * 3), "has 3 pieces"),
        (lambda values: values["normalizer"].update(precompiled_charsmap="?"), "in base64"),
        (lambda values: values.update(version="9.9"), "is no tokenizer.json"),
        (lower, "expected the same: it is not T5's"),
        (lambda values: values["model"]["vocab"][50].__setitem__(1, -99.5), None),
        (end_nothing, "does not end a text with token 1"),
    ],
)
def test_what_is_not_exact_is_refused(
    tmp_path: pathlib.Path, change: Callable[[Any], object], message: str | None
) -> None:
    file = write(tmp_path, change)
    if message is None:  # another score: another model, and an exact one
        assert tokenizer_json.read_model(file)
        return
    with pytest.raises(UserError, match=message) as error:
        sentencepiece_model.check_path(file)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


def test_broken_json(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_text('{"model": ')
    with pytest.raises(UserError, match=r"tokenizer.json: .*copy the file again"):
        tokenizer_json.read_model(str(file))
