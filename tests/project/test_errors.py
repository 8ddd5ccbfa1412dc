"""errors: near names, and what disks say in the words of every library that writes here."""

from __future__ import annotations

import errno
import importlib
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

from distill_sbs.errors import DamagedError, UserError, describe_disk_error, did_you_mean, name_disk

ROOT = pathlib.Path(__file__).parent.parent.parent


def test_the_nearest_name() -> None:
    assert did_you_mean("cqa_dss_plam", ["svamp", "cqa_dss_palm"]) == "; did you mean cqa_dss_palm?"
    assert did_you_mean("zzz", ["svamp"]) == ""


def test_damage_is_told_on_one_line_with_its_remedy() -> None:
    error = DamagedError("state/d: tensor wo", ValueError("bad chunk\nmore\n"))
    assert isinstance(error, UserError)
    assert str(error) == (
        "state/d: tensor wo cannot be read (bad chunk); it is truncated or damaged, or was not "
        "copied whole: copy it again"
    )
    assert "(EOFError())" in str(DamagedError("file", EOFError()))


# ---------------------------------- who writes ---------------------------------


def write_with_python(path: pathlib.Path) -> None:
    with path.open("wb") as file:
        file.write(os.urandom(3_000_000))


def write_with_tensorflow(path: pathlib.Path) -> None:
    import tensorflow as tf

    with tf.io.gfile.GFile(str(path), "w") as file:
        file.write("x" * 3_000_000)


def write_records(path: pathlib.Path) -> None:
    import tensorflow as tf

    with tf.io.TFRecordWriter(str(path)) as writer:
        writer.write(os.urandom(3_000_000))


def write_with_tensorstore(path: pathlib.Path) -> None:
    import tensorstore

    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "ocdbt", "base": f"file://{path}/"},
        "metadata": {"shape": [1_000_000], "data_type": "float32"},
    }
    array = tensorstore.open(spec, create=True).result()
    array.write(np.random.default_rng(0).random(1_000_000, np.float32)).result()


def write_with_rust(path: pathlib.Path) -> None:
    import safetensors.numpy

    safetensors.numpy.save_file({"a": np.ones(1_000_000, np.float32)}, str(path))


WRITERS = [
    write_with_python,
    write_with_tensorflow,
    write_records,
    write_with_tensorstore,
    write_with_rust,
]


def told(write, path: pathlib.Path) -> str:
    with pytest.raises(Exception) as failed:
        write(path)
    message = describe_disk_error(failed.value)
    assert message is not None, repr(failed.value)
    assert "\n" not in message
    # Rust names no path, nor does Python where a file is open already.
    assert message.startswith((str(path), os.strerror(errno.ENOSPC), "Perm", "Read-only"))
    return message


@pytest.mark.parametrize("write", WRITERS)
def test_a_full_disk(small_disk: pathlib.Path, write) -> None:
    assert "No space left on device; make room on that disk" in told(write, small_disk / "a")


@pytest.mark.parametrize("write", WRITERS)
def test_a_disk_that_can_only_be_read(small_disk: pathlib.Path, write) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    message = told(write, small_disk / "a")
    assert "Read-only file system; that disk can only be read; choose a folder" in message


@pytest.fixture
def imported() -> None:
    """The libraries that write: another user may not be able to read them."""
    for name in ("tensorflow", "tensorstore", "safetensors.numpy"):
        importlib.import_module(name)


@pytest.mark.parametrize("write", WRITERS)
def test_another_users_folder(imported, another_users_folder: pathlib.Path, write) -> None:
    message = told(write, another_users_folder / "a")
    assert "Permission denied; you may not write or read there" in message


@pytest.mark.parametrize(
    "message",
    [
        # As tensorstore 0.1.86 told them, of an array and of its database.
        'RESOURCE_EXHAUSTED: Error writing "a/c/0" in OCDBT database at local file "/disk/d/": '
        'Error writing local file "/disk/d/12": Failed to write 40113 bytes to file 14: No space '
        "left on device [os_error_code='28'] [source locations='file_util_posix.cc:123']",
        'RESOURCE_EXHAUSTED: Failed writing: "/disk/d/": Failed to write 40113 bytes to file 14: '
        "No space left on device [os_error_code='28']",
    ],
)
def test_both_forms_of_tensorstores_words(message: str) -> None:
    told = describe_disk_error(ValueError(message))
    assert told == "/disk/d/: No space left on device; make room on that disk"


def test_events_that_found_no_room(small_disk: pathlib.Path) -> None:
    """TensorBoard's: TensorFlow tells them of an operation, in several lines."""
    from clu import metric_writers

    writer = metric_writers.SummaryWriter(str(small_disk))
    with open(small_disk / "filler", "wb", buffering=0) as file, pytest.raises(OSError):
        while True:
            file.write(b"x" * 4096)

    def write() -> None:
        for step in range(1000):
            writer.write_scalars(step, {"loss": 1.0})
            writer.flush()

    told = describe_disk_error(raised(write)) or ""
    (small_disk / "filler").unlink()
    writer.close()  # or the disk cannot be taken away
    assert told.startswith(f"{small_disk}/events")
    assert told.endswith(": No space left on device; make room on that disk")


def test_a_file_in_the_place_of_a_folder(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a").write_text("")
    for write in WRITERS[:3]:
        assert "Not a directory; a file stands where" in told(write, tmp_path / "a" / "b")


def test_standard_output_on_a_full_disk() -> None:
    program = (
        "import sys; from distill_sbs.cli import run_main, terminal\n"
        "sys.exit(run_main.run_main(lambda: print('x' * 100)))"
    )
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", program], stdout=full, stderr=subprocess.PIPE, cwd=ROOT
        )
    assert done.returncode == 2
    assert done.stderr == b"error: No space left on device; make room on that disk\n"


# ---------------------------------- what is no disk's --------------------------


def raised(work) -> BaseException:
    with pytest.raises(Exception) as failed:
        work()
    return failed.value


def mistake_after_a_disk_error() -> None:
    try:
        raise PermissionError(errno.EACCES, "Permission denied", "/a")
    except OSError:
        {}["name"]  # noqa: B018


def words_in_data() -> None:
    int("/a; Permission denied")


def text_of_a_user() -> None:
    raise RuntimeError("example 5: the label is 'No space left on device'")


def unconnectable_socket() -> None:
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def refused_connection() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    socket.create_connection(("127.0.0.1", port), timeout=5)


@pytest.mark.parametrize(
    "work",
    [
        mistake_after_a_disk_error,
        words_in_data,
        text_of_a_user,
        unconnectable_socket,
        refused_connection,
    ],
)
def test_another_error_keeps_its_traceback(work) -> None:
    assert describe_disk_error(raised(work)) is None


def test_a_disk_error_is_found_behind_what_was_made_of_it() -> None:
    def wrapped() -> None:
        try:
            raise OSError(errno.ENOSPC, "No space left on device", "/a/b")
        except OSError as error:
            raise RuntimeError("saving failed") from error

    def handled() -> None:
        try:
            raise OSError(errno.ENOSPC, "No space left on device", "/a/b")
        except OSError:
            raise ValueError("saving failed")  # noqa: B904

    for work in (wrapped, handled):
        assert describe_disk_error(raised(work)) == (
            "/a/b: No space left on device; make room on that disk"
        )


def test_a_disk_without_a_path_is_named_by_its_folder() -> None:
    cause = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    error = ValueError("a library's own words")
    error.__cause__ = cause
    name_disk(error, "runs/a")
    assert describe_disk_error(error) == (
        "runs/a/: No space left on device; make room on that disk"
    )
