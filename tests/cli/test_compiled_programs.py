"""compiled_programs: a second start finds what the first compiled, in a folder of one's own."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

from distill_sbs.cli import compiled_programs

VARIABLES = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
SIZE = "JAX_COMPILATION_CACHE_MAX_SIZE"


@pytest.fixture
def home(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (*VARIABLES, SIZE):
        # Put back afterwards, whatever is set meanwhile.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return tmp_path


def test_a_folder_of_ones_own_by_processor(home: pathlib.Path) -> None:
    compiled_programs.keep_compiled_programs()
    folder = home / ".cache" / "distill_sbs" / "compiled" / compiled_programs.name_processor()
    assert os.environ[VARIABLES[0]] == str(folder)
    assert os.environ[SIZE] == "2147483648"
    assert folder.stat().st_mode & 0o777 == 0o700


def test_what_a_user_has_set_stays(home: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLES[0], "elsewhere")
    compiled_programs.keep_compiled_programs()
    assert os.environ[VARIABLES[0]] == "elsewhere"
    assert not (home / ".cache").exists()


def test_a_folder_that_others_may_write_to_is_not_used(home: pathlib.Path) -> None:
    """What lies there is machine code that would be run."""
    folder = home / ".cache" / "distill_sbs" / "compiled" / compiled_programs.name_processor()
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    compiled_programs.keep_compiled_programs()
    assert VARIABLES[0] not in os.environ
    folder.chmod(0o700)
    compiled_programs.keep_compiled_programs()
    assert os.environ[VARIABLES[0]] == str(folder)


def test_where_no_folder_can_be_made_nothing_is_kept(home: pathlib.Path) -> None:
    (home / ".cache").write_text("a file")
    compiled_programs.keep_compiled_programs()
    assert VARIABLES[0] not in os.environ


PROGRAM = """
from distill_sbs.cli.compiled_programs import keep_compiled_programs
keep_compiled_programs()
import jax, jax.numpy as jnp
import jax.monitoring
hits = []
jax.monitoring.register_event_listener(
    lambda event, **_: hits.append(event) if event.endswith("cache_hits") else None
)
@jax.jit
def work(x):
    for _ in range(40):
        x = jnp.tanh(x @ x) + jnp.sort(x, axis=0)
    return x
work(jnp.ones((8, 8)))
print(len(hits))
"""


@pytest.mark.slow
def test_a_second_start_compiles_nothing(home: pathlib.Path) -> None:
    environment = {
        **{name: value for name, value in os.environ.items() if name not in (*VARIABLES, SIZE)},
        "PYTHONPATH": str(pathlib.Path(__file__).parent.parent.parent),
        # A fast machine compiles the program in less time than is kept by default.
        VARIABLES[1]: "0",
    }
    found = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        found.append(int(done.stdout))
    assert found[0] == 0
    assert found[1] >= 1
