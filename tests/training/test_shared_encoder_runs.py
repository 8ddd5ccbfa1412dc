"""A run with SHARED_ENCODER from training to every form in which its student answers."""

from __future__ import annotations

import json
import os
import pathlib
import signal
from typing import Any

import numpy as np
import pytest
from quickstart_runs import assert_same_run
from source_examples import BYTES, Memory, description_of
from test_train import train_tiny

from distill_sbs import contrast, evaluate, infer
from distill_sbs.checkpoint import steps
from distill_sbs.convert.native import write_native
from distill_sbs.convert.write import convert_checkpoint
from distill_sbs.errors import UserError
from distill_sbs.inference.student import Student
from distill_sbs.training import run_log

STARTS = {"label": 0, "rationale": 1}


def train_shared(data_dir: pathlib.Path, model_dir: pathlib.Path) -> dict[str, Any]:
    return train_tiny(data_dir, model_dir, shared_encoder=True, dropout_rate=0.1, eval_period=4)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The checkpoint of such a student, with random parameters: its answers are not all alike."""
    folder = tmp_path_factory.mktemp("shared") / "student"
    source = Memory(vocab_size=640, num_encoder_layers=1, num_decoder_layers=1)
    source.description = description_of(source.config).share_encoder(STARTS)
    write_native(source, str(folder), vocabulary=BYTES)
    return folder


@pytest.mark.campaign  # a second run to the end, and a third that is stopped
@pytest.mark.slow
def test_it_goes_on_to_the_bit_and_only_with_the_same_option(
    tiny_data: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole"
    train_shared(tiny_data, whole)
    assert Student.load(str(whole)).description.decoder_starts == STARTS
    write = run_log.RunLog.write

    def write_and_signal(self: run_log.RunLog, step: int, values: dict[str, float]) -> None:
        write(self, step, values)
        if step == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(run_log.RunLog, "write", write_and_signal)
        with pytest.raises(SystemExit):
            train_shared(tiny_data, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["2"]
    with pytest.raises(UserError, match="SHARED_ENCODER: True there, False now"):
        train_tiny(tiny_data, tmp_path / "run", dropout_rate=0.1, eval_period=4)
    train_shared(tiny_data, tmp_path / "run")
    assert_same_run(whole, tmp_path / "run")
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        assert line["loss"] == pytest.approx(line["label_loss"] + line["rationale_loss"], rel=1e-5)


@pytest.mark.slow
def test_every_form_of_the_student_answers_from_the_start_of_the_task(
    shared: pathlib.Path, tiny_data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    student = Student.load(str(shared))
    description = student.description
    assert description.decoder_starts == STARTS
    assert description.prefixes == {"label": "", "rationale": ""}
    assert student.tokens("ab", "rationale").tolist() == [100, 101, 1]
    texts = [f"question {number}" for number in range(3)]
    inputs = [student.tokens(text, "label") for text in texts]
    answers = {}
    for task, start in STARTS.items():
        decoder = student.decoder(task=task)
        found = student.decode(texts, task, decoder)
        wanted = decoder(student.params, inputs, start_id=start)
        assert [each.tolist() for each in found] == [each.tolist() for each in wanted]
        answers[task] = student.answer(texts, task, decoder)

    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"input": t}) + "\n" for t in texts))
    output = tmp_path / "out.jsonl"
    rows = infer.read_inputs(str(tmp_path / "in.jsonl"))
    infer.answer(rows, str(output), str(shared), task="rationale")
    said = [json.loads(line)["prediction"] for line in output.read_text().splitlines()]
    assert said == answers["rationale"]

    for task in ("label", "rationale"):
        name = "tiny_label" if task == "label" else "tiny_rationale_gpt"
        output = tmp_path / f"{task}.jsonl"
        evaluate.evaluate(
            str(shared), name, "validation", data_dir=str(tiny_data), output=str(output)
        )
        rows = [json.loads(line) for line in output.read_text().splitlines()]
        of_first = {row["input"]: row["prediction"] for row in rows}
        # `evaluate` measures rationales as `train` does, within MAX_DECODE_TOKENS.
        assert [of_first["question 0"]] == student.answer(["question 0"], task, student.decoder())

    convert_checkpoint(str(shared), str(tmp_path / "hf"), "hf")
    generation = json.loads((tmp_path / "hf" / "generation_config.json").read_text())
    assert generation["decoder_start_token_id"] == 0
    assert generation["task_decoder_start_token_ids"] == STARTS
    card = (tmp_path / "hf" / "README.md").read_text()
    assert 'tokenizer(text, return_tensors="pt")' in card
    assert "`student.generate(**tokens, decoder_start_token_id=1)`" in card
    convert_checkpoint(str(tmp_path / "hf"), str(tmp_path / "back"), "native")
    back = Student.load(str(tmp_path / "back"))
    assert back.description.decoder_starts == STARTS
    again = back.decode(texts, "rationale")
    wanted = student.decode(texts, "rationale", decoder)
    for one, other in zip(again, wanted, strict=True):
        np.testing.assert_array_equal(one[: len(other)], other[: len(one)])


@pytest.mark.slow
def test_what_is_refused(
    shared: pathlib.Path, tiny_data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    with pytest.raises(UserError, match="the expert .* was trained with SHARED_ENCODER = True"):
        contrast.contrast("tiny", "x", str(shared), str(shared), data_dir=str(tiny_data))
    convert_checkpoint(str(shared), str(tmp_path / "hf"), "hf")
    file = tmp_path / "hf" / "generation_config.json"
    values = json.loads(file.read_text())
    for starts, message in (
        ({"label": 0, "rationale": 10**9}, "start token 1000000000 of rationale; expected a whole"),
        ({"label": 0, "rationale": True}, "start token True of rationale; expected a whole number"),
        ([0, 1], r"start tokens \[0, 1\]; expected one for each of"),
    ):
        file.write_text(json.dumps({**values, "task_decoder_start_token_ids": starts}))
        with pytest.raises(UserError, match=message):
            convert_checkpoint(str(tmp_path / "hf"), str(tmp_path / "back"), "native")
    # An earlier version would decode rationales from the start of labels.
    assert (
        steps.read_description(steps.find_step_folder(str(shared))).to_json()["format_version"] == 3
    )


@pytest.mark.parity
@pytest.mark.slow
@pytest.mark.parametrize("beams", [1, pytest.param(2, marks=pytest.mark.campaign)])
def test_transformers_decode_what_the_student_does(
    shared: pathlib.Path, tmp_path: pathlib.Path, beams: int
) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    convert_checkpoint(str(shared), str(tmp_path / "hf"), "hf")
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "hf")
    starts = model.generation_config.task_decoder_start_token_ids
    student = Student.load(str(shared))
    decoder = student.decoder(beam_size=beams, task="rationale")  # as long as max_new_tokens
    texts = [f"question {number}" for number in range(4)]
    said = []
    for task, start in starts.items():
        # Without a start, generation_config.json has that of labels.
        options = {} if task == "label" else {"decoder_start_token_id": start}
        for text, ours in zip(texts, student.decode(texts, task, decoder), strict=True):
            tokens = torch.tensor([student.tokens(text, task).tolist()])
            theirs = model.generate(tokens, num_beams=beams, early_stopping=False, **options)
            ids = theirs[0].tolist()
            assert ids[0] == start
            assert ids[1:] == ours[: len(ids) - 1].tolist()
            assert not ours[len(ids) - 1 :].any()
            said.append(tuple(ids[1:]))
    assert len(set(said)) > 1
