"""convert on disks that are full or read-only: one line, and nothing lost."""

from __future__ import annotations

import os
import pathlib
import resource
import subprocess
import sys

import pytest
from disks import mount_disk
from source_examples import BYTE_SIZED, Memory, write_folder

from distill_sbs.convert import __main__ as command

ROOT = pathlib.Path(__file__).parent.parent.parent
FORMS = ("native", "t5x", "hf")
LARGE = 40_000  # rows of the embedding, 16 values each: 2.5 MB, and as much for the head


def arguments(form: str, given: pathlib.Path, output: pathlib.Path) -> list[str]:
    vocabulary = [] if form == "t5x" else ["--vocabulary_file=bytes"]
    return [f"--to={form}", f"--input={given}", f"--output={output}", "--overwrite", *vocabulary]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("given")
    return write_folder(folder, Memory(**(BYTE_SIZED | {"vocab_size": LARGE})))


def assert_refused(
    form: str,
    given: pathlib.Path,
    output: pathlib.Path,
    message: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Status 2, one line; what stood at `output` stands there, and nothing beside it."""
    output.mkdir(parents=True)
    (output / "precious").write_text("kept")
    before = sorted(output.parent.iterdir())
    assert command.main(["convert", *arguments(form, given, output)]) == 2
    error = capfd.readouterr().err
    assert error.startswith(f"error: --output={output} cannot be written (")
    assert error.count("\n") == 1 and message in error, error
    assert [child.name for child in output.iterdir()] == ["precious"]
    assert sorted(output.parent.iterdir()) == before
    # A folder that is not there yet is not there afterwards, nor what is above it.
    assert command.main(["convert", *arguments(form, given, output.parent / "a" / "b")]) == 2
    assert sorted(output.parent.iterdir()) == before


@pytest.mark.parametrize("form", FORMS)
def test_a_full_disk(
    form: str, given: pathlib.Path, tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with mount_disk(tmp_path / "disk", "1m"):
        output = tmp_path / "disk" / "out"
        assert_refused(form, given, output, "No space left on device; make room", capfd)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_a_limit_on_files(
    form: str, given: pathlib.Path, tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, hard))
    try:
        assert_refused(form, given, tmp_path / "new" / "out", "File too large", capfd)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("form", FORMS)
def test_a_disk_that_can_only_be_read(
    form: str, given: pathlib.Path, tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    disk = tmp_path / "disk"
    with mount_disk(disk, "1m"):
        (disk / "precious").write_text("kept")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        for output in (disk / "new", disk / "a" / "new"):
            assert command.main(["convert", *arguments(form, given, output)]) == 2
            error = capfd.readouterr().err
            assert error.count("\n") == 1 and "Read-only file system; that disk can" in error
        assert [child.name for child in disk.iterdir()] == ["precious"]


@pytest.mark.slow
def test_orbax_is_quiet_where_nobody_set_up_a_log(
    given: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """As a user runs it."""
    done = subprocess.run(
        [
            *("bash", "-c", 'ulimit -f 500; exec "$@"', "bash"),  # KiB
            sys.executable,
            "-m",
            "distill_sbs.convert",
            *arguments("native", given, tmp_path / "out"),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "File too large" in done.stderr, done.stderr
    assert list(tmp_path.iterdir()) == []
