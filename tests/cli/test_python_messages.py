"""python_messages: what Python prints of exceptions, warnings and log records is clean."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
HOSTILE = "\x1b]0;owned\x07 \x9b2J \rover \u202etxt [/x] \ud83d"


def run(program: str) -> subprocess.CompletedProcess[str]:
    setup = "from distill_sbs.cli import python_messages\npython_messages.clean_messages()\n"
    return subprocess.run(
        [sys.executable, "-c", f"{setup}HOSTILE = {ascii(HOSTILE)}\n{program}"],
        capture_output=True,
        encoding="utf-8",
        cwd=ROOT,
    )


@pytest.mark.parametrize(
    ("program", "status", "told"),
    [
        ("raise ValueError(HOSTILE)", 1, "ValueError: "),
        ("try: raise ValueError(1)\nexcept ValueError as e: raise KeyError(2) from e", 1, "direct"),
        ("e = OSError('x'); e.add_note(HOSTILE); raise e", 1, "OSError: x"),
        ("raise ExceptionGroup(HOSTILE, [ValueError(HOSTILE)])", 1, "ExceptionGroup: "),
        ("def f(): raise ValueError(HOSTILE)\n"
         "import threading; t = threading.Thread(target=f, name=HOSTILE); t.start(); t.join()",
         0, "Exception in thread "),
        ("class C:\n  def __del__(self): raise ValueError(HOSTILE)\nc = C()\ndel c",
         0, "Exception ignored in"),
        ("import warnings; warnings.warn(HOSTILE)", 0, "UserWarning: "),
        ("import logging; logging.warning('%s', HOSTILE)", 0, "WARNING:root:"),
        ("import logging; logging.getLogger('x').error(HOSTILE)", 0, "\\x1b]0;owned"),
        ("import logging\ntry: raise ValueError(HOSTILE)\nexcept Exception: logging.exception(5)",
         0, "ERROR:root:5\nTraceback"),
        ("from absl import logging; logging.error('%s', HOSTILE)", 0, "\\x1b]0;owned"),
    ],
)  # fmt: skip
def test_nothing_is_obeyed(program: str, status: int, told: str) -> None:
    done = run(program)
    assert done.returncode == status, done.stderr
    assert told in done.stderr and "Logging error" not in done.stderr
    if "HOSTILE" in program:
        assert all(
            part in done.stderr for part in (r"\x1b]0;owned\x07 \x9b2J \r", r"over \u202etxt")
        )
    assert not set("\x1b\x07\x9b\r\u202e") & set(done.stderr)


def test_a_closed_standard_error_is_no_second_error() -> None:
    done = run("import os; os.close(2); raise ValueError(HOSTILE)")
    assert (done.returncode, done.stdout) == (1, "")


def test_programs_of_other_people_keep_their_own_hooks() -> None:
    program = "import sys, distill_sbs; print(sys.excepthook is sys.__excepthook__)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "True\n"


def test_a_program_of_ours_is_watched(tmp_path: pathlib.Path) -> None:
    """A user's own parser warns, in the words of a hostile endpoint's, say."""
    (tmp_path / "in.jsonl").write_text('{"id": "1", "input": "x"}\n')
    (tmp_path / "prompt.toml").write_text(
        'question = "Q: {input}"\nanswer = "{rationale} A: {label}"\n'
    )
    (tmp_path / "parser.py").write_text(
        f"import warnings\nwarnings.warn({ascii(HOSTILE)})\ndef parse(answer, input): return None\n"
    )
    options = [f"--task={tmp_path}", f"--input={tmp_path / 'in.jsonl'}", "--show_prompt=0"]
    done = subprocess.run(
        [sys.executable, "-m", "distill_sbs.extract", *options],
        capture_output=True,
        encoding="utf-8",
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert r"UserWarning: \x1b]0;owned\x07" in done.stderr
    assert not set("\x1b\x07\x9b\r\u202e") & set(done.stderr)
