"""`contrast` whole: two students, records, tuning on them; killed and resumed; what is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any

import model_examples
import numpy as np
import pytest

from distill_sbs import constants, contrast
from distill_sbs.config import TrainConfig
from distill_sbs.contrasting.options import ContrastOptions
from distill_sbs.data import registration, settings
from distill_sbs.data.batches import input_pipeline
from distill_sbs.errors import UserError
from distill_sbs.train import train

ROOT = pathlib.Path(__file__).parent.parent.parent
OPTIONS = ContrastOptions(
    num_problems=20, max_rollout=12, beta_quantile=0.5, batch_size=8, shard_size=8, top_k=4
)
pytestmark = pytest.mark.slow  # two trained students stand behind every test


def train_config(model_dir: pathlib.Path, data_dir: pathlib.Path, **changes: Any) -> TrainConfig:
    return TrainConfig.from_options(
        **{
            "model_dir": str(model_dir),
            "mixture_or_task_name": "tiny_dss_gpt",
            "task_feature_lengths": {"inputs": 32, "targets": 16, "task_ids": 16},
            "train_steps": 2,
            "batch_size": 8,
            "initial_checkpoint_path": None,
            "vocabulary_file": "bytes",
            "data_dir": str(data_dir),
            "student": "t5_1_1_tiny",
            "student_overrides": {"vocab_size": 384, **model_examples.ONE_LAYER},
            "dropout_rate": 0.0,
            "learning_rate": 1e-2,
            "eval_period": 2,
            "log_period": 1,
            "max_decode_tokens": 8,
            **changes,
        }
    )


@dataclasses.dataclass
class Pair:
    """Two trained students, and the records that they answer."""

    expert: str
    amateur: str
    data_dir: str


@pytest.fixture(scope="module")
def pair(tiny_data: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("pair")
    train(train_config(folder / "expert", tiny_data, train_steps=4))
    train(train_config(folder / "amateur", tiny_data, random_seed=1))
    return Pair(str(folder / "expert"), str(folder / "amateur"), str(tiny_data))


def make(pair: Pair, name: str, options: ContrastOptions = OPTIONS, **changes: Any) -> Any:
    given = {"data_dir": pair.data_dir, **changes}
    return contrast.contrast("tiny", name, pair.expert, pair.amateur, options, **given)


def read_bytes(folder: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.campaign
def test_from_two_students_to_a_tuned_one(
    pair: Pair, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = make(pair, "whole")
    assert "share kept" in capsys.readouterr().out
    assert manifest.problems == 20
    assert sum(manifest.histogram) == manifest.valid > 0
    assert manifest.kept == pytest.approx(manifest.valid / 2, abs=manifest.valid / 10)
    assert make(pair, "whole") == manifest
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"another contrast \(--beta: 0.4 there, 0.5 now"):
        make(pair, "whole", dataclasses.replace(OPTIONS, beta=0.5))

    # The batches: rows of soft labels that sum to 1, none beside labels.
    settings.use(settings.DataSettings(pair.data_dir, vocabulary_file="bytes"))
    mixture = registration.get_mixture_or_task("tiny_contrast_label_whole")
    assert registration.evaluation_task(mixture).name == "tiny_label"
    data = input_pipeline.load_training_data(mixture, {"inputs": 32, "targets": 16}, 8, 0)
    batch, position = next(data.batches(data.sampler.start()))
    assert position == {"tiny_label": 2, "tiny_contrast_whole": 6}
    task_ids = batch[constants.DECODER_TASK_IDS]
    soft, steps = batch[constants.DECODER_SOFT_WEIGHTS], batch[constants.DECODER_STEP_WEIGHTS]
    assert soft.shape == (*task_ids.shape, 4)
    np.testing.assert_allclose(soft.sum(axis=-1), steps > 0, atol=1e-6)
    assert set(np.unique(steps)) == {np.float32(0), np.float32(0.1), np.float32(1)}
    assert not steps[task_ids != constants.CONTRAST_TASK_ID].any()

    results = {}
    for name in ("tiny_contrast_whole", "tiny_contrast_label_whole"):
        config = train_config(
            tmp_path / name,
            pathlib.Path(pair.data_dir),
            mixture_or_task_name=name,
            initial_checkpoint_path=pair.expert,
            num_microbatches=2,
        )
        results[name] = train(config)
        for split in ("validation", "test"):
            assert set(results[name][split]) == {"accuracy", "rationale_overlap"}
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        logged = [json.loads(line) for line in lines]
        assert 0 < logged[0]["contrast_kl"] < logged[0]["contrast_loss"]
        assert logged[0]["contrast_positions"] > 1
        assert ("label_loss" in logged[0]) == ("label" in name)
        assert logged[1]["contrast_loss"] < logged[0]["contrast_loss"]
    alone = tmp_path / "tiny_contrast_whole" / "metrics.jsonl"
    first = json.loads(alone.read_text().splitlines()[0])
    assert first["loss"] == pytest.approx(first["contrast_loss"], rel=1e-5)

    # Another student than the expert; none; the same run again, which goes on.
    for path, message in (
        (pair.amateur, "is not the expert of tiny_contrast_whole"),
        (None, "INITIAL_CHECKPOINT_PATH=None: tiny_contrast_whole improves the expert"),
    ):
        config = train_config(
            tmp_path / "refused",
            pathlib.Path(pair.data_dir),
            mixture_or_task_name="tiny_contrast_whole",
            initial_checkpoint_path=path,
        )
        with pytest.raises(UserError, match=message):
            train(config)
    assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize("mode", ["no_select", "random_select", "gold"])
def test_modes(pair: Pair, mode: str) -> None:
    manifest = make(pair, f"mode_{mode}", dataclasses.replace(OPTIONS, mode=mode))
    assert (manifest.kept == manifest.valid) == (mode == "no_select")
    if mode == "gold":  # of 20 rows two have no rationale
        assert manifest.problems == 18


@pytest.mark.campaign
def test_killed_and_resumed(pair: Pair, tmp_path: pathlib.Path) -> None:
    from distill_sbs.data.records import build

    data_dirs = [tmp_path / "whole", tmp_path / "killed"]
    command = [
        *(sys.executable, "-m", "distill_sbs.contrast", "--dataset=wordproblems", "--name=x"),
        *(f"--expert={pair.expert}", f"--amateur={pair.amateur}", "--num_problems=64"),
        *("--max_rollout=12", "--batch_size=4", "--shard_size=4", "--beta_quantile=0.8"),
    ]
    registration.load_task_files()
    build.prepare_dataset(registration.get_dataset("wordproblems"), None, str(data_dirs[0]), None)
    build.prepare_dataset(registration.get_dataset("wordproblems"), None, str(data_dirs[1]), None)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def start(data_dir: pathlib.Path) -> subprocess.Popen:
        return subprocess.Popen(
            [*command, f"--data_dir={data_dir}"],
            env=environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    process = start(data_dirs[1])
    work = data_dirs[1] / "contrast" / "wordproblems" / ".rollouts"
    while process.poll() is None and len(list(work.glob("*/part-*"))) < 2:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    target = data_dirs[1] / "contrast" / "wordproblems" / "x"
    saved = {path: path.stat().st_mtime_ns for path in work.glob("*/part-*")}
    assert 2 <= len(saved) < 16
    assert not target.exists()
    for data_dir in data_dirs:
        process = start(data_dir)
        shown, _ = process.communicate()
        assert process.returncode == 0, shown
    assert {path: path.stat().st_mtime_ns for path in saved} == saved
    assert read_bytes(target) == read_bytes(data_dirs[0] / "contrast" / "wordproblems" / "x")


def test_bad_input(pair: Pair, tmp_path: pathlib.Path) -> None:
    other = train_config(
        tmp_path / "other",
        pathlib.Path(pair.data_dir),
        vocabulary_file="embedded",
        student_overrides={"vocab_size": 512, **model_examples.ONE_LAYER},
    )
    train(other)
    wide = train_config(
        tmp_path / "wide",
        pathlib.Path(pair.data_dir),
        student_overrides={"vocab_size": 512, **model_examples.ONE_LAYER},
    )
    train(wide)
    (tmp_path / "empty").mkdir()
    for changes, message in (
        ({"amateur": str(tmp_path / "other")}, "have different vocabularies"),
        ({"amateur": str(tmp_path / "wide")}, "embeds 384 tokens, the amateur .* 512"),
        ({"amateur": pair.expert}, "hold the same parameters"),
        ({"amateur": str(tmp_path / "empty")}, "no checkpoint of distill_sbs there"),
        ({"expert": str(tmp_path / "nowhere")}, "no checkpoint of distill_sbs there"),
        ({"dataset": "tinny"}, "unknown dataset 'tinny'"),
        ({"split": "dev"}, "--split=dev: tiny has"),
        ({"name": "label_x"}, "does not begin with label_"),
        ({"name": "a/b"}, "contrast 'a/b': expected letters"),
        (
            {
                "data_dir": str(tmp_path / "empty"),
                "options": dataclasses.replace(OPTIONS, beta_quantile=None, beta=1e6),
            },
            "no position has a divergence of 1e\\+06",
        ),
    ):
        given = {
            "dataset": "tiny",
            "name": "bad",
            "expert": pair.expert,
            "amateur": pair.amateur,
            "options": OPTIONS,
            "data_dir": pair.data_dir,
            **changes,
        }
        with pytest.raises(UserError, match=message):
            contrast.contrast(**given)
    settings.use(settings.DataSettings(pair.data_dir, vocabulary_file="bytes"))
    with pytest.raises(UserError, match="holds no contrast; python -m distill_sbs.contrast"):
        registration.get_mixture_or_task("tiny_contrast_nothing")


def test_bad_input_ends_the_program_with_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path
) -> None:
    flags = ["contrast", "--dataset=tiny", "--name=x", "--amateur=b", f"--expert={tmp_path}"]
    assert contrast.main([*flags, "--alpha=2"]) == 2
    assert capsys.readouterr().err == "error: --alpha=2.0 is not in (0, 1]; 0.2 is the paper's\n"
    assert contrast.main(flags) == 2
    assert "no checkpoint of distill_sbs there" in capsys.readouterr().err
