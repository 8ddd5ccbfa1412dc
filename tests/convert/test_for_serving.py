"""Exports for `serve`: they answer as JAX does (more in `tests/serving/test_serve.py`)."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import served_students
from source_examples import BYTE_SIZED, V1_0, Memory

from distill_sbs.convert import __main__ as command
from distill_sbs.convert.for_serving import check_libraries
from distill_sbs.convert.huggingface.files import write_huggingface
from distill_sbs.data import tokenizer
from distill_sbs.errors import UserError
from distill_sbs.serving.served_folder import read_student

torch = pytest.importorskip("torch", reason="torch is not installed: the extra serve has it")
pytest.importorskip("ctranslate2", reason="the extra serve is not installed")

from distill_sbs.convert.ctranslate2_form import name_apart  # noqa: E402
from distill_sbs.serving.answering import Answerer  # noqa: E402

# What no two of them share: heads, scaling, activations, layers, the vocabulary.
STUDENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "v1.1": ("bytes", {"num_decoder_layers": 3}),
    "1.0": ("embedded", {**V1_0, "layer_norm_epsilon": 0.5}),
}


@pytest.mark.campaign
@pytest.mark.slow
@pytest.mark.parametrize("name", STUDENTS)
def test_ctranslate2_answers_as_jax_does(name: str, tmp_path: pathlib.Path) -> None:
    vocabulary, changes = STUDENTS[name]
    source = served_students.make_source(vocabulary, **changes)
    folder = served_students.export(source, tmp_path / "served", "ctranslate2")
    served_students.assert_same_answers(source, folder, changes)


@pytest.mark.campaign
@pytest.mark.slow
@pytest.mark.parametrize("name", STUDENTS)
def test_onnx_answers_as_jax_does(name: str, tmp_path: pathlib.Path) -> None:
    pytest.importorskip("onnxscript", reason="the extra serve is not installed")
    vocabulary, changes = STUDENTS[name]
    source = served_students.make_source(vocabulary, **changes)
    folder = served_students.export(source, tmp_path / "served", "onnx")
    answerer = served_students.assert_same_answers(source, folder, changes)
    alone = [answerer.answer([text])[0] for text in served_students.TEXTS]
    assert alone == answerer.answer(served_students.TEXTS)


@pytest.mark.campaign
@pytest.mark.slow
@pytest.mark.parametrize("form", ["ctranslate2", "onnx"])
def test_what_it_must_not_say_is_never_said(form: str, tmp_path: pathlib.Path) -> None:
    """Every second id, and so the next best of the others is said, as transformers does."""
    pytest.importorskip("onnxscript", reason="the extra serve is not installed")
    import transformers

    source = served_students.make_source()
    vocabulary = tokenizer.from_description(source.vocabulary)
    free = Answerer(served_students.export(source, tmp_path / "free", form), threads=1)
    source.absent_ids = tuple(range(2, source.config.vocab_size, 2))
    folder = served_students.export(source, tmp_path / "served", form)
    assert read_student(folder).absent_ids == source.absent_ids
    answerer = Answerer(folder, threads=1)
    said = answerer.answer(served_students.TEXTS)
    assert [each.text for each in said] != [
        each.text for each in free.answer(served_students.TEXTS)
    ]
    write_huggingface(source, str(tmp_path / "hf"))
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "hf")
    for text, answer in zip(served_students.TEXTS, said, strict=True):
        ids = torch.tensor([answerer.tokens(text, "label")[0]])
        (output,) = model.generate(ids, max_new_tokens=9).tolist()
        assert not set(output) & set(source.absent_ids)
        ended = output[1 : output.index(1)] if 1 in output else output[1:]
        assert answer.text == vocabulary.decode(ended)


@pytest.mark.campaign
@pytest.mark.slow
@pytest.mark.parametrize("form", ["ctranslate2", "onnx"])
def test_int8_is_less_than_half(form: str, tmp_path: pathlib.Path) -> None:
    pytest.importorskip("onnxscript", reason="the extra serve is not installed")
    source = served_students.make_source(vocab_size=32_768)
    sizes = {}
    for quantization in ("float32", "int8"):
        folder = served_students.export(source, tmp_path / quantization, form, quantization)
        paths = [*pathlib.Path(folder).glob("*.bin"), *pathlib.Path(folder).glob("*.onnx")]
        sizes[quantization] = sum(path.stat().st_size for path in paths)
        assert read_student(folder).quantization == quantization
        answers = Answerer(folder, threads=1).answer(served_students.TEXTS)
        assert all(isinstance(answer.text, str) for answer in answers)
    assert sizes["int8"] < 0.5 * sizes["float32"]


def test_rows_beyond_the_vocabulary_have_names_of_their_own() -> None:
    tokens = ["a", "<extra_id_0>", "b", "<extra_id_0>", "<extra_id_1>", "a"]
    named = name_apart(tokens)
    assert named == ["a", "<extra_id_0>", "b", "<unused_3>", "<extra_id_1>", "<unused_5>"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--to=hf", "--quantization=int8"], "only --to=ctranslate2 and onnx have it"),
        (["--to=ctranslate2", "--quantization=int4"], "--quantization"),
        (["--to=onnx", "--scan_layers"], "has no effect with --to=onnx"),
        (["--to=onnx", "--notokenizer"], "carries its vocabulary"),
        (["--to=ctranslate2", "--dtype=bfloat16"], "only --to=hf writes other types"),
        (["--to=ctranslate2", "--output=gs://bucket/served"], "writes to a local disk"),
        (["--to=ctranslate2", "--input=nowhere/at/all/x"], "no such"),
    ],
)
def test_refused(
    flags: list[str], message: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [f"--input={tmp_path / 'in'}", f"--output={tmp_path / 'out'}"]
    assert command.main(["convert", *given, *flags]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if "onnx" in name else name)
    check_libraries("ctranslate2", "out")
    with pytest.raises(UserError) as caught:
        check_libraries("onnx", "out")
    assert str(caught.value) == (
        "--to=onnx needs onnx, onnxruntime, onnxscript, torch, transformers, of which not "
        "installed: onnx, onnxruntime, onnxscript; install them: pip install 'distill_sbs[serve]'"
    )


@pytest.mark.slow
def test_a_student_without_a_vocabulary_is_refused(tmp_path: pathlib.Path) -> None:
    source = Memory(**BYTE_SIZED)
    with pytest.raises(UserError, match="carries no vocabulary; give --vocabulary_file"):
        served_students.export(source, tmp_path / "served", "ctranslate2")
