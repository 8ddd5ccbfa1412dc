"""Every grid of gin/sweeps/ passes --dry_run as it is shipped."""

from __future__ import annotations

import itertools
import pathlib
import shutil

import jax
import pytest

from distill_sbs import resources, sweep
from distill_sbs.checkpoint.checkpointer import Checkpointer
from distill_sbs.checkpoint.description import RunDescription
from distill_sbs.checkpoint.steps import Progress
from distill_sbs.cli import command_line
from distill_sbs.config import TrainConfig
from distill_sbs.data import registration, sentencepiece_model
from distill_sbs.data.records import build, joining
from distill_sbs.data.selection import write_selection
from distill_sbs.model.network import initial_parameters

ROOT = pathlib.Path(__file__).parent.parent.parent
SWEEPS = sorted(path.stem for path in (ROOT / "gin" / "sweeps").glob("*.gin"))
# On embedded data; the others need the published.
EMBEDDED = {
    "comparisons_methods": 160,
    "pretrained_wordproblems": 72,
    "quickstart": 12,
    "teacher": 12,
    "wordproblems_methods": 36,
}
PUBLISHED = {
    "curated_cqa": 18,
    "curated_esnli": 18,
    "data_fraction": 40,
    "methods": 16,
    "model_size": 24,
    "pretrained_published": 216,
    "rationale_rate": 20,
}


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder with what fetch_text and text_pretrain_tiny leave: a vocabulary, a checkpoint."""
    folder = tmp_path_factory.mktemp("pretrained")
    (folder / "text").mkdir()
    vocabulary = folder / "text" / "vocabulary.model"
    shutil.copy(resources.embedded_vocabulary(), vocabulary)
    arguments = ["train", "--gin_file=gin/experiments/text_pretrain_tiny.gin"]
    config = command_line.parse(arguments, TrainConfig, "runs/train.gin").config
    student = config.student.architecture()
    description = RunDescription(
        student=student,
        vocabulary=sentencepiece_model.describe(str(vocabulary)),
        mixture=config.data.mixture_or_task_name,
        task_feature_lengths=config.batch.task_feature_lengths,
        max_decode_tokens=config.evaluation.max_decode_tokens,
    )
    step = config.run.train_steps
    state = {
        "params": initial_parameters(student, jax.random.key(0)),
        "step": jax.numpy.int32(step),
    }
    checkpointer = Checkpointer(str(folder / config.run.model_dir))
    evaluations = [{"step": step, "loss": 5.0}]
    checkpointer.save(
        step, state, Progress({"text_pretrain": step}, evaluations, step), description
    )
    checkpointer.close()
    return folder


@pytest.fixture(scope="module")
def real_data_with_control(
    real_data: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> pathlib.Path:
    """The published data that is swept over, with the control `shuffled`."""
    folder = tmp_path_factory.mktemp("with_control")
    for name in ("svamp", "cqa", "esnli"):
        shutil.copytree(real_data / name, folder / name)
        build.join_shuffled_teacher(registration.get_dataset(name), str(folder), "shuffled", "palm")
    return folder


def dry_run(name: str, folder: pathlib.Path, data: pathlib.Path) -> int:
    return sweep.main(
        [
            "sweep",
            f"--gin_file=gin/sweeps/{name}.gin",
            f"--gin.SWEEP_DIR='{folder}'",
            f"--gin.DATA_DIR='{data}'",
            "--dry_run",
        ]
    )


def check(printed: str, runs: int) -> None:
    assert printed.startswith(f"{runs} runs, {runs} to do\n")
    assert "\nequal for all: " in printed
    assert printed.count("\n  python -m distill_sbs.train --gin_file=gin/sweeps/") == runs


def choose_examples(dataset: str, data: pathlib.Path) -> None:
    """What the plan's calls of curate leave in the working folder, with three examples each."""
    ids = [
        example.id
        for example in itertools.islice(joining.read_examples(str(data), dataset, "train"), 3)
    ]
    for mode in ("curated", "random"):
        for count in (250, 1000, 4000):
            write_selection(f"selections/{dataset}_{mode}_{count}.json", {dataset: ids}, {})


def test_all_are_tested() -> None:
    assert set(SWEEPS) == {*EMBEDDED, *PUBLISHED}


@pytest.mark.slow
@pytest.mark.parametrize("name", EMBEDDED)
def test_on_embedded_data(
    name: str,
    pretrained: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(pretrained)
    assert dry_run(name, tmp_path / "sweep", tmp_path / "data") == 0
    check(capsys.readouterr().out, EMBEDDED[name])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.campaign
@pytest.mark.realdata
@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_on_published_data(
    name: str,
    real_data_with_control: pathlib.Path,
    pretrained: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(pretrained)
    if name.startswith("curated_"):
        choose_examples(name.removeprefix("curated_"), real_data_with_control)
    assert dry_run(name, tmp_path / "sweep", real_data_with_control) == 0
    check(capsys.readouterr().out, PUBLISHED[name])
    assert list(tmp_path.iterdir()) == []
