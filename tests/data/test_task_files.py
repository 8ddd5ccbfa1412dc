"""task files: run by path and once, their errors told by type, file and line."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

from distill_sbs.data import registration
from distill_sbs.data.tasks import task_files
from distill_sbs.errors import UserError

ROOT = pathlib.Path(__file__).parent.parent.parent
REGISTERS = """
from distill_sbs.data import metrics, registration
from distill_sbs.data.dataset import DatasetSpec, Example, RawSplit

def read(source_dir, split):
    return RawSplit(2, lambda: (Example(f"{{split}}-{{i}}", f"{{split}} {{i}}", "yes") for i in range(2)))

registration.register_dataset(
    DatasetSpec("{name}", read, metrics.answers_match, needs_source_dir=False)
)
"""  # noqa: E501


def write(folder: pathlib.Path, text: str | bytes, name: str = "mine.py") -> pathlib.Path:
    folder.mkdir(exist_ok=True, parents=True)
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def load(*paths: object) -> None:
    registration.load_task_files([str(path) for path in paths])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x = 1\ny = {}['nope']\n", "KeyError: 'nope' (line 2)"),
        ("\n\ndef f():\n  return 1 / 0\nf()\n", "ZeroDivisionError: division by zero (line 4)"),
        ("x = 1\n  y = 2\n", "IndentationError: unexpected indent (line 2)"),
        ("a = 1\nb = (\n", "SyntaxError: '(' was never closed (line 2)"),
        ("import nothing_of_that_name", "No module named 'nothing_of_that_name' (line 1)"),
        ("raise SystemExit(3)", "it calls sys.exit(3) (line 1)"),
        ("assert False, 'no'", "AssertionError: no (line 1)"),
        ("x = b'\\x00'.decode('utf-16')", "UnicodeDecodeError"),
        ("\nx: int = 'a\0b'", "source code string cannot contain null bytes"),
        (b"x = '\xe9'", "utf-8"),
        ("x = 1\nx.y\n", "AttributeError: 'int' object has no attribute 'y' (line 2)"),
        (
            "import json\n\njson.loads('{')\n",
            "JSONDecodeError: Expecting property name enclosed in double quotes: line 1 column 2 "
            "(char 1) (line 3; raised in ",
        ),
        (
            "from distill_sbs.data import registration\nregistration.get_dataset('cqaa')",
            "unknown dataset 'cqaa'; did you mean: cqa",
        ),
    ],
)
def test_what_a_task_file_raises(tmp_path: pathlib.Path, text: str | bytes, told: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UserError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path} could not be loaded: ")
    assert told in str(caught.value)


def test_an_interrupted_task_file_stays_an_interruption(tmp_path: pathlib.Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        load(write(tmp_path, "raise KeyboardInterrupt"))


@pytest.mark.parametrize("text", ["", "x = 1\n", "# registration.register_dataset(…)\n"])
def test_a_task_file_that_registers_nothing(tmp_path: pathlib.Path, text: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UserError, match=f"--task_file={path} registers nothing; it should call"):
        load(path)


def test_paths_that_are_no_task_file(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match="is a folder; name a Python file in it"):
        load(tmp_path)
    with pytest.raises(UserError, match=r"expected a Python file, named ….py"):
        load(write(tmp_path, "", "mine.txt"))
    with pytest.raises(UserError, match="no such file"):
        load(tmp_path / "none.py")


def test_a_task_file_runs_once_however_it_is_named(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path, REGISTERS.format(name="once"))
    os.symlink(path, tmp_path / "link.py")
    load(path, path, tmp_path / "link.py", tmp_path / ".." / tmp_path.name / "mine.py")
    assert "once" in registration.DATASETS


def test_two_task_files_of_one_name(tmp_path: pathlib.Path) -> None:
    first = write(tmp_path / "a", REGISTERS.format(name="same_stem_a"), "json.py")
    second = write(tmp_path / "b", REGISTERS.format(name="same_stem_b"), "json.py")
    before = set(sys.modules)
    load(first, second)
    assert {"same_stem_a", "same_stem_b"} <= set(registration.DATASETS)
    new = {name for name in set(sys.modules) - before if "_json_" in name}
    assert len(new) == 2 and sys.modules["json"] is json
    assert str(tmp_path / "a") not in sys.path


def test_an_error_in_a_reader_is_told_by_line(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path, REGISTERS.format(name="breaks") + "\ndef f():\n    return {}['x']\n")
    load(path)
    reader = registration.DATASETS["breaks"].reader
    function = reader.__globals__["f"]  # type: ignore[attr-defined]
    with (
        pytest.raises(UserError, match=f"{path}: KeyError: 'x' .line 13."),
        task_files.tell_errors(),
    ):
        function()
    with pytest.raises(KeyError), task_files.tell_errors():
        raise KeyError("not a task file's")


@pytest.mark.slow
def test_task_files_named_like_modules_of_pythons_library(tmp_path: pathlib.Path) -> None:
    """In the working folder, where `python -m` would import them in the library's place."""
    names = ["array", "random", "json", "typing"]
    write(tmp_path, f"NAMES = {names}\n", "sibling.py")
    for name in names:
        text = REGISTERS.format(name=f"{name}_set")
        write(tmp_path, f"{text}\nimport sibling\nassert {name!r} in sibling.NAMES\n", f"{name}.py")
    datasets = ",".join(f"{name}_set" for name in names)
    command = [sys.executable, "-m", "distill_sbs.prepare", f"--dataset={datasets}"]
    done = subprocess.run(
        [*command, *(f"--task_file={name}.py" for name in names), "--data_dir=data"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    for name in names:
        assert (tmp_path / "data" / f"{name}_set" / "info.json").is_file()
