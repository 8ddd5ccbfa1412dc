"""T5X's own programs with our gin files, as a user runs them: train, eval, infer; and each engine
started from the other's checkpoint.

A dataset of its own (TASK_FILES), a tiny network, four simulated devices.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from distill_sbs import resources
from distill_sbs.convert.open import open_source
from distill_sbs.convert.t5x import files

pytest.importorskip(
    "t5x", reason="T5X is not installed; requirements-t5x.txt says how", exc_type=ImportError
)

pytestmark = [pytest.mark.t5x, pytest.mark.slow]

TASK_FILE = """
from distill_sbs.data import metrics, registration
from distill_sbs.data.dataset import DatasetSpec, Example, RawSplit, TeacherOutput

SIZES = {"train": 200, "validation": 8, "test": 12}

def read(_, split):
    def examples():
        for i in range(SIZES[split]):
            answer = "ab"[i % 2]
            teacher = TeacherOutput("ba"[i % 2], f"since {answer}{answer}")
            yield Example(f"{split}-{i}", f"{i} is {answer}?", answer, {"gpt": teacher})
    return RawSplit(SIZES[split], examples)

registration.register_dataset(
    DatasetSpec("pairs", read, metrics.answers_match, ("gpt",), needs_source_dir=False)
)
"""

# Macros only: our own trainer reads the same file.
EXPERIMENT = """
MIXTURE_OR_TASK_NAME = 'pairs_dss_gpt'
TASK_FEATURE_LENGTHS = {'inputs': 32, 'targets': 16}  # task_ids as targets, in both engines
VOCABULARY_FILE = 'bytes'
INITIAL_CHECKPOINT_PATH = None
TRAIN_STEPS = 40
BATCH_SIZE = 16
LEARNING_RATE = 1e-2
EVAL_PERIOD = 20
LOG_PERIOD = 5
MAX_DECODE_TOKENS = 8
DROPOUT_RATE = 0.0
RANDOM_SEED = 0
NUM_MICROBATCHES = 2
"""

# Over our and T5X's own tiny model, which need not have the same size.
NETWORK = {
    "vocab_size": 384,
    "emb_dim": 32,
    "num_heads": 4,  # T5X lays the model over all devices of a CPU
    "head_dim": 8,
    "mlp_dim": 64,
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
    "dtype": "float32",
}
STUDENT = f"""
STUDENT = 't5_1_1_tiny'
STUDENT_OVERRIDES = {NETWORK}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """An empty working directory with the task file and the experiment file."""
    path = tmp_path_factory.mktemp("t5x")
    (path / "pairs.py").write_text(TASK_FILE)
    (path / "pairs.gin").write_text(EXPERIMENT + STUDENT)
    return path


def run_python(folder: pathlib.Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            # Compiling is what takes time here: less optimized, and each program once.
            "XLA_FLAGS": (
                "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
            ),
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "DISTILL_SBS_DATA_DIR": str(folder / "data"),
        },
        capture_output=True,
        text=True,
        timeout=600,
    )


def t5x_arguments(run_file: str, **macros: object) -> list[str]:
    return [
        f"--gin_search_paths={resources.root_folder()}",
        "--gin_file=t5x/examples/t5/t5_1_1/tiny.gin",
        f"--gin_file=gin/t5x/{run_file}.gin",
        "--gin_file=pairs.gin",
        "--gin.TASK_FILES=['pairs.py']",
        *(f"--gin.network.T5Config.{name}={value!r}" for name, value in NETWORK.items()),
        *(f"--gin.{name}={value}" for name, value in macros.items()),
    ]


def t5x_program(folder: pathlib.Path, name: str, run_file: str, **macros: object) -> str:
    """Runs `python -m t5x.<name>` and returns what it logged."""
    done = run_python(folder, "-m", f"t5x.{name}", *t5x_arguments(run_file, **macros))
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stderr


def logged(log: str, name: str) -> list[float]:
    """A training metric at every log step."""
    lines = [line for line in log.splitlines() if "collection=train " in line]
    values = [re.search(rf"\b{name}=([\d.e+-]+)", line) for line in lines]
    return [float(value[1]) for value in values if value]


@pytest.fixture(scope="module")
def trained(folder: pathlib.Path) -> tuple[pathlib.Path, str]:
    """MODEL_DIR of a run from random weights, and its log."""
    return folder / "run", t5x_program(folder, "train", "finetune", MODEL_DIR="'run'")


def test_training_lowers_both_losses(trained: tuple[pathlib.Path, str]) -> None:
    model_dir, log = trained
    steps = sorted(path.name for path in model_dir.glob("checkpoint_*"))
    assert steps == ["checkpoint_0", "checkpoint_20", "checkpoint_40"]
    for task in ("label", "rationale"):
        values = logged(log, f"{task}_loss")
        assert len(values) == 8
        assert values[-1] < 0.5 * values[0], values
    # The learning rate of the last step: 40 steps, decayed linearly to 0.
    assert logged(log, "learning_rate/current")[-1] == pytest.approx(1e-2 / 40)
    # Decoded labels are scored, and of labels only.
    scored = sorted(path.name for path in (model_dir / "inference_eval").glob("*.jsonl"))
    assert "pairs_label-metrics.jsonl" in scored
    assert not any("rationale" in name for name in scored)
    # Loss on validation of each task and of the mixture.
    assert "collection=training_eval/pairs_rationale_gpt" in log
    assert "RuntimeWarning: invalid value" not in log


def our_trainer(folder: pathlib.Path, **macros: object) -> subprocess.CompletedProcess[str]:
    done = run_python(
        folder,
        *("-m", "distill_sbs.train", "--gin_file=pairs.gin", "--task_file=pairs.py"),
        *(f"--gin.{name}={value}" for name, value in macros.items()),
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done


@pytest.fixture(scope="module")
def continued(folder: pathlib.Path, trained: tuple[pathlib.Path, str]) -> pathlib.Path:
    """MODEL_DIR of our own trainer, from T5X's checkpoint and by the same experiment file."""
    start = f"'{trained[0] / 'checkpoint_40'}'"
    our_trainer(
        folder,
        INITIAL_CHECKPOINT_PATH=start,
        MODEL_DIR="'ours'",
        TRAIN_STEPS=1,
        LEARNING_RATE=1e-9,  # moves nothing that could be seen
    )
    return folder / "ours"


def test_eval_infer_and_our_own_trainer_agree(
    folder: pathlib.Path, trained: tuple[pathlib.Path, str], continued: pathlib.Path
) -> None:
    checkpoint = f"'{trained[0] / 'checkpoint_40'}'"
    t5x_program(folder, "eval", "eval", CHECKPOINT_PATH=checkpoint, EVAL_OUTPUT_DIR="'scores'")
    (line,) = (folder / "scores/inference_eval/pairs_label-metrics.jsonl").read_text().splitlines()
    accuracy = json.loads(line)["accuracy"]
    assert accuracy > 0.9

    t5x_program(folder, "infer", "infer", CHECKPOINT_PATH=checkpoint, INFER_OUTPUT_DIR="'out'")
    answers = folder / "out/pairs_label-predict.jsonl-00000-of-00001"
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    assert len(rows) == 12
    right = [row["prediction"] == row["inputs"]["targets_pretokenized"] for row in rows]
    assert sum(right) / 12 == pytest.approx(accuracy)

    results = json.loads((continued / "results.json").read_text())
    assert results["test"]["accuracy"] == pytest.approx(accuracy)
    (log,) = (continued / "metrics.jsonl").read_text().splitlines()[:1]
    # From the last batch of a run to a batch of the next, the losses stay low: 40 steps' worth.
    assert json.loads(log)["label_loss"] < 0.5 * logged(trained[1], "label_loss")[0]


def test_t5x_goes_on_from_our_checkpoint_and_an_interrupted_run_keeps_to_its_steps(
    folder: pathlib.Path, continued: pathlib.Path
) -> None:
    """Ours, converted, called step 40; 4 steps from there: interrupted after 2, then continued.

    What `convert` writes has the optimizer state of Adafactor, as public checkpoints have; the run
    is AdamW's.
    """
    student = open_source(str(continued))
    files.write_t5x(student, str(folder / "converted"), step=40)
    start = {
        "INITIAL_CHECKPOINT_PATH": "'converted'",
        "MODEL_DIR": "'longer'",
        "LOG_PERIOD": 2,
        "EVAL_PERIOD": 2,
        "LEARNING_RATE": 1e-3,
        "DROPOUT_RATE": 0.1,
        "USE_HARDWARE_RNG": True,
    }
    t5x_program(folder, "train", "finetune", TRAIN_STEPS=2, **start)
    log = t5x_program(folder, "train", "finetune", TRAIN_STEPS=4, **start)
    steps = {path.name for path in (folder / "longer").glob("checkpoint_*")}
    assert steps == {"checkpoint_40", "checkpoint_42", "checkpoint_44"}
    restored = files.T5XSource(str(folder / "longer/checkpoint_40"))
    for name in student.shapes():
        np.testing.assert_array_equal(restored.read(name), student.read(name), err_msg=name)
    assert logged(log, "learning_rate/current")[-1] == pytest.approx(1e-3 / 4)
    assert "Initializing param=state/param_states" not in log
    assert "Using fast RngBitGenerator PRNG" in log


def test_what_is_unset_is_named_in_one_line(folder: pathlib.Path) -> None:
    done = run_python(folder, "-m", "t5x.train", *t5x_arguments("finetune"))
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: required macro not set: MODEL_DIR;")


# Reads training data as T5X does, and prints (task id, input tokens, target tokens) of each row.
READ_DATA = """
import json, os, sys
import gin
from t5x import train, gin_utils, utils
from distill_sbs.data.feature_converter import StepByStepFeatureConverter

sys.modules["__main__"] = train  # the gin file imports the running program by that name
arguments = json.loads(sys.argv[1])
seen = []
for flags in arguments:
    gin.clear_config()
    value = lambda start: [flag.split("=", 1)[1] for flag in flags if flag.startswith(start)]
    parent = os.path.dirname(os.path.dirname(train.__file__))
    gin_utils.parse_gin_flags(
        value("--gin_search_paths") + [parent],
        value("--gin_file"),
        [flag.removeprefix("--gin.") for flag in flags if flag.startswith("--gin.")],
    )
    with gin.config_scope("train"):
        data = gin.get_configurable(utils.DatasetConfig)()
    dataset = utils.get_dataset(data, 0, 1, StepByStepFeatureConverter)
    rows = []
    for batch in dataset.unbatch().take(600).as_numpy_iterator():
        tokens = [batch[f"{name}_tokens"].tolist() for name in ("encoder_input", "decoder_target")]
        rows.append((int(batch["decoder_task_ids"].max()), *tokens))
    seen.append(rows)
print(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def joined(folder: pathlib.Path) -> pathlib.Path:
    """A DATA_DIR where `prepare` joined the user's dataset with a teacher that it does not name."""
    with (folder / "outputs.jsonl").open("w") as file:
        for i in range(200):
            row = {"id": f"train-{i}", "label": "ab"[i % 2], "rationale": f"qwen's {i}"}
            file.write(json.dumps(row) + "\n")
    done = run_python(
        folder,
        *("-m", "distill_sbs.prepare", "--dataset=pairs", "--task_file=pairs.py"),
        *("--data_dir=joined", "--teacher=qwen", "--teacher_outputs=outputs.jsonl"),
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder / "joined"


def test_data_are_those_of_the_macros(folder: pathlib.Path, joined: pathlib.Path) -> None:
    """Fraction, rate, mixtures, and a teacher whose outputs were joined by `prepare --teacher`."""
    runs = [
        {"DATA_FRACTION": 0.25},
        {"RATIONALE_RATE": 0.5},
        {"RATIONALE_RATE": 0.0},
        {"MIXTURE_OR_TASK_NAME": "'pairs_finetune'"},
        {"MIXTURE_OR_TASK_NAME": "'pairs_dss_qwen'", "DATA_DIR": f"'{joined}'"},
    ]
    flags = [t5x_arguments("finetune", MODEL_DIR="'none'", **macros) for macros in runs]
    done = run_python(folder, "-c", READ_DATA, json.dumps(flags))
    assert done.returncode == 0, done.stderr[-4000:]
    quarter, half, none, finetune, qwen = json.loads(done.stdout)

    def texts(rows: list, task: int, feature: int = 1) -> set[str]:
        chosen = (row[feature] for row in rows if row[0] == task)
        return {bytes(byte - 3 for byte in row if byte > 2).decode() for row in chosen}

    def inputs(rows: list, task: int) -> set[str]:
        return {text.split(": ", 1)[1] for text in texts(rows, task)}

    assert len(inputs(quarter, 1)) == 50  # of 200; each task is drawn some 300 times
    assert inputs(quarter, 1) == inputs(quarter, 2)
    share = sum(row[0] == 2 for row in half) / len(half)
    assert share == pytest.approx(1 / 3, abs=0.06)
    assert {row[0] for row in none} == {1}
    assert none == finetune
    assert texts(qwen, 1, feature=2) == {"a", "b"}
    assert all(re.fullmatch(r"qwen's \d+", text) for text in texts(qwen, 2, feature=2))


def test_a_folder_of_text_is_pretrained_on(folder: pathlib.Path) -> None:
    """T5X trains on what our trainer trains on, and goes on by finetuning the same parameters."""
    text = folder / "text"
    text.mkdir()
    sentence = "the quick brown fox jumps over the lazy dog and then the dog sleeps again"
    (text / "dogs.txt").write_text("".join(f"{n}: {sentence}\n" for n in range(1_600)))
    macros = {
        "MIXTURE_OR_TASK_NAME": "'text_pretrain'",
        "TASK_FEATURE_LENGTHS": "{'inputs': 32, 'targets': 16}",
        "TEXT_DIR": "'text'",
        "MODEL_DIR": "'pretrained'",
    }
    log = t5x_program(folder, "train", "finetune", **macros)
    losses = logged(log, "label_loss")
    assert losses[-1] < 0.8 * losses[0], losses
    assert "collection=training_eval/text_pretrain" in log
    log = t5x_program(
        folder,
        "train",
        "finetune",
        MODEL_DIR="'taught'",
        INITIAL_CHECKPOINT_PATH="'pretrained'",
        TRAIN_STEPS=1,
        LOG_PERIOD=1,
        EVAL_PERIOD=1,
    )
    assert "Initializing param=state/param_states" not in log
    assert (folder / "taught/checkpoint_41").is_dir()
