"""folder_lock: one process at a time, none blocked by one that is gone. Real processes."""

from __future__ import annotations

import json
import os
import pathlib
import socket
import subprocess
import sys

import pytest

from distill_sbs import folder_lock
from distill_sbs.errors import UserError
from distill_sbs.folder_lock import FolderLock

HOLDER = """
import sys, time
from distill_sbs.folder_lock import FolderLock
FolderLock(sys.argv[1], "training").take()
print("taken", flush=True)
time.sleep(600)
"""


def start_holder(folder: pathlib.Path) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "taken\n"
    return process


def test_another_process_is_refused_until_the_holder_is_killed(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "run"
    holder = start_holder(folder)
    lock = FolderLock(str(folder), "training")
    with pytest.raises(UserError) as error:
        lock.take()
    assert str(error.value).startswith(
        f"{folder} is in use: process {holder.pid} on {socket.gethostname()} began training in "
        f"{folder} at 2"
    )
    holder.kill()
    holder.communicate()
    assert (folder / ".lock").exists()  # what a killed process leaves blocks nobody
    lock.take()
    assert json.loads((folder / ".lock").read_text())["process"] == os.getpid()
    lock.release()
    assert list(folder.iterdir()) == []


def test_two_locks_of_one_process(tmp_path: pathlib.Path) -> None:
    """Two runs of one program exclude each other, too; taking twice is once."""
    with FolderLock(str(tmp_path), "training") as first:
        first.take()
        first.take()
        with pytest.raises(UserError, match="is in use"):
            FolderLock(str(tmp_path), "training").take()
    with FolderLock(str(tmp_path), "training") as second:
        second.take()


def test_nothing_is_made_where_it_is_not_wanted(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "run"
    FolderLock(str(folder), "training").take(create=False)
    FolderLock(str(folder), "training", silent=True).take()
    assert not folder.exists()


def test_a_lock_file_that_was_removed_is_not_the_one_others_see(tmp_path: pathlib.Path) -> None:
    """Between opening and locking the holder before may have removed it."""
    lock = FolderLock(str(tmp_path), "training")
    real = folder_lock.fcntl.flock
    opened = []

    def remove_first(descriptor: int, how: int) -> None:
        if not opened:
            (tmp_path / ".lock").unlink()
        opened.append(descriptor)
        real(descriptor, how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder_lock.fcntl, "flock", remove_first)
        lock.take()
    assert len(opened) == 2
    with pytest.raises(UserError, match="is in use"):
        FolderLock(str(tmp_path), "training").take()
    lock.release()


# ---------------------------------- without locks -----------------------------


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that has no locks, as some network file systems answer."""

    def refuse(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(folder_lock.fcntl, "flock", refuse)


@pytest.mark.usefixtures("no_locks")
def test_a_process_of_this_machine_that_runs_is_refused(tmp_path: pathlib.Path) -> None:
    owner = {"process": os.getppid(), "host": socket.gethostname(), "time": "today"}
    (tmp_path / ".lock").write_text(json.dumps(owner))
    with pytest.raises(UserError, match=rf"process {os.getppid()} on .* began training in"):
        FolderLock(str(tmp_path), "training").take()


@pytest.mark.usefixtures("no_locks")
@pytest.mark.parametrize("host", [socket.gethostname(), "elsewhere"])
def test_one_that_may_be_gone_is_a_warning(
    tmp_path: pathlib.Path, host: str, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    owner = {"process": gone.pid, "host": host, "time": "2026-11-25 12:00"}
    (tmp_path / ".lock").write_text(json.dumps(owner))
    lock = FolderLock(str(tmp_path), "training")
    lock.take()
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith(
        f"warning: process {gone.pid} on {host} began training in {tmp_path} at 2026-11-25 12:00"
    )
    assert "This folder knows no locks: if that process still runs, end it" in warning
    lock.release()
    FolderLock(str(tmp_path), "training").take()
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("no_locks")
@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b'{"process": "x"}'])
def test_a_lock_file_that_says_nothing(tmp_path: pathlib.Path, content: bytes) -> None:
    (tmp_path / ".lock").write_bytes(content)
    FolderLock(str(tmp_path), "training").take()
