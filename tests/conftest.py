"""Shared fixtures: the folder with published raw data, and silence from TensorFlow."""

from __future__ import annotations

import os
import pathlib
import tempfile
from collections.abc import Iterator

import processor_time
import pytest
from disks import mount_disk

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Two workers share two cores; torch's threads would wait for one another by turning in circles.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# One program is compiled once, however many tests run it.
_compiled = tempfile.TemporaryDirectory(prefix="compiled_")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _compiled.name)
# What compiles faster than this is faster compiled than looked up.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
# Tests compile much and compute little: half the time goes if machine code is not optimised. XLA's
# passes over the program stay. The quickstart of CI runs as shipped; =0 runs the tests so, too.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--check-slow",
        action="store_true",
        help="fail where a test without the marker slow takes more than "
        f"{processor_time.ERROR_SECONDS:.0f} s of processor time",
    )


def pytest_configure(config: pytest.Config) -> None:
    check = config.getoption("--check-slow")
    config.pluginmanager.register(processor_time.ProcessorTime(check), "processor_time")


@pytest.fixture(scope="session")
def source_dir() -> pathlib.Path:
    """The published raw data; skips, saying so, where it is not at hand."""
    folder = os.environ.get("DISTILL_SBS_SOURCE_DIR")
    if not folder:
        pytest.skip("DISTILL_SBS_SOURCE_DIR is unset: the published raw data is not at hand")
    return pathlib.Path(folder)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A small prepared dataset `tiny`: 40 training, 8 validation and 8 test rows.

    Row i of training asks "question i", its gold label is "yes i", its teacher `gpt` says
    "no i" because "rationale i"; every tenth output could not be parsed.
    """
    from distill_sbs.data import metrics, registration
    from distill_sbs.data.dataset import DatasetSpec, Example, RawSplit, TeacherOutput
    from distill_sbs.data.records import build

    sizes = {"train": 40, "validation": 8, "test": 8}

    def read(_: object, split: str) -> RawSplit:
        def examples():
            for i in range(sizes[split]):
                parsed = i % 10 != 9
                output = TeacherOutput(
                    f"no {i}" if parsed else None, f"rationale {i}" if parsed else None
                )
                yield Example(f"{split}-{i}", f"question {i}", f"yes {i}", {"gpt": output})

        return RawSplit(sizes[split], examples)

    spec = DatasetSpec("tiny", read, metrics.answers_match, ("gpt",), needs_source_dir=False)
    if "tiny" not in registration.DATASETS:
        registration.register_dataset(spec)
    registration.load_task_files()
    folder = tmp_path_factory.mktemp("data")
    build.prepare_dataset(spec, None, str(folder), None)
    return folder


@pytest.fixture
def tiny_settings(tiny_data: pathlib.Path):
    """Settings that read `tiny` with ByT5's bytes; `tiny_settings(rationale_rate=…)` changes."""
    from distill_sbs.data import settings

    def use(**changes: object) -> settings.DataSettings:
        chosen = settings.DataSettings(
            **{"data_dir": str(tiny_data), "vocabulary_file": "bytes", **changes}
        )
        settings.use(chosen)
        return chosen

    use()
    yield use
    settings.provide(settings.DataSettings)


@pytest.fixture(scope="session")
def real_data(source_dir: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """All published data, prepared once."""
    from distill_sbs.data import registration
    from distill_sbs.data.records import build

    registration.load_task_files()
    folder = tmp_path_factory.mktemp("real_data")
    for name in ("cqa", "svamp", "asdiv", "esnli", "anli1"):
        # The training split of ANLI is not among the files at hand.
        splits = ["validation", "test"] if name == "anli1" else None
        spec = registration.get_dataset(name)
        build.prepare_dataset(spec, str(source_dir), str(folder), splits)
    return folder


@pytest.fixture
def real_settings(real_data: pathlib.Path, source_dir: pathlib.Path):
    """Settings that read the published data with T5's vocabulary."""
    from distill_sbs.data import settings

    vocabulary = source_dir.parent / "vocab" / "spiece.model"
    settings.use(settings.DataSettings(str(real_data), vocabulary_file=str(vocabulary)))
    yield
    settings.provide(settings.DataSettings)


@pytest.fixture
def small_disk(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A disk of 1 MiB; skips where none can be mounted."""
    with mount_disk(tmp_path / "disk", "1m") as folder:
        yield folder


@pytest.fixture
def another_users_folder(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder of root's, as seen by somebody else; skips where this is not root."""
    if os.geteuid() != 0:
        pytest.skip("only root can look through the eyes of another user")
    folder = tmp_path / "roots"
    folder.mkdir(mode=0o755)
    for each in tmp_path.parents:  # pytest's folders are root's alone
        if each.stat().st_mode & 0o005 != 0o005:
            each.chmod(each.stat().st_mode | 0o055)
    tmp_path.chmod(0o755)
    os.seteuid(65534)
    try:
        yield folder
    finally:
        os.seteuid(0)
