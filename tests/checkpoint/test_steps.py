"""steps: a damaged step is told in one line, and a run goes on from the newest whole one."""

from __future__ import annotations

import pathlib
import shutil

import numpy as np
import pytest
import saved_steps
from etils import epath

from distill_sbs.checkpoint import steps
from distill_sbs.checkpoint.checkpointer import Checkpointer
from distill_sbs.errors import DamagedError, UserError


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("saved") / "run"
    saved_steps.save_steps(folder, best_step=20)
    return folder


@pytest.fixture
def run(saved: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(saved, tmp_path / "run"))


def without_checksums(run: pathlib.Path) -> None:
    """As an earlier version saved it."""
    for step in saved_steps.STEPS:
        folder = run / "checkpoints" / str(step)
        shutil.rmtree(folder / "verification")
        progress = folder / "progress/metadata"
        progress.write_text(progress.read_text().replace(', "has_checksums": true', ""))


@pytest.mark.parametrize("damage", saved_steps.DAMAGES)
def test_a_damaged_step_is_told_and_passed_over(run: pathlib.Path, damage: str) -> None:
    newest = run / "checkpoints" / "30"
    saved_steps.DAMAGES[damage](newest)
    with pytest.raises(DamagedError) as error:
        steps.check_step(epath.Path(newest))
    message = str(error.value)
    assert message.startswith(f"{newest} cannot be read (")
    assert message.endswith(f"or take another step of {run}/checkpoints: 10, 20")
    assert "\n" not in message
    step, wrong = steps.find_newest_whole(str(run))
    assert step == 20
    assert wrong == {30: error.value.cause}


@pytest.mark.parametrize("content", [None, b"", b"\xff{", b"5"])
def test_orbaxs_own_metadata_is_not_needed(run: pathlib.Path, content: bytes | None) -> None:
    path = run / "checkpoints/30/_CHECKPOINT_METADATA"
    path.unlink() if content is None else path.write_bytes(content)
    assert steps.find_newest_whole(str(run)) == (30, {})
    checkpointer = Checkpointer(str(run))
    state, progress = checkpointer.restore(30, saved_steps.state_of(0))
    np.testing.assert_array_equal(state["params"]["kernel"], np.arange(12.0).reshape(3, 4) + 30)
    assert progress == steps.Progress({"tiny": 30}, [{"step": 20, "accuracy": 0.5}], 20)
    checkpointer.save(40, saved_steps.state_of(40), progress, saved_steps.DESCRIPTION)
    checkpointer.close()
    assert steps.find_newest_whole(str(run)) == (40, {})


def test_a_damaged_step_is_moved_and_saved_anew(run: pathlib.Path) -> None:
    for place in ("30", "30-2"):
        saved_steps.flip_byte(run / "checkpoints/30/state/manifest.ocdbt")
        assert steps.set_aside(str(run), 30) == epath.Path(run / "damaged" / place)
        assert steps.list_steps(str(run)) == [10, 20]
        checkpointer = Checkpointer(str(run), keep=3)
        _, progress = checkpointer.restore(20, saved_steps.state_of(0))
        checkpointer.save(30, saved_steps.state_of(30), progress, saved_steps.DESCRIPTION)
        checkpointer.close()
        assert steps.find_newest_whole(str(run)) == (30, {})


def test_a_step_whose_best_is_damaged_or_gone_is_passed_over(run: pathlib.Path) -> None:
    """The test at the end of a run is made with the best step."""
    best = run / "checkpoints/20"
    (best / "state/manifest.ocdbt").unlink()
    step, wrong = steps.find_newest_whole(str(run))
    assert step == 10
    assert wrong == {
        20: "state/manifest.ocdbt is missing",
        30: "its best step, 20, is damaged",
    }
    shutil.rmtree(best)
    assert steps.find_newest_whole(str(run)) == (10, {30: "its best step, 20, is no longer there"})


def test_no_whole_step_is_left(run: pathlib.Path) -> None:
    for step in saved_steps.STEPS:
        (run / f"checkpoints/{step}/progress/metadata").write_text("")
    with pytest.raises(DamagedError) as error:
        steps.find_newest_whole(str(run))
    message = str(error.value)
    assert f"every step in {run}/checkpoints cannot be read (30: progress/metadata" in message
    assert message.endswith("or delete that folder to train from the beginning")


def test_nothing_was_saved(tmp_path: pathlib.Path) -> None:
    assert steps.find_newest_whole(str(tmp_path / "nowhere")) == (None, {})
    with pytest.raises(UserError, match=r"no checkpoint of distill_sbs there; give a run's MODEL"):
        steps.find_step_folder(str(tmp_path))


def test_what_is_no_step_is_left_alone(run: pathlib.Path) -> None:
    for name in ("best", "40.orbax-checkpoint-tmp", "050", "run_60", "a-b_7"):
        (run / "checkpoints" / name).mkdir()
    assert steps.list_steps(str(run)) == [10, 20, 30]
    assert steps.find_newest_whole(str(run)) == (30, {})


def test_the_best_step_is_found_else_the_newest(run: pathlib.Path) -> None:
    for place in (run, run / "checkpoints"):
        assert steps.find_step_folder(str(place)).name == "20"
    assert steps.find_step_folder(str(run / "checkpoints/30")).name == "30"
    shutil.rmtree(run / "checkpoints/20")
    assert steps.find_step_folder(str(run)).name == "30"


def test_steps_of_an_earlier_version_are_read(run: pathlib.Path) -> None:
    without_checksums(run)
    assert steps.find_newest_whole(str(run)) == (30, {})
    checkpointer = Checkpointer(str(run))
    state, _ = checkpointer.restore(30, saved_steps.state_of(0))
    assert int(state["step"]) == 30
    checkpointer.close()


@pytest.mark.parametrize(
    "damage", [name for name in saved_steps.DAMAGES if "checksums" not in name]
)
def test_damage_of_an_earlier_versions_step_is_one_line(run: pathlib.Path, damage: str) -> None:
    """All but a byte, which nothing guarded then, is noticed when it is read at the latest."""
    without_checksums(run)
    newest = run / "checkpoints" / "30"
    saved_steps.DAMAGES[damage](newest)
    checkpointer = Checkpointer(str(run))
    try:
        steps.check_step(epath.Path(newest))
        checkpointer.restore(30, saved_steps.state_of(0))
    except DamagedError as error:
        assert str(error).startswith(f"{newest} cannot be read (")
        assert "\n" not in str(error)
    else:
        assert damage in ("one byte of the arrays", "no list of arrays")
    finally:
        checkpointer.close()
