"""The shipped gin files: what they state, and that both engines can read them."""

from __future__ import annotations

import inspect
import pathlib

import gin
import pytest

from distill_sbs import resources, train
from distill_sbs.cli import command_line, gin_files

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


def arguments_of(path: pathlib.Path, *more: str) -> dict[str, object]:
    return command_line.parse(
        ["program", f"--gin_file={path}", "--gin.MODEL_DIR='x'", *more]
    ).arguments


def header_of(path: pathlib.Path) -> str:
    lines = path.read_text().splitlines()
    return "\n".join(lines[: next(n for n, line in enumerate(lines) if not line.startswith("#"))])


def test_every_published_experiment_is_there() -> None:
    assert {path.stem for path in PUBLISHED} == {
        f"{dataset}_{method}_base"
        for dataset in ("cqa", "svamp", "esnli", "anli1")
        for method in ("finetune", "distill", "dss", "dss_distill")
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
    assert f"python -m distill_sbs.train --gin_file=gin/{name_of(path)}" in header
    assert "\n# Hardware: " in header
    result = header.split("\n# Result: ")[1]
    assert result.startswith("not yet measured") or "%" in result


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name_of)
def test_experiments_set_all_that_is_required(path: pathlib.Path) -> None:
    arguments = arguments_of(path)
    lengths = arguments["task_feature_lengths"]
    assert isinstance(lengths, dict)
    # SeqIO mixtures keep only the features that are named, so all three must be.
    assert set(lengths) == {"inputs", "targets", "task_ids"}
    assert lengths["targets"] == lengths["task_ids"]


@pytest.mark.parametrize("path", PUBLISHED, ids=name_of)
def test_published_experiments_state_the_published_numbers(path: pathlib.Path) -> None:
    dataset, method = path.stem.removesuffix("_base").split("_", maxsplit=1)
    arguments = arguments_of(path)
    assert (
        arguments["mixture_or_task_name"]
        == {
            "finetune": f"{dataset}_finetune",
            "distill": f"{dataset}_distill_palm",
            "dss": f"{dataset}_dss_palm",
            "dss_distill": f"{dataset}_dss_distill_palm",
        }[method]
    )
    # 64 examples a step; distilling step-by-step has two rows for each.
    assert arguments["batch_size"] == {"finetune": 64, "distill": 64}.get(method, 128)
    assert arguments["train_steps"] == 10_000
    assert arguments["learning_rate"] == 5e-5
    assert arguments["task_feature_lengths"] == {"inputs": 1024, "targets": 256, "task_ids": 256}
    assert arguments["rationale_rate"] == 1.0
    assert arguments["data_fraction"] == 1.0
    assert arguments["warmup_steps"] == 0
    assert arguments["weight_decay"] == 0.0
    assert arguments["gradient_clip_norm"] == 1.0
    assert arguments["optimizer"] == "adamw"
    assert arguments["max_decode_tokens"] == 64
    assert arguments["student"] == "t5_1_1_base"
    assert arguments["initial_checkpoint_path"] == (
        "gs://t5-data/pretrained_models/t5x/t5_1_1_base/checkpoint_1000000"
    )
    assert arguments["vocabulary_file"] == "gs://t5-data/vocabs/cc_all.32000/sentencepiece.model"


@pytest.mark.parametrize("size", ["tiny", "small", "base", "large", "xl", "xxl"])
def test_model_files_change_size_and_weights_together(size: str) -> None:
    experiment = ROOT / "gin" / "experiments" / "svamp_finetune_base.gin"
    arguments = arguments_of(experiment, f"--gin_file=gin/models/t5_1_1_{size}.gin")
    assert arguments["student"] == f"t5_1_1_{size}"
    weights = f"gs://t5-data/pretrained_models/t5x/t5_1_1_{size}/checkpoint_1000000"
    assert arguments["initial_checkpoint_path"] == (None if size == "tiny" else weights)
    # The paper's step counts: XXL trains for 4,000.
    assert arguments["train_steps"] == (4_000 if size == "xxl" else 10_000)


@pytest.mark.parametrize(
    ("size", "rows", "steps"),
    [("base", 128, 10_000), ("large", 128, 10_000), ("xl", 128, 10_000), ("xxl", 64, 4_000)],
)
def test_sizes_of_one_experiment(size: str, rows: int, steps: int) -> None:
    """The paper's batch (XXL: 32 examples, the others 64) and steps, two rows an example."""
    arguments = arguments_of(ROOT / "gin" / "experiments" / f"cqa_dss_{size}.gin")
    assert arguments["student"] == f"t5_1_1_{size}"
    assert arguments["mixture_or_task_name"] == "cqa_dss_palm"
    assert arguments["batch_size"] == rows
    assert arguments["train_steps"] == steps
    assert arguments["learning_rate"] == 5e-5
    assert f"t5_1_1_{size}/" in str(arguments["initial_checkpoint_path"])


def test_run_file_and_function_agree() -> None:
    """Each parameter of `train` has a macro, with the same default where there is one."""
    signature = inspect.signature(train.train).parameters
    not_from_gin = {"task_files", "config_text"}
    run_file = ROOT / "gin" / "runs" / "train.gin"
    bindings = {
        binding.target: binding.value
        for binding in gin_files.read_file(str(run_file), gin_files.SearchPath())
    }
    bound = {
        target.removeprefix("train."): value
        for target, value in bindings.items()
        if target.startswith("train.")
    }
    assert set(bound) == set(signature) - not_from_gin
    for name, macro in bound.items():
        assert macro == gin_files.MacroReference(name.upper())
        default = bindings[name.upper()]
        if signature[name].default is inspect.Parameter.empty:
            assert default == gin_files.MacroReference(gin_files.REQUIRED_MACRO), name
        else:
            assert default == (signature[name].default if name != "student_overrides" else {})


def test_gin_alone_reads_an_experiment_as_t5x_does(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T5X gives gin a search path and its own macros first; includes must resolve in that too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gin_files, "_current", None)
    monkeypatch.setattr(gin.config, "_LOCATION_PREFIXES", [""])
    gin.clear_config()
    gin.add_config_file_search_path(str(ROOT))
    gin.parse_config_files_and_bindings(
        ["gin/experiments/cqa_dss_base.gin"], ["MODEL_DIR = 'x'"], skip_unknown=False
    )
    assert gin.query_parameter("MIXTURE_OR_TASK_NAME/macro.value") == "cqa_dss_palm"
    assert gin.query_parameter("BATCH_SIZE/macro.value") == 128
    gin.clear_config()
