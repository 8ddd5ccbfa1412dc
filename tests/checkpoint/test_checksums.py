"""checksums: whatever changes in a step's files is noticed, and the file is named."""

from __future__ import annotations

import json
import pathlib
import shutil
import zlib

import orbax.checkpoint as ocp
import pytest
import saved_steps
from etils import epath

from distill_sbs.checkpoint import checksums


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("saved") / "run"
    saved_steps.save_steps(folder)
    return folder / "checkpoints" / "30"


@pytest.fixture
def step(saved: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(saved, tmp_path / "30"))


def find_damage(step: pathlib.Path) -> str | None:
    return checksums.find_damage(epath.Path(step))


def test_every_file_has_its_sum(step: pathlib.Path) -> None:
    """Under the name that it has now, not the one that it was written under."""
    (sums,) = (step / "verification").glob("*.json")
    files = [str(path.relative_to(step)) for path in saved_steps.files_of(step)]
    assert sorted(json.loads(sums.read_text())) == [
        name for name in files if not name.startswith("verification/")
    ]
    assert any(name.startswith("state/ocdbt.process_0/d/") for name in files)
    assert find_damage(step) is None


def test_orbax_restores_the_sums_too(step: pathlib.Path) -> None:
    with ocp.Checkpointer(checksums.ChecksumHandler()) as reader:
        sums = reader.restore(epath.Path(step) / checksums.FOLDER)
    content = (step / "progress/metadata").read_bytes()
    assert sums["progress/metadata"] == (len(content), zlib.crc32(content))


def test_one_byte_of_any_file_is_noticed(step: pathlib.Path) -> None:
    for path in saved_steps.files_of(step):
        before = path.read_bytes()
        for position in {0, len(before) // 2, len(before) - 1}:
            saved_steps.flip_byte(path, position)
            damage = find_damage(step)
            assert damage is not None, (path, position)
            if path.parent.name != "verification":
                assert damage == f"{path.relative_to(step)} has changed: its checksum differs"
            path.write_bytes(before)
    assert find_damage(step) is None


def test_a_missing_a_shorter_and_a_longer_file(step: pathlib.Path) -> None:
    path = step / "state/manifest.ocdbt"
    content = path.read_bytes()
    path.write_bytes(content + b"x")
    size = len(content)
    assert find_damage(step) == (
        f"state/manifest.ocdbt has {size + 1:,} bytes, {size:,} were written"
    )
    path.unlink()
    assert find_damage(step) == "state/manifest.ocdbt is missing"
    path.mkdir()
    assert find_damage(step) == "state/manifest.ocdbt is missing"


def test_the_sum_is_crc_32(tmp_path: pathlib.Path) -> None:
    """The check value of CRC-32: that of the text 123456789."""
    (tmp_path / "file").write_text("123456789")
    assert checksums._sum_up(epath.Path(tmp_path / "file")) == (9, 0xCBF43926)
