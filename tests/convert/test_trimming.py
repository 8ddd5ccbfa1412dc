"""A trimmed student: the same numbers over what is kept, and its whole form back, to the bit."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from model_examples import ONE_LAYER
from source_examples import V1_0, Memory, assert_same_values

from distill_sbs import evaluate, infer
from distill_sbs.config import TrainConfig
from distill_sbs.convert import __main__ as command
from distill_sbs.convert.native import NativeSource, write_native
from distill_sbs.convert.open import open_source
from distill_sbs.convert.trimming import RestoredSource, check_can_trim, trim_source
from distill_sbs.convert.write import convert_checkpoint
from distill_sbs.data import sentencepiece_model
from distill_sbs.errors import UserError
from distill_sbs.model import losses
from distill_sbs.model.network import Transformer, output_weights, vocabulary_logits
from distill_sbs.train import check_run, train

WHOLE = sentencepiece_model.describe("embedded")
KEPT = np.array([0, 1, 2, 5, 9, 17, 100, 511], np.int32)


def embedded_student(**changes: Any) -> Memory:
    """A small student with a row for every one of the 512 embedded pieces."""
    memory = Memory(vocab_size=512, **changes)
    memory.vocabulary = WHOLE
    return memory


@pytest.mark.parametrize("kind", [{}, V1_0], ids=["own head", "tied head"])
def test_rows_are_copied_and_come_back(kind: dict[str, Any]) -> None:
    whole = embedded_student(**kind)
    trimmed = trim_source(whole, WHOLE, KEPT)
    trimmed.check(trimmed.config)
    assert trimmed.config.vocab_size == 8
    embedding = whole.values["token_embedder/embedding"]
    np.testing.assert_array_equal(trimmed.read("token_embedder/embedding"), embedding[KEPT])
    if not kind:
        head = whole.values["decoder/logits_dense/kernel"]
        np.testing.assert_array_equal(trimmed.read("decoder/logits_dense/kernel"), head[:, KEPT])
    restored = RestoredSource(trimmed, whole)
    assert restored.vocabulary == WHOLE
    assert_same_values(restored, whole)
    assert restored.absent_ids == ()  # nothing was trained


def test_what_was_trained_comes_back_and_the_rest_is_the_originals() -> None:
    whole = embedded_student()
    trained = trim_source(embedded_student(seed=1), WHOLE, KEPT)
    restored = RestoredSource(trained, whole)
    embedding = restored.read("token_embedder/embedding")
    for row in range(512):
        source = trained.read("token_embedder/embedding") if row in KEPT else None
        expected = whole.values["token_embedder/embedding"][row]
        if source is not None:
            expected = source[KEPT.tolist().index(row)]
        np.testing.assert_array_equal(embedding[row], expected)
    head = restored.read("decoder/logits_dense/kernel", (slice(0, 4), slice(90, 110)))
    assert head.shape == (4, 20)
    np.testing.assert_array_equal(head[:, 10], trained.read("decoder/logits_dense/kernel")[:4, 6])


@pytest.mark.slow
def test_logits_are_those_of_the_kept_pieces_and_the_loss_that_of_them_alone() -> None:
    whole = embedded_student()
    trimmed = trim_source(whole, WHOLE, KEPT)
    random = np.random.default_rng(0)
    batch = {
        name: random.integers(1, len(KEPT), (3, 5)).astype(np.int32)
        for name in ("encoder_input_tokens", "decoder_input_tokens", "decoder_target_tokens")
    }
    targets = batch["decoder_target_tokens"]
    found = {}
    for name, source in (("whole", whole), ("trimmed", trimmed)):
        values = {path: jnp.asarray(source.read(path)) for path in source.shapes()}
        params = traverse_util.unflatten_dict(values, sep="/")
        ids = {key: KEPT[each] if name == "whole" else each for key, each in batch.items()}
        hidden = losses.decoder_states(Transformer(source.config), params, ids)
        weights = output_weights(params, source.config)
        found[name] = (
            vocabulary_logits(hidden, weights, source.config),
            losses.token_cross_entropy(
                hidden, weights, ids["decoder_target_tokens"], source.config
            ),
        )
    logits, loss = found["trimmed"]
    np.testing.assert_allclose(logits, found["whole"][0][..., KEPT], rtol=0, atol=1e-6)
    among = jax.nn.log_softmax(found["whole"][0][..., KEPT])
    restricted = -np.take_along_axis(np.asarray(among), targets[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(loss, restricted, rtol=0, atol=1e-6)
    assert (found["whole"][1] > loss + 1.0).all()  # of 512 pieces, it is another number


@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [
        (None, "carries no vocabulary; name it with --vocabulary_file"),
        (sentencepiece_model.describe("bytes"), "reads bytes, which are 259 ids in all"),
        (sentencepiece_model.trim(WHOLE, KEPT), "is trimmed already, to 8 ids"),
    ],
)
def test_what_cannot_be_trimmed(
    vocabulary: sentencepiece_model.VocabularyDescription | None, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        check_can_trim(embedded_student(), vocabulary)


def test_what_cannot_be_restored() -> None:
    whole = embedded_student()
    trimmed = trim_source(whole, WHOLE, KEPT)
    with pytest.raises(UserError, match="is whole, so there is nothing to restore"):
        RestoredSource(whole, whole)
    with pytest.raises(UserError, match=r"embeds 300 ids, memory keeps id 511"):
        RestoredSource(trimmed, Memory(vocab_size=300))
    with pytest.raises(UserError, match="tensor .* has shape .*, expected"):
        RestoredSource(trimmed, Memory(vocab_size=512, mlp_dim=32))
    other = embedded_student()
    other.vocabulary = {**WHOLE, "sha256": "0" * 64}
    with pytest.raises(UserError, match=r"has another vocabulary \(512 pieces, sha256 00000000…"):
        RestoredSource(trimmed, other)


@pytest.mark.slow
def test_forms(tmp_path: pathlib.Path) -> None:
    """Native holds a trimmed student; the others say what they need, and nothing is written."""
    whole = embedded_student()
    write_native(whole, str(tmp_path / "whole"))
    assert not (tmp_path / "whole" / "vocabulary.json").exists()
    trimmed = trim_source(whole, WHOLE, KEPT)
    write_native(trimmed, str(tmp_path / "trimmed"))
    source = NativeSource(str(tmp_path / "trimmed"))
    assert_same_values(source, trimmed)
    assert source.vocabulary == sentencepiece_model.describe(
        str(tmp_path / "trimmed" / "vocabulary.json")
    )
    with pytest.raises(UserError, match=r"expected 512; set STUDENT_OVERRIDES = {'vocab_size': 8}"):
        source.check(whole.config)
    for form in ("hf", "t5x"):
        output = tmp_path / form
        with pytest.raises(UserError, match="has no form for; name the checkpoint"):
            convert_checkpoint(str(tmp_path / "trimmed"), str(output), form)
        assert not output.exists()
        convert_checkpoint(
            str(tmp_path / "trimmed"),
            str(output),
            form,
            restore_vocabulary=str(tmp_path / "whole"),
        )
        assert_same_values(open_source(str(output)), whole)
        assert open_source(str(output)).absent_ids == ()
    with pytest.raises(UserError, match="trimmed to 8 ids, .*whole embeds 512"):
        convert_checkpoint(
            str(tmp_path / "whole"),
            str(tmp_path / "wrong"),
            "native",
            vocabulary_file=str(tmp_path / "trimmed" / "vocabulary.json"),
        )


@pytest.mark.parametrize(
    ("checkpoint", "run"), [("first", "last"), ("first", "bytes"), ("bytes", "last")]
)
def test_a_trimmed_student_does_not_start_with_another_vocabulary(
    checkpoint: str, run: str, tiny_data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """Though all of them have as many rows, so that every shape fits."""
    rows = 300
    kept = {"first": np.arange(rows), "last": np.r_[:3, 512 - rows + 3 : 512]}
    vocabulary_files = {"bytes": "bytes"}
    student = Memory(vocab_size=rows, **ONE_LAYER)
    for name, ids in kept.items():
        trimmed = sentencepiece_model.trim(WHOLE, ids.astype(np.int32))
        write_native(student, str(tmp_path / name), vocabulary=trimmed)
        vocabulary_files[name] = str(tmp_path / name / sentencepiece_model.TRIMMED_FILE)
    of_bytes = sentencepiece_model.describe("bytes")
    write_native(student, str(tmp_path / "bytes"), vocabulary=of_bytes)

    def check(vocabulary_file: str) -> None:
        config = TrainConfig.from_options(
            model_dir=str(tmp_path / "run"),
            mixture_or_task_name="tiny_dss_gpt",
            task_feature_lengths={"inputs": 32, "targets": 16, "task_ids": 16},
            initial_checkpoint_path=str(tmp_path / checkpoint),
            vocabulary_file=vocabulary_file,
            data_dir=str(tiny_data),
            train_steps=2,
            batch_size=8,
            student="t5_1_1_tiny",
            student_overrides={"vocab_size": rows, **ONE_LAYER},
        )
        check_run(config)

    with pytest.raises(UserError, match="one of them is trimmed.*set VOCABULARY_FILE"):
        check(vocabulary_files[run])
    check(vocabulary_files[checkpoint])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--to=hf", "--trim_vocabulary=tiny"], "only --to=native has a form for it"),
        (["--to=native", "--trim_vocabulary="], "--trim_vocabulary names no dataset"),
        (
            ["--to=native", "--trim_vocabulary=tiny", "--restore_vocabulary=x"],
            "undo one another",
        ),
        (["--to=native", "--data_dir=x"], "have no effect without --trim_vocabulary"),
    ],
)
def test_flags_that_have_no_effect(
    flags: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    assert command.main(["convert", "--input=none", "--output=none2", *flags]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.campaign
@pytest.mark.slow
def test_a_student_is_trimmed_trained_asked_and_restored(
    tiny_data: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    whole, light, run, back = (str(tmp_path / name) for name in ("whole", "light", "run", "back"))
    original = Memory(vocab_size=512, **ONE_LAYER)
    original.vocabulary = WHOLE
    write_native(original, whole)
    data = f"--data_dir={tiny_data}"
    arguments = [f"--input={whole}", f"--output={light}", "--to=native"]
    assert command.main(["convert", *arguments, "--trim_vocabulary=tiny", data]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "pieces of 512 occur in tiny_label, tiny_label_gpt," in shown
    assert "the student keeps 128 of 512 rows" in shown
    assert "STUDENT_OVERRIDES = {'vocab_size': 128}" in shown
    results = train(
        TrainConfig.from_options(
            model_dir=run,
            mixture_or_task_name="tiny_dss_gpt",
            task_feature_lengths={"inputs": 32, "targets": 16, "task_ids": 16},
            train_steps=2,
            batch_size=8,
            initial_checkpoint_path=light,
            vocabulary_file=f"{light}/vocabulary.json",
            data_dir=str(tiny_data),
            student="t5_1_1_tiny",
            student_overrides={"vocab_size": 128, **ONE_LAYER},
            learning_rate=1e-2,
            eval_period=2,
            log_period=1,
            max_decode_tokens=8,
        )
    )
    assert (
        evaluate.evaluate(run, data_dir=str(tiny_data))["accuracy"] == (results["test"]["accuracy"])
    )
    lines = tmp_path / "in.jsonl"
    lines.write_text('{"input": "question 3"}\n\n{"input": "question 3 zebra"}\n')
    asked = ["infer", f"--checkpoint={run}", f"--input={lines}", f"--output={tmp_path / 'out'}"]
    capsys.readouterr()
    assert infer.main(asked) == 2
    assert "1 of 2 texts hold" in (told := capsys.readouterr().err) and "in line 3, " in told
    assert not (tmp_path / "out").exists()
    lines.write_text('{"input": "question 3"}\n')
    assert infer.main(asked) == 0

    again = [f"--input={run}", f"--output={back}", "--to=hf", f"--restore_vocabulary={whole}"]
    assert command.main(["convert", *again]) == 0
    trained, restored = NativeSource(run), open_source(back)
    kept = sentencepiece_model.read_kept(trained.vocabulary)
    assert kept is not None and restored.vocabulary == WHOLE
    absent = np.setdiff1d(np.arange(512), kept)
    for path, axis in (("token_embedder/embedding", 0), ("decoder/logits_dense/kernel", 1)):
        value = restored.read(path)
        np.testing.assert_array_equal(np.take(value, kept, axis), trained.read(path))
        first = original.read(path)
        np.testing.assert_array_equal(np.take(value, absent, axis), np.take(first, absent, axis))
    # transformers does not say what the student never learned not to say.
    generation = json.loads((tmp_path / "back" / "generation_config.json").read_text())
    assert generation["suppress_tokens"] == absent.tolist()
    assert restored.absent_ids == tuple(absent.tolist())
    capsys.readouterr()
    for form in ("t5x", "native"):
        arguments = [f"--input={back}", f"--output={tmp_path / form}", f"--to={form}"]
        assert command.main(["convert", *arguments]) == 0
        assert f"must not say {len(absent)} ids (suppress_tokens)" in capsys.readouterr().err
