"""processor_time: pytest names the tests whose marker `slow` is missing, and fails for some."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

HELPERS = pathlib.Path(__file__).parents[1] / "helpers"
# The same plugin with limits of tenths of a second.
CONFTEST = """
import processor_time

processor_time.SLOW_SECONDS, processor_time.ERROR_SECONDS = 0.3, 0.9

def pytest_configure(config):
    config.addinivalue_line("markers", "slow: …")
    config.pluginmanager.register(processor_time.ProcessorTime({check}))
"""
TESTS = """
import subprocess, sys, time
import pytest

def burn(seconds):
    start = time.process_time()
    while time.process_time() - start < seconds:
        pass

def test_quick(): pass
def test_waits(): time.sleep(1.0)
def test_named(): burn(0.4)
@pytest.mark.slow
def test_marked(): burn(0.4)
@pytest.mark.slow
def test_marked_for_nothing(): pass
@pytest.mark.slow
def test_marked_and_waits(): time.sleep(0.4)
"""
IN_A_PROCESS = """
def test_in_a_process():
    program = "import time\\nwhile time.process_time() < 1.0: pass"
    subprocess.run([sys.executable, "-c", program], check=True)
"""


FIXTURE_OF_SEVERAL = """
import time
import pytest

@pytest.fixture(scope="module")
def costly(): time.sleep(0.4)
@pytest.mark.slow
def test_with_a_costly_fixture(costly): pass
def test_unmarked(): pass
"""

MARKED_AS_A_WHOLE = """
import pytest

pytestmark = pytest.mark.slow
def test_small(): pass
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("check", "more", "status"), [(True, IN_A_PROCESS, 1), (False, IN_A_PROCESS, 0), (True, "", 0)]
)
def test_names_and_fails(tmp_path: pathlib.Path, check: bool, more: str, status: int) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST.format(check=check))
    (tmp_path / "test_them.py").write_text(TESTS + more)
    (tmp_path / "test_others.py").write_text(FIXTURE_OF_SEVERAL)
    (tmp_path / "test_small.py").write_text(MARKED_AS_A_WHOLE)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(HELPERS)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    named = {
        line.partition(" took ")[0].partition("::")[2]: line.rpartition(": ")[2]
        for line in done.stdout.splitlines()
        if " of processor time: " in line
    }
    expected = {"test_named": "make it faster, or mark it slow"}
    expected |= {"test_in_a_process": "make it faster, or mark it slow"} if more else {}
    expected |= {"test_marked_for_nothing": "it need not be marked slow"}
    assert named == expected, done.stdout
    assert done.returncode == status, done.stdout
