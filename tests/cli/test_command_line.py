"""The command line: gin's order and search path, and one clear message for every mistake."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Sequence

import pytest
from absl import flags

from distill_sbs.cli import command_line
from distill_sbs.config import TrainConfig
from distill_sbs.errors import UserError

QUICKSTART = "--gin_file=gin/experiments/quickstart.gin"


def parse(*arguments: str) -> command_line.Configuration[TrainConfig]:
    return command_line.parse(["program", *arguments], TrainConfig, "runs/train.gin")


def message(*arguments: str) -> str:
    with pytest.raises(UserError) as error:
        parse(*arguments)
    return str(error.value)


@pytest.fixture
def empty_folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---------------------------------- what is read -----------------------------


def test_experiment_file_sets_arguments() -> None:
    config = parse(QUICKSTART).config
    assert config.data.mixture_or_task_name == "wordproblems_dss_template"
    assert config.run.initial_checkpoint_path is None
    assert config.data.vocabulary_file == "embedded"
    assert config.optimizer.gradient_clip_norm == 1.0  # the run file's own


@pytest.mark.parametrize(
    "name",
    ["gin/experiments/quickstart.gin", "experiments/quickstart.gin"],
)
def test_shipped_files_are_found_from_any_folder(empty_folder: pathlib.Path, name: str) -> None:
    assert parse(f"--gin_file={name}").config.student.name == "t5_1_1_tiny"


def test_later_file_wins_and_bindings_win_over_files() -> None:
    files = [
        "--gin_file=gin/experiments/cqa_dss_base.gin",
        "--gin_file=gin/models/t5_1_1_small.gin",
        "--gin.MODEL_DIR='x'",
    ]
    config = parse(*files).config
    assert config.student.name == "t5_1_1_small"
    assert config.run.initial_checkpoint_path == (
        "gs://t5-data/pretrained_models/t5x/t5_1_1_small/checkpoint_1000000"
    )
    config = parse("--gin.STUDENT='t5_1_1_large'", "--gin_bindings=BATCH_SIZE = 8", *files).config
    assert (config.student.name, config.batch.batch_size) == ("t5_1_1_large", 8)


def test_random_initialisation_is_none() -> None:
    config = parse(
        "--gin_file=gin/experiments/cqa_dss_base.gin",
        "--gin.MODEL_DIR='x'",
        "--gin.INITIAL_CHECKPOINT_PATH=None",
    ).config
    assert config.run.initial_checkpoint_path is None


def test_model_file_leaves_random_initialisation_alone() -> None:
    config = parse(QUICKSTART, "--gin_file=gin/models/t5_1_1_small.gin").config
    assert config.student.name == "t5_1_1_small"
    assert config.run.initial_checkpoint_path is None


def test_search_path_includes_and_helper_macros(empty_folder: pathlib.Path) -> None:
    folder = empty_folder / "mine"
    folder.mkdir()
    (folder / "shared.gin").write_text("LENGTH = 32\n")
    (folder / "mine.gin").write_text(
        "include 'gin/experiments/quickstart.gin'\n"
        "include 'shared.gin'\n"
        "TASK_FEATURE_LENGTHS = {'inputs': %LENGTH, 'targets': 8, 'task_ids': 8}\n"
    )
    config = parse("--gin_search_paths=elsewhere,mine", "--gin_file=mine.gin").config
    assert config.batch.task_feature_lengths == {"inputs": 32, "targets": 8, "task_ids": 8}
    # A folder of one call is not searched by the next.
    assert "does not exist" in message("--gin_file=mine.gin")


def test_working_directory_comes_first(empty_folder: pathlib.Path) -> None:
    (empty_folder / "experiments").mkdir()
    (empty_folder / "experiments" / "quickstart.gin").write_text("BATCH_SIZE = 3\n")
    assert "TRAIN_STEPS" in message("--gin_file=experiments/quickstart.gin")


def test_run_file_named_by_the_user_is_read_where_he_named_it() -> None:
    for files in (
        [QUICKSTART, "--gin_file=gin/runs/train.gin"],
        ["--gin_file=gin/runs/train.gin", QUICKSTART],
    ):
        assert parse(*files).config.batch.batch_size == 64


def test_operative_configuration_gives_the_same_arguments(empty_folder: pathlib.Path) -> None:
    first = parse("--gin_file=experiments/esnli_dss_base.gin", "--gin.MODEL_DIR='x'")
    (empty_folder / "config.gin").write_text(first.config_text)
    again = parse("--gin_file=config.gin")
    assert again.config == first.config
    assert again.config_text == first.config_text


def test_task_files_and_own_flags(empty_folder: pathlib.Path) -> None:
    def define(flag_values: flags.FlagValues) -> None:
        flags.DEFINE_string("checkpoint", None, "Which.", flag_values=flag_values)

    (empty_folder / "mine.py").write_text("")
    configuration = command_line.parse(
        ["program", QUICKSTART, "--task_file=mine.py", "--checkpoint=there"],
        TrainConfig,
        "runs/train.gin",
        define=define,
    )
    assert configuration.task_files == ("mine.py",)
    assert configuration.flags["checkpoint"] == "there"
    assert "no such file" in message(QUICKSTART, "--task_file=yours.py")


def test_t5x_macros_are_let_through_with_a_note() -> None:
    configuration = parse(QUICKSTART, "--gin.EVAL_STEPS=3")
    assert configuration.notes == (
        "EVAL_STEPS (--gin.EVAL_STEPS) is T5X's macro and has no effect here",
    )


# ---------------------------------- what is refused --------------------------


def test_unset_required_macros_are_named_with_what_sets_them() -> None:
    text = message()
    for name in (
        "MODEL_DIR MIXTURE_OR_TASK_NAME TASK_FEATURE_LENGTHS TRAIN_STEPS BATCH_SIZE"
        " INITIAL_CHECKPOINT_PATH VOCABULARY_FILE"
    ).split():
        assert name in text
    assert "--gin_file=gin/experiments/quickstart.gin" in text

    only_model_dir = message("--gin_file=gin/experiments/cqa_dss_base.gin")
    assert only_model_dir.startswith("required macro not set: MODEL_DIR;")
    assert "--gin.MODEL_DIR=\"'" in only_model_dir


@pytest.mark.parametrize(
    "argument",
    [
        "--gin.DATA_DIR=%gin.REQUIRED",
        "--gin.DATA_DIR=%NOWHERE",
        "--gin.DATA_DIR=[%gin.REQUIRED]",
    ],
)
def test_required_sentinel_never_arrives(argument: str) -> None:
    assert "not set" in message(QUICKSTART, argument)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([QUICKSTART, "--gin.BATHC_SIZE=3"], "unknown macro BATHC_SIZE; did you mean BATCH_SIZE?"),
        ([QUICKSTART, "--gin.batch_size=3"], "did you mean BATCH_SIZE?"),
        ([QUICKSTART, "--gin.train.batchsize=3"], "did you mean batch_size?"),
        ([QUICKSTART, "--gin.trainer.batch_size=3"], "nothing here is called 'trainer'"),
        ([QUICKSTART, "--gin.OPTIMIZER=@adamw()"], "@adamw is refused"),
        (["--gin_fil=x"], "unknown flag --gin_fil; did you mean --gin_file?"),
        (["--steps=3"], "unknown flag --steps"),
        (["quickstart.gin"], "'quickstart.gin' belongs to no flag"),
        (["--dry_run=3"], "Non-boolean"),
        (["--gin_file"], "--help lists the flags"),
        (["--gin.BATCH_SIZE", "3"], "expected --gin.NAME=value"),
        (["--gin_bindings=BATCH_SIZE"], "expected NAME=value"),
    ],
)
def test_mistakes(arguments: Sequence[str], expected: str) -> None:
    assert expected in message(*arguments)


@pytest.mark.parametrize(
    ("argument", "remedy"),
    [
        ("--gin.MODEL_DIR=/tmp/x", "--gin.MODEL_DIR=\"'/tmp/x'\""),
        ("--gin.VOCABULARY_FILE=bytes", "--gin.VOCABULARY_FILE=\"'bytes'\""),
        ("--gin.MODEL_DIR=gs://bucket/x", "--gin.MODEL_DIR=\"'gs://bucket/x'\""),
        ("--gin.PACK=false", "--gin.PACK=False"),
        ("--gin.INITIAL_CHECKPOINT_PATH=none", "--gin.INITIAL_CHECKPOINT_PATH=None"),
        ("--gin.MODEL_DIR=", "it is empty"),
        ("--gin.MODEL_DIR='x", "quotes and brackets"),
    ],
)
def test_values_that_are_no_gin_expression(argument: str, remedy: str) -> None:
    text = message(QUICKSTART, argument)
    assert "not a gin expression" in text
    assert remedy in text


def test_missing_file_says_where_it_looked_and_what_is_near(empty_folder: pathlib.Path) -> None:
    text = message("--gin_search_paths=mine", "--gin_file=quickstrat.gin")
    assert str(empty_folder / "quickstrat.gin") in text
    assert str(empty_folder / "mine" / "quickstrat.gin") in text
    assert "Near matches: gin/experiments/quickstart.gin" in text


def test_mistakes_in_a_file_are_placed(empty_folder: pathlib.Path) -> None:
    complete = "include 'gin/experiments/quickstart.gin'\n"
    for content, expected in (
        ("\nBATHC_SIZE = 3\n", f"{empty_folder}/a.gin:2: unknown macro BATHC_SIZE"),
        ("\n\nBATCH_SIZE = three\n", f"{empty_folder}/a.gin:3: not a gin statement"),
        ("include 'b.gin'\n", f"{empty_folder}/a.gin:1: gin file 'b.gin' does not exist"),
        (f"import no_such_module\n{complete}", "a.gin:1: 'import no_such_module' is refused"),
    ):
        (empty_folder / "a.gin").write_text(content)
        assert expected in message("--gin_file=a.gin")


# ---------------------------------- how it answers ---------------------------


def run(*arguments: str) -> int:
    def main(configuration: command_line.Configuration[TrainConfig]) -> None:
        raise UserError("main said no")

    with pytest.raises(SystemExit) as stop:
        command_line.run(
            main, TrainConfig, "runs/train.gin", "Trains.", argv=["program", *arguments]
        )
    assert isinstance(stop.value.code, int)
    return stop.value.code


def test_user_errors_are_one_message_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--gin_fil=x") == 2
    assert capsys.readouterr().err.startswith("error: unknown flag --gin_fil")
    assert run(QUICKSTART) == 2
    assert capsys.readouterr().err == "error: main said no\n"


def test_dry_run_prints_the_configuration_and_does_not_start(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(QUICKSTART, "--dry_run", "--gin.TRAIN_STEPS=7") == 0
    out = capsys.readouterr().out
    assert "TRAIN_STEPS = 7\n" in out


def test_help_lists_flags_and_macros(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    out = capsys.readouterr().out
    assert out.startswith("Trains.\n")
    for words in ("--gin_file", "--dry_run", "run: MODEL_DIR*, ", "optimizer: OPTIMIZER, LEARNING"):
        assert words in out
    # A screen of it.
    assert len(out.splitlines()) <= 40
    assert max(map(len, out.splitlines())) <= 100
    assert run("--helpfull") == 0
    out = capsys.readouterr().out
    for words in ("MODEL_DIR: required", "LEARNING_RATE: default 5e-05. falls linearly"):
        assert words in out


def test_the_package_lists_its_commands_and_runs_them() -> None:
    root = pathlib.Path(command_line.__file__).parent.parent.parent

    def run_package(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "distill_sbs", *arguments],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(root)},
            timeout=60,
        )

    listed = run_package()
    assert listed.returncode == 0, listed.stderr
    found = re.findall(r"^  (\w+)  ", listed.stdout, re.MULTILINE)
    table = re.findall(r"^\| `(\w+)` \|", (root / "README.md").read_text(), re.MULTILINE)
    assert sorted(found) == sorted(table)
    wrong = run_package("trian")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: unknown command 'trian'; did you mean train?")
    for name in ("resources", "convert"):
        assert run_package(name, *(["--help"] if name == "convert" else [])).returncode == 0
    one = run_package("train", "--no_such_flag")
    assert one.returncode == 2
    assert "unknown flag --no_such_flag" in one.stderr


@pytest.mark.parametrize("argument", ["--help", "--no_such_flag"])
def test_answers_fast_without_jax_or_tensorflow(argument: str) -> None:
    program = (
        "import sys\n"
        "from distill_sbs.cli import command_line\n"
        "from distill_sbs.config import TrainConfig\n"
        "try:\n"
        "  command_line.run(lambda configuration: None, TrainConfig, 'runs/train.gin')\n"
        "finally:\n"
        "  heavy = {'jax', 'tensorflow', 'seqio', 'flax'} & set(sys.modules)\n"
        "  assert not heavy, heavy\n"
    )
    root = pathlib.Path(command_line.__file__).parent.parent.parent
    done = subprocess.run(
        [sys.executable, "-c", program, argument],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
        timeout=60,
    )
    assert done.returncode == (0 if argument == "--help" else 2), done.stderr
    assert "Traceback" not in done.stderr
