"""The shipped gin files: what they state, and that both engines can read them."""

from __future__ import annotations

import pathlib

import gin
import pytest

from distill_sbs import resources
from distill_sbs.cli import command_line, gin_files
from distill_sbs.config import TrainConfig

ROOT = resources.root_folder()
EXPERIMENTS = sorted((ROOT / "gin" / "experiments").glob("*.gin"))
PUBLISHED = [path for path in EXPERIMENTS if path.stem.endswith("_base")]
SHARED = sorted(
    path
    for part in ("experiments", "methods", "models")
    for path in (ROOT / "gin" / part).glob("*")
)
# In T5X these are objects that its model files build; ours of the same name would break them.
T5X_OBJECTS = {"MODEL", "OPTIMIZER", "VOCABULARY"}


def name_of(path: pathlib.Path) -> str:
    return str(path.relative_to(ROOT / "gin"))


def values_of(path: pathlib.Path, *more: str) -> dict[str, object]:
    """Macro → value."""
    arguments = ["program", f"--gin_file={path}", "--gin.MODEL_DIR='x'", *more]
    return command_line.parse(arguments, TrainConfig, "runs/train.gin").config.values()


def header_of(path: pathlib.Path) -> str:
    lines = path.read_text().splitlines()
    return "\n".join(lines[: next(n for n, line in enumerate(lines) if not line.startswith("#"))])


def test_every_published_experiment_is_there() -> None:
    assert {path.stem for path in PUBLISHED} == {
        f"{dataset}_{method}_base"
        for dataset in ("cqa", "svamp", "esnli", "anli1")
        for method in ("finetune", "distill", "dss", "dss_distill", "joint", "pinto")
    }
    assert {path.stem for path in (ROOT / "gin" / "models").glob("*.gin")} >= {
        f"t5_1_1_{size}" for size in ("tiny", "small", "base", "large", "xl", "xxl")
    }


@pytest.mark.parametrize("path", SHARED, ids=name_of)
def test_shared_files_set_macros_only(path: pathlib.Path) -> None:
    bindings = list(gin_files.read_file(str(path), gin_files.SearchPath()))
    assert bindings
    assert [binding.target for binding in bindings if not binding.is_macro] == []
    assert not T5X_OBJECTS & {binding.target for binding in bindings}
    assert "import" not in path.read_text()


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name_of)
def test_experiments_open_with_command_hardware_and_result(path: pathlib.Path) -> None:
    header = header_of(path)
    program = "allocate" if path.stem.endswith("_allocate") else "train"
    assert f"python -m distill_sbs.{program} --gin_file=gin/{name_of(path)}" in header
    assert "\n# Hardware: " in header
    result = header.split("\n# Result: ")[1]
    # Pretraining has no accuracy.
    assert result.startswith("not yet measured") or "%" in result or "perplexity" in result


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name_of)
def test_experiments_set_all_that_is_required(path: pathlib.Path) -> None:
    values = values_of(path)
    lengths = values["TASK_FEATURE_LENGTHS"]
    assert isinstance(lengths, dict)
    # SeqIO mixtures keep only the features that are named, so all three must be.
    assert set(lengths) == {"inputs", "targets", "task_ids"}
    assert lengths["targets"] == lengths["task_ids"]


@pytest.mark.parametrize("path", PUBLISHED, ids=name_of)
def test_published_experiments_state_the_published_numbers(path: pathlib.Path) -> None:
    dataset, method = path.stem.removesuffix("_base").split("_", maxsplit=1)
    values = values_of(path)
    assert (
        values["MIXTURE_OR_TASK_NAME"]
        == {
            "finetune": f"{dataset}_finetune",
            "distill": f"{dataset}_distill_palm",
            "dss": f"{dataset}_dss_palm",
            "dss_distill": f"{dataset}_dss_distill_palm",
            "joint": f"{dataset}_joint_palm",
            "pinto": f"{dataset}_pinto_palm",
        }[method]
    )
    # 64 examples a step; distilling step-by-step has two rows for each.
    assert values["BATCH_SIZE"] == (128 if method in ("dss", "dss_distill") else 64)
    assert values["TRAIN_STEPS"] == 10_000
    assert values["LEARNING_RATE"] == 5e-5
    assert values["TASK_FEATURE_LENGTHS"] == {"inputs": 1024, "targets": 256, "task_ids": 256}
    assert values["RATIONALE_RATE"] == 1.0
    assert values["DATA_FRACTION"] == 1.0
    assert values["WARMUP_STEPS"] == 0
    assert values["WEIGHT_DECAY"] == 0.0
    assert values["GRADIENT_CLIP_NORM"] == 1.0
    assert values["OPTIMIZER"] == "adamw"
    assert values["MAX_DECODE_TOKENS"] == (256 if method == "joint" else 64)
    assert values["STUDENT"] == "t5_1_1_base"
    assert values["INITIAL_CHECKPOINT_PATH"] == (
        "gs://t5-data/pretrained_models/t5x/t5_1_1_base/checkpoint_1000000"
    )
    assert values["VOCABULARY_FILE"] == "gs://t5-data/vocabs/cc_all.32000/sentencepiece.model"


@pytest.mark.parametrize("size", ["tiny", "small", "base", "large", "xl", "xxl"])
def test_model_files_change_size_and_weights_together(size: str) -> None:
    experiment = ROOT / "gin" / "experiments" / "svamp_finetune_base.gin"
    values = values_of(experiment, f"--gin_file=gin/models/t5_1_1_{size}.gin")
    assert values["STUDENT"] == f"t5_1_1_{size}"
    weights = f"gs://t5-data/pretrained_models/t5x/t5_1_1_{size}/checkpoint_1000000"
    assert values["INITIAL_CHECKPOINT_PATH"] == (None if size == "tiny" else weights)
    # The paper's step counts: XXL trains for 4,000.
    assert values["TRAIN_STEPS"] == (4_000 if size == "xxl" else 10_000)


@pytest.mark.parametrize(
    ("size", "rows", "steps"),
    [("base", 128, 10_000), ("large", 128, 10_000), ("xl", 128, 10_000), ("xxl", 64, 4_000)],
)
def test_sizes_of_one_experiment(size: str, rows: int, steps: int) -> None:
    """The paper's batch (XXL: 32 examples, the others 64) and steps, two rows an example."""
    values = values_of(ROOT / "gin" / "experiments" / f"cqa_dss_{size}.gin")
    assert values["STUDENT"] == f"t5_1_1_{size}"
    assert values["MIXTURE_OR_TASK_NAME"] == "cqa_dss_palm"
    assert values["BATCH_SIZE"] == rows
    assert values["TRAIN_STEPS"] == steps
    assert values["LEARNING_RATE"] == 5e-5
    assert f"t5_1_1_{size}/" in str(values["INITIAL_CHECKPOINT_PATH"])


def test_gin_alone_reads_an_experiment_as_t5x_does(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T5X gives gin a search path and its own macros first; includes must resolve in that too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gin.config, "_LOCATION_PREFIXES", [""])
    gin.clear_config()
    gin.add_config_file_search_path(str(ROOT))
    gin.parse_config_files_and_bindings(
        ["gin/experiments/cqa_dss_base.gin"], ["MODEL_DIR = 'x'"], skip_unknown=False
    )
    assert gin.query_parameter("MIXTURE_OR_TASK_NAME/macro.value") == "cqa_dss_palm"
    assert gin.query_parameter("BATCH_SIZE/macro.value") == 128
    gin.clear_config()
