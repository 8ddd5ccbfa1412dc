"""convert: as a user types it, what it refuses, and training that starts from every form."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import pytest
from source_examples import (
    BYTE_SIZED,
    Drawn,
    Memory,
    assert_same_values,
    stacked_like,
    write_folder,
)

from distill_sbs.config import TrainConfig
from distill_sbs.convert import __main__ as command
from distill_sbs.convert.huggingface.files import HuggingFaceSource, write_huggingface
from distill_sbs.convert.mesh_reader import read_sharded
from distill_sbs.convert.native import NativeSource, write_native
from distill_sbs.convert.open import open_source, recognise_form
from distill_sbs.errors import UserError
from distill_sbs.files import replace_folder
from distill_sbs.inference.student import Student
from distill_sbs.model import config as configs
from distill_sbs.train import train

pytestmark = pytest.mark.slow  # as a whole: many small tests

ROOT = pathlib.Path(__file__).parent.parent.parent


@pytest.fixture
def given(tmp_path: pathlib.Path) -> tuple[pathlib.Path, Memory]:
    """A folder of HuggingFace's that says it is a ByT5."""
    memory = Memory(**BYTE_SIZED)
    folder = write_folder(tmp_path / "given", memory)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer"}')
    return folder, memory


def convert(*arguments: str) -> int:
    return command.main(["convert", *arguments])


def names(folder: pathlib.Path) -> set[str]:
    return {child.name for child in folder.iterdir()}


@pytest.mark.parametrize("stacked", ["--noscan_layers", "--scan_layers"])
def test_there_and_back(
    given: tuple[pathlib.Path, Memory],
    tmp_path: pathlib.Path,
    stacked: str,
    capsys: pytest.CaptureFixture,
) -> None:
    folder, memory = given
    native, back = tmp_path / "made" / "native", tmp_path / "back"
    arguments = [f"--input={folder}", f"--output={native}", stacked]
    assert convert("--from=hf", "--to=native", *arguments) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    # 1 embedding, 2 · 9 + 2 of the encoder, 2 · 14 + 2 of the decoder, 1 head.
    assert re.search(r"tensors +│ +52 ", shown.out)
    assert re.search(r"parameters +│ +19,392 ", shown.out)
    assert re.search(r"size +│ +[\d.,]+ MiB", shown.out)
    assert re.search(r"time +│ +[\d.,]+ s", shown.out)
    assert re.search(r"peak memory +│ +[\d,]+ MiB", shown.out)
    assert f"written to {native}" in shown.out
    assert NativeSource(str(native)).config.scan_layers == (stacked == "--scan_layers")
    assert convert("--from=native", "--to=hf", f"--input={native}", f"--output={back}") == 0
    assert_same_values(HuggingFaceSource(str(back)), memory)
    assert "ByT5Tokenizer" in (back / "tokenizer_config.json").read_text()
    assert names(tmp_path) == {"given", "made", "back"}


def test_through_t5x(given: tuple[pathlib.Path, Memory], tmp_path: pathlib.Path) -> None:
    pytest.importorskip("distill_sbs.convert.t5x.files")
    folder, memory = given
    for stacked in ("--noscan_layers", "--scan_layers"):
        theirs, back = tmp_path / f"t5x{stacked}", tmp_path / f"back{stacked}"
        assert convert("--to=t5x", f"--input={folder}", f"--output={theirs}", stacked) == 0
        assert recognise_form(str(theirs)) == "t5x"
        arguments = [f"--input={theirs}", f"--output={back}"]
        assert convert("--to=hf", *arguments) == 2
        assert convert("--to=hf", *arguments, "--vocabulary_file=bytes") == 0
        assert_same_values(HuggingFaceSource(str(back)), memory)


def test_every_form_is_recognised(
    given: tuple[pathlib.Path, Memory], tmp_path: pathlib.Path
) -> None:
    folder, memory = given
    write_native(HuggingFaceSource(str(folder)), str(tmp_path / "native"))
    (tmp_path / "run" / "checkpoints" / "4").mkdir(parents=True)
    (tmp_path / "t5x_run" / "checkpoint_1000").mkdir(parents=True)
    (tmp_path / "t5x_run" / "checkpoint_1000" / "checkpoint").write_bytes(b"")
    (tmp_path / "orbax" / "checkpoint_1000" / "state").mkdir(parents=True)
    found = {
        location: recognise_form(str(tmp_path / location))
        for location in (
            "given",
            "native",
            "run",
            "run/checkpoints",
            "t5x_run",
            "t5x_run/checkpoint_1000",
            "orbax/checkpoint_1000",
        )
    }
    assert list(found.values()) == ["hf", "native", "native", "native", "t5x", "t5x", "t5x"]
    assert recognise_form("google/t5-v1_1-base") == "hf"
    assert_same_values(open_source(str(folder)), memory)


def test_paths_that_hold_nothing(tmp_path: pathlib.Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"no checkpoint of a known form, but holiday.jpg; expect"):
        open_source(str(tmp_path))
    with pytest.raises(UserError, match="is a file; expected the folder"):
        open_source(str(tmp_path / "holiday.jpg"))
    with pytest.raises(UserError, match="no such checkpoint"):
        open_source(str(tmp_path / "nothing"))


@pytest.mark.campaign
@pytest.mark.parametrize("stacked", ["--noscan_layers", "--scan_layers"])
def test_memory_does_not_grow_with_depth(tmp_path: pathlib.Path, stacked: str) -> None:
    """HuggingFace to ours, to T5X and back: 2 + 2 layers, and 11 + 11, of tensors of 4 MiB."""
    sizes, peaks = [], []
    for layers in (2, 11):
        config = dataclasses.replace(
            configs.named_config("t5_1_1_small"),
            vocab_size=1024,
            mlp_dim=2048,
            num_encoder_layers=layers,
            num_decoder_layers=layers,
        )
        folder = tmp_path / str(layers)
        write_huggingface(
            Drawn(config), str(folder / "hf"), with_tokenizer=False, shard_bytes=2 * 10**8
        )
        commands = (
            f"--input=hf --to=native --output=native --vocabulary_file=bytes {stacked}",
            "--input=native --to=hf --output=back",
            "--input=native --to=t5x --output=t5x",
            f"--input=t5x --to=native --output=again --vocabulary_file=bytes {stacked}",
        )
        peaks.append(peaks_mebibytes(commands, folder))
        sizes.append(sum(file.stat().st_size for file in (folder / "hf").iterdir()) / 2**20)
        for written in ("back", "again"):
            source = open_source(str(folder / written))
            path = f"decoder/layers_{layers - 1}/mlp/wo/kernel"
            np.testing.assert_array_equal(source.read(path), Drawn(config).read(path))
        shutil.rmtree(folder)
    print(f"{sizes[0]:,.0f} and {sizes[1]:,.0f} MiB of weights: peaks {peaks} MiB")
    assert sizes[1] - sizes[0] > 290
    assert all(large - small < 100 for small, large in zip(*peaks, strict=True))


CONVERT_ALL = """
import sys
from distill_sbs.cli.peak_memory import peak_memory_mib
from distill_sbs.convert.__main__ import main
for arguments in sys.argv[1:]:
    assert main(["convert", *arguments.split()]) == 0
    print(f"peak: {peak_memory_mib():.0f}")
"""


def peaks_mebibytes(commands: Sequence[str], cwd: pathlib.Path) -> list[int]:
    """The most memory that a process has held after each of its conversions."""
    done = subprocess.run(
        [sys.executable, "-c", CONVERT_ALL, *commands],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    peaks = [int(each) for each in re.findall(r"^peak: (\d+)$", done.stdout, re.MULTILINE)]
    assert f"{peaks[-1]:,} MiB" in done.stdout, "the command tells it, too"
    return peaks


# ---------------------------------- refusals ---------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to=nativ"], "--to"),
        (["--to=native", "--student=t5_1_1_small"], "expected (32128, 512)"),
        (["--to=native", "--student=t5_1_1_smal"], "did you mean 't5_1_1_small'"),
        (["--to=native", "--dtype=bfloat16"], "only --to=hf writes other types"),
        (["--to=hf", "--scan_layers"], "has no effect with --to=hf"),
        (["--to=t5x", "--vocabulary_file=bytes"], "has no effect with --to=t5x"),
        (["--to=native", "--vocabulary_file=/nowhere"], "no such file"),
        (["--to=native", "--vocabulary_file=embedded"], "pieces"),
        (["--to=native", "--from=native"], "no checkpoint of distill_sbs there"),
    ],
)
def test_refuses_and_leaves_nothing(
    given: tuple[pathlib.Path, Memory],
    tmp_path: pathlib.Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture,
) -> None:
    output = tmp_path / "new"
    assert convert(*arguments, f"--input={given[0]}", f"--output={output}") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message in error
    assert names(tmp_path) == {"given"}


def test_an_output_that_is_there_is_kept(
    given: tuple[pathlib.Path, Memory], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    output = tmp_path / "new"
    output.mkdir()
    (output / "precious").write_text("kept")
    arguments = ["--to=hf", f"--input={given[0]}", f"--output={output}"]
    assert convert(*arguments) == 2
    assert "exists already; choose another folder, or replace it with --over" in (
        capsys.readouterr().err
    )
    # Replaced only once all is well.
    assert convert(*arguments, "--overwrite", "--vocabulary_file=/nowhere") == 2
    (given[0] / "model.safetensors").rename(given[0] / "elsewhere")
    assert convert(*arguments, "--overwrite") == 2
    assert names(output) == {"precious"}
    (given[0] / "elsewhere").rename(given[0] / "model.safetensors")
    assert convert(*arguments, "--overwrite") == 0
    assert "config.json" in names(output) and "precious" not in names(output)
    inside = ["--to=hf", f"--input={given[0]}", f"--output={given[0] / 'new'}", "--overwrite"]
    assert convert(*inside) == 2
    assert "lie in one another" in capsys.readouterr().err
    assert names(tmp_path) == {"given", "new"}


def test_a_failure_midway_leaves_what_was_there(tmp_path: pathlib.Path) -> None:
    output = tmp_path / "new"
    output.mkdir()
    (output / "precious").write_text("kept")
    memory = Memory(**BYTE_SIZED)
    memory.fails_at = 9
    with pytest.raises(OSError, match="gone"), replace_folder(str(output)) as folder:
        write_native(memory, str(folder), vocabulary={"kind": "bytes", "size": 259})
    assert names(tmp_path) == {"new"}
    assert names(output) == {"precious"}


def test_interrupted_by_a_signal(tmp_path: pathlib.Path) -> None:
    """A checkpoint large enough that the signal comes while it is written."""
    folder = write_folder(tmp_path / "given", Memory(vocab_size=2_000_000))
    process = subprocess.Popen(
        [sys.executable, "-m", "distill_sbs.convert", "--to=native", f"--input={folder}"]
        + [f"--output={tmp_path / 'new'}", "--vocabulary_file=bytes"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list(tmp_path.glob(".new.partial-*")):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, error
    assert names(tmp_path) == {"given"}, error
    assert error == f"interrupted: {tmp_path / 'new'} is as it was before\n"


# ---------------------------------- training ---------------------------------


def trained(model_dir: pathlib.Path, data_dir: pathlib.Path, **changes: Any) -> Any:
    """The parameters after a step of learning rate 0: those before it."""
    arguments: dict[str, Any] = {
        "mixture_or_task_name": "tiny_dss_gpt",
        "task_feature_lengths": {"inputs": 32, "targets": 16, "task_ids": 16},
        "train_steps": 1,
        "batch_size": 8,
        "vocabulary_file": "bytes",
        "data_dir": str(data_dir),
        "student": "t5_1_1_tiny",
        "student_overrides": {
            "vocab_size": 260,
            "emb_dim": 16,
            "num_heads": 2,
            "head_dim": 8,
            "mlp_dim": 24,
        },
        "learning_rate": 0.0,
        "eval_examples": 1,
        "max_decode_tokens": 1,
    }
    train(TrainConfig.from_options(model_dir=str(model_dir), **{**arguments, **changes}))
    return Student.load(str(model_dir)).params


@pytest.mark.parametrize("form", ["hf", "native", "t5x"])
def test_training_starts_from_every_form(
    given: tuple[pathlib.Path, Memory],
    tmp_path: pathlib.Path,
    tiny_data: pathlib.Path,
    form: str,
    capsys: pytest.CaptureFixture,
) -> None:
    folder, memory = given
    location = folder
    if form == "native":
        location = tmp_path / "native"
        write_native(HuggingFaceSource(str(folder)), str(location), scan_layers=True)
    elif form == "t5x":
        t5x_files = pytest.importorskip("distill_sbs.convert.t5x.files")
        location = tmp_path / "t5x"
        t5x_files.write_t5x(HuggingFaceSource(str(folder)), str(location))
    params = trained(tmp_path / "run", tiny_data, initial_checkpoint_path=str(location))
    jax.tree.map(np.testing.assert_array_equal, params, read_sharded(memory, stacked_like(memory)))
    assert "another vocabulary" not in capsys.readouterr().err
    if form == "hf":  # a run that goes on does not need it any more
        shutil.rmtree(location)
        again = trained(tmp_path / "run", tiny_data, initial_checkpoint_path=str(location))
        jax.tree.map(np.testing.assert_array_equal, again, params)
        assert "from step 1" in capsys.readouterr().err


def test_a_path_that_is_wrong_is_refused_first(
    tmp_path: pathlib.Path, tiny_data: pathlib.Path
) -> None:
    for location in ("/no/such/folder", str(tiny_data)):
        with pytest.raises(UserError, match=f"^INITIAL_CHECKPOINT_PATH: {location}"):
            trained(tmp_path / "run", tiny_data, initial_checkpoint_path=location)
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_that_does_not_fit_is_refused_first(
    given: tuple[pathlib.Path, Memory], tmp_path: pathlib.Path, tiny_data: pathlib.Path
) -> None:
    with pytest.raises(UserError) as error:
        trained(
            tmp_path / "run",
            tiny_data,
            initial_checkpoint_path=str(given[0]),
            student_overrides={"vocab_size": 260},
        )
    message = str(error.value)
    assert message.startswith("INITIAL_CHECKPOINT_PATH: ")
    assert "tensor shared.weight has shape (260, 16), expected (260, 128)" in message
    assert "STUDENT='t5_1_1_tiny'" in message
    assert not (tmp_path / "run").exists()


def test_another_vocabulary_is_warned_of(
    given: tuple[pathlib.Path, Memory],
    tmp_path: pathlib.Path,
    tiny_data: pathlib.Path,
    capsys: pytest.CaptureFixture,
) -> None:
    memory = Memory(vocab_size=512)
    native = tmp_path / "native"
    from distill_sbs.data import vocabulary

    write_native(memory, str(native), vocabulary=vocabulary.describe("embedded"))
    overrides = {"vocab_size": 512, "emb_dim": 16, "num_heads": 2, "head_dim": 8, "mlp_dim": 24}
    with pytest.raises(UserError, match="NUM_MODEL_PARTITIONS=3"):  # looked at next
        trained(
            tmp_path / "run",
            tiny_data,
            initial_checkpoint_path=str(native),
            student_overrides=overrides,
            num_model_partitions=3,
        )
    assert "comes with another vocabulary than VOCABULARY_FILE='bytes'" in capsys.readouterr().err


def test_a_converted_checkpoint_names_no_task(
    given: tuple[pathlib.Path, Memory], tmp_path: pathlib.Path
) -> None:
    from distill_sbs.evaluate import evaluate

    write_native(HuggingFaceSource(str(given[0])), str(tmp_path / "native"))
    with pytest.raises(UserError, match="names no task; give one: --mixture_or_task="):
        evaluate(str(tmp_path / "native"))
    description = json.loads((tmp_path / "native" / "description" / "metadata").read_text())
    assert description["mixture"] is None
