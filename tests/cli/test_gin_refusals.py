"""Gin files are data: whatever would run code is refused, by file and line, before anything."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
from collections.abc import Sequence

import pytest

from distill_sbs.cli import command_line
from distill_sbs.config import PrecompileConfig, TrainConfig
from distill_sbs.errors import UserError

QUICKSTART = "include 'gin/experiments/quickstart.gin'\n"

# What each would call, if it were evaluated, is os.system('touch PWNED').
ATTACKS = [
    ("from __gin__ import dynamic_registration\nimport os\n", 2),
    ("import os\n", 2),
    ("import os as harmless\n", 2),
    ("from os import path\n", 2),
    ("import os.path\n", 2),
    ("\n\n# import nothing\nimport antigravity\n", 5),
    ("TRAIN_STEPS = @os.system()\n", 2),
    ("TRAIN_STEPS = @os.system\n", 2),
    ("TRAIN_STEPS = @scope/os.system()\n", 2),
    ("TRAIN_STEPS = @a/b.c/os.system()\n", 2),
    ("STUDENT_OVERRIDES = {'a': [1, (2, {'b': @os.system()})]}\n", 2),
    ("STUDENT_OVERRIDES = {@os.system(): 1}\n", 2),
    ("STUDENT_OVERRIDES = {\n  'a': 1,  # @comment\n  'b': @os.system(),\n}\n", 2),
    ("HELPER = @os.system()\nTRAIN_STEPS = %HELPER\n", 2),
    ("train.train_steps = @os.system()\n", 2),
    ("train:\n  batch_size = 3\n  train_steps = @os.system()\n", 4),
    ("os.system.command = 'touch PWNED'\n", 2),
    ("os.system:\n  command = 'touch PWNED'\n", 3),
    ("train/os.system.command = 'touch PWNED'\n", 2),
    ("TRAIN_STEPS/macro.value = 3\n", 2),
    ("macro.value = 3\n", 2),
    ("singleton.constructor = @os.system\n", 2),
    ("TRAIN_STEPS = @singleton()\n", 2),
    ("train.config = @os.system()\n", 2),
    ("train.config = @TrainConfig\n", 2),
    ("train.config = [@TrainConfig()]\n", 2),
    ("train.batch_size = @TrainConfig()\n", 2),
    ("train.config = @PrecompileConfig()\n", 2),
    ("train.config = %TRAIN_STEPS\n", 2),
    ("train.config = 3\n", 2),
    ("distill_sbs.train.train.train_steps = 3\n", 2),
    ("scope/TRAIN_STEPS = 3\n", 2),
    ("scope/train.train_steps = 3\n", 2),
    ("include 'gin/t5x/finetune.gin'\n", None),
    ("include '/etc/passwd'\n", 2),
    ("include 'no_such_file.gin'\n", 2),
    ("include @os.system()\n", 2),
    ("BATCH_SIZE = %BATCH_SIZE\n", None),
    ("A = %B\nB = [%A]\nBATCH_SIZE = %A\n", None),
    (
        "BATCH_SIZE = %A0\n" + "".join(f"A{n} = %A{n + 1}\n" for n in range(2000)) + "A2000 = 1",
        None,
    ),
    (
        "STUDENT_OVERRIDES = {'a': %A0}\nA40 = 1\n"
        + "".join(f"A{n} = [%A{n + 1}, %A{n + 1}]\n" for n in range(40)),
        None,
    ),
    ("TRAIN_STEPS = open('x')\n", 2),
    ("TRAIN_STEPS = __import__('os').system('touch PWNED')\n", 2),
    ("TRAIN_STEPS = 1 + 1\n", 2),
    ("TRAIN_STEPS = f'{1}'\n", 2),
    ("TRAIN_STEPS = '''3\n", None),
    ("STUDENT_OVERRIDES = {[1]: 2}\n", 2),
    ("STUDENT_OVERRIDES = {'a': 2\n", None),
    ("TRAIN_STEPS = " + "[" * 100_000 + "\n", None),
    ("TRAIN_STEPS = " + "9" * 5_000 + "\n", 2),
    ("  TRAIN_STEPS = 3\n TRAIN_STEPS = 4\n", None),
    ("TRAIN_STEPS = \ud83d\n", None),
    ("TRAIN_STEPS\n", 2),
    ("= 3\n", 2),
    ("\0\n", None),
]


def parse(*arguments: str) -> command_line.Configuration[TrainConfig]:
    return command_line.parse(["program", *arguments], TrainConfig, "runs/train.gin")


@pytest.fixture
def folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "system", lambda _: pytest.fail("code of a gin file ran"))
    return tmp_path


def refuse(*arguments: str) -> str:
    before = set(sys.modules)
    with pytest.raises(UserError) as error:
        parse(*arguments)
    assert "antigravity" not in set(sys.modules) - before
    return str(error.value)


@pytest.mark.parametrize(("attack", "line"), ATTACKS, ids=lambda value: repr(value)[:40])
def test_refused_by_file_and_line(folder: pathlib.Path, attack: str, line: int | None) -> None:
    text = (QUICKSTART + attack).encode("utf-8", "surrogatepass")
    (folder / "a.gin").write_bytes(text)
    told = refuse("--gin_file=a.gin")
    if line is not None:
        assert f"a.gin:{line}: " in told
    assert len(told.splitlines()) <= 12
    # Also where another file includes it, and where the run file is another.
    (folder / "b.gin").write_text("include 'a.gin'\n")
    assert refuse("--gin_file=b.gin")
    with pytest.raises(UserError):
        command_line.parse(["program", "--gin_file=b.gin"], PrecompileConfig, "runs/precompile.gin")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--gin.TRAIN_STEPS=@os.system()"],
        ["--gin.TRAIN_STEPS=[@os.system()]"],
        ["--gin.os.system.command='touch PWNED'"],
        ["--gin_bindings=import os"],
        ["--gin_bindings=from __gin__ import dynamic_registration"],
        ["--gin_bindings=TRAIN_STEPS = 3\nimport os"],
        ["--gin_bindings=TRAIN_STEPS = 3\nos.system.command = 'x'"],
        ["--gin_bindings=include 'a.gin'"],
        ["--gin_bindings=import os\nTRAIN_STEPS = 3"],
        ["--gin.scope/TRAIN_STEPS=3"],
        ["--gin.TRAIN_STEPS/macro.value=3"],
        ["--gin.TRAIN_STEPS=3; import os"],
        ["--gin.train.config=@os.system()"],
        ["--gin.TRAIN_STEPS=" + "[" * 100_000],
        ["--gin.TRAIN_STEPS={[1]: 2}"],
    ],
    ids=lambda value: value[0][:50],
)
def test_refused_on_the_command_line(folder: pathlib.Path, arguments: Sequence[str]) -> None:
    (folder / "a.gin").write_text("import os\n")
    assert "--gin" in refuse("--gin_file=gin/experiments/quickstart.gin", *arguments)


def test_nothing_runs_in_a_process_of_its_own(tmp_path: pathlib.Path) -> None:
    """As in the report: dynamic registration, a reference, and a binding, under --dry_run."""
    (tmp_path / "config.gin").write_text(
        "from __gin__ import dynamic_registration\nimport os\n"
        "TRAIN_STEPS = @os.system()\nos.system.command = 'touch PWNED'\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "distill_sbs.train", "--gin_file=config.gin", "--dry_run"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[2])},
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path}/config.gin:1: ")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "PWNED").exists()


def test_words_in_texts_and_comments_are_only_words(folder: pathlib.Path) -> None:
    (folder / "a.gin").write_text(
        f"{QUICKSTART}# import os\nMODEL_DIR = 'import os @os.system() %NAME'  # @os.system()\n"
        "NOTE = '''\nimport os\n'''\nDATA_DIR = '%NOTE'\nHELPER = %NOTE\n"
        "STUDENT_OVERRIDES = %HELPERS\nHELPERS = {'vocab_size': %SIZE}\nSIZE = 512\n"
        "PRETRAINED_CHECKPOINT_PATH = %HELPER\n"
    )
    config = parse("--gin_file=a.gin").config
    assert config.run.model_dir == "import os @os.system() %NAME"
    assert config.data.data_dir == "%NOTE"
    assert config.student.overrides == {"vocab_size": 512}


def test_own_options_may_be_bound_without_macros(folder: pathlib.Path) -> None:
    (folder / "a.gin").write_text(
        f"{QUICKSTART}train.batch_size = 12\nBATCH_SIZE = 8\ntrain:\n  log_period = %STEPS\n"
        "  student = 't5_1_1_tiny'\nSTEPS = 5\n"
    )
    config = parse("--gin_file=a.gin").config
    assert (config.batch.batch_size, config.run.log_period) == (12, 5)


def test_a_macro_may_stand_for_another_option(folder: pathlib.Path) -> None:
    (folder / "a.gin").write_text(f"{QUICKSTART}EVAL_BATCH_SIZE = %BATCH_SIZE\n")
    assert parse("--gin_file=a.gin").config.evaluation.eval_batch_size == 64


@pytest.mark.parametrize(
    "content", ["include 'a.gin'\n", "include 'b.gin'\n", "include './a.gin'\n"]
)
def test_a_circle_of_includes_is_one_line(folder: pathlib.Path, content: str) -> None:
    (folder / "a.gin").write_text(content)
    (folder / "b.gin").write_text("include 'a.gin'\n")
    told = refuse("--gin_file=a.gin")
    assert ".gin:1: include" in told and "that file is what includes this one" in told
    assert len(told.splitlines()) == 1


def test_includes_without_end_are_refused(folder: pathlib.Path) -> None:
    for number in range(20):  # each twice: 2²⁰ files in all
        (folder / f"{number}.gin").write_text(f"include '{number + 1}.gin'\n" * 2)
    (folder / "20.gin").write_text("")
    assert "more than 200 files are included" in refuse("--gin_file=0.gin")


def test_a_file_twice_is_no_circle(folder: pathlib.Path) -> None:
    (folder / "a.gin").write_text(f"{QUICKSTART}{QUICKSTART}BATCH_SIZE = 12\n")
    assert parse("--gin_file=a.gin").config.batch.batch_size == 12


def test_byte_order_mark_and_other_encodings(folder: pathlib.Path) -> None:
    (folder / "a.gin").write_bytes(b"\xef\xbb\xbf" + QUICKSTART.encode())
    assert parse("--gin_file=a.gin").config.batch.batch_size == 64
    (folder / "a.gin").write_bytes(b"MODEL_DIR = '\xe4'\n")
    assert "a.gin: not UTF-8" in refuse("--gin_file=a.gin")
    (folder / "a.gin").write_bytes(b"#" * (2**20 + 1))
    assert "is it a gin file?" in refuse("--gin_file=a.gin")


def test_values_of_files_are_placed(folder: pathlib.Path) -> None:
    (folder / "a.gin").write_text(f"{QUICKSTART}\nBATCH_SIZE = '64'\n")
    told = refuse("--gin_file=a.gin")
    assert told.startswith(f"{folder}/a.gin:3: BATCH_SIZE='64' is text; expected a whole number")
