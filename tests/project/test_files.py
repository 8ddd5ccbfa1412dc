"""files: whole or not at all, on the disks that there are."""

from __future__ import annotations

import errno
import os
import pathlib
import stat
import subprocess
import sys
import threading

import pytest
from etils import epath

from distill_sbs import files
from distill_sbs.errors import describe_disk_error

ROOT = pathlib.Path(__file__).parent.parent.parent


def test_a_file_appears_whole_with_its_folder(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "new" / "folder" / "é.txt"
    files.write_file(path, "ä\n\u2028b\n")
    assert path.read_bytes() == "ä\n\u2028b\n".encode()
    assert [each.name for each in path.parent.iterdir()] == ["é.txt"]


def test_after_a_failure_the_file_is_as_it_was(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("before")
    with pytest.raises(RuntimeError), files.open_replacement(path) as file:
        file.write("half")
        file.flush()
        assert path.read_text() == "before"
        raise RuntimeError
    with pytest.raises(UnicodeEncodeError):
        files.write_file(path, "\ud83d")
    assert path.read_text() == "before"
    assert [each.name for each in tmp_path.iterdir()] == ["a.txt"]


def test_mode_and_links_stay(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "secret"
    path.write_text("before")
    path.chmod(0o600)
    (tmp_path / "link").symlink_to("secret")
    files.write_file(tmp_path / "link", "after")
    assert (tmp_path / "link").is_symlink()
    assert path.read_text() == "after"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_name_as_long_as_the_disk_allows(tmp_path: pathlib.Path) -> None:
    path = tmp_path / ("n" * 255)
    files.check_writable(path)
    files.write_file(path, "x")
    assert path.read_text() == "x"


def test_a_device_and_a_pipe_are_written_to_not_replaced(tmp_path: pathlib.Path) -> None:
    files.check_writable("/dev/null")
    files.write_file("/dev/null", "x")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    files.check_writable(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    files.write_file(pipe, "through")
    reader.join(30)
    assert read == ["through"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_standard_output_is_written_to(tmp_path: pathlib.Path) -> None:
    program = "from distill_sbs import files; files.write_file('/dev/stdout', 'said')"
    with (tmp_path / "log").open("w") as log:
        subprocess.run([sys.executable, "-c", program], stdout=log, check=True, cwd=ROOT)
    assert (tmp_path / "log").read_text() == "said"


def test_writable_is_found_out_and_nothing_left(tmp_path: pathlib.Path) -> None:
    files.check_writable(tmp_path / "a" / "b" / "c.txt")
    files.check_writable(tmp_path / "here.txt")
    files.check_writable("gs://a-bucket/a.txt")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("folder", errno.EISDIR),
        ("file/a", errno.ENOTDIR),
        ("file/a/b", errno.ENOTDIR),
        ("n" * 256, errno.ENAMETOOLONG),
        (f"{'n' * 256}/a", errno.ENAMETOOLONG),
    ],
)
def test_what_cannot_be_written_is_refused_by_name(
    tmp_path: pathlib.Path, name: str, number: int
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    for attempt in (files.check_writable, lambda path: files.write_file(path, "x")):
        with pytest.raises(OSError) as refused:
            attempt(tmp_path / name)
        assert refused.value.errno == number
        told = describe_disk_error(refused.value)
        assert told is not None
        assert told.startswith(str(tmp_path)) and ".partial-" not in told
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file", "folder"]


def test_another_users_folder(another_users_folder: pathlib.Path) -> None:
    for attempt in (files.check_writable, lambda path: files.write_file(path, "x")):
        for name in ("a", "b/c"):
            with pytest.raises(PermissionError) as refused:
                attempt(another_users_folder / name)
            told = describe_disk_error(refused.value)
            assert told is not None and told.startswith(str(another_users_folder / name[0]))
            assert "Permission denied; you may not write or read there" in told


# ---------------------------------- folders -----------------------------------


def test_a_folder_takes_the_place_of_another(tmp_path: pathlib.Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "old").write_text("")
    (tmp_path / "link").symlink_to("real")
    with files.replace_folder(tmp_path / "link") as partial:
        (partial / "new").write_text("")
        assert (tmp_path / "real" / "old").exists()
    assert [each.name for each in (tmp_path / "link").iterdir()] == ["new"]
    assert (tmp_path / "link").is_symlink()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["link", "real"]


def test_after_a_failure_the_folder_is_as_it_was(tmp_path: pathlib.Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "old").write_text("")
    with pytest.raises(KeyboardInterrupt), files.replace_folder(tmp_path / "data") as partial:
        (partial / "new").write_text("")
        raise KeyboardInterrupt
    assert [each.name for each in (tmp_path / "data").iterdir()] == ["old"]
    assert [each.name for each in tmp_path.iterdir()] == ["data"]


def test_a_file_is_not_replaced_by_a_folder(tmp_path: pathlib.Path) -> None:
    (tmp_path / "data").write_text("precious")
    with pytest.raises(NotADirectoryError), files.replace_folder(tmp_path / "data"):
        pytest.fail("nothing is to be written")
    assert (tmp_path / "data").read_text() == "precious"


# ---------------------------------- names --------------------------------------


@pytest.mark.parametrize("name", ["[a]", "*", "a?", "[!a]", "plain"])
def test_a_folders_name_is_no_pattern(tmp_path: pathlib.Path, name: str) -> None:
    (tmp_path / "ab").mkdir()
    (tmp_path / "ab" / "other.json").write_text("")
    folder = epath.Path(tmp_path) / name
    folder.mkdir()
    for each in ("1.json", "2.json", "3.txt", ".hidden.json"):
        (folder / each).write_text("")
    found = sorted(folder.glob("*.json"))
    assert found == [folder / "1.json", folder / "2.json"]
    assert list(epath.Path(folder / "missing").glob("*")) == []
