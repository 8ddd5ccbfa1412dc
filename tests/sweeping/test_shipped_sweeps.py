"""Every grid of gin/sweeps/ passes --dry_run as it is shipped."""

from __future__ import annotations

import pathlib

import pytest

from distill_sbs import sweep

ROOT = pathlib.Path(__file__).parent.parent.parent
SWEEPS = sorted(path.stem for path in (ROOT / "gin" / "sweeps").glob("*.gin"))
# On embedded data; the others need the published.
EMBEDDED = {
    "comparisons_methods": 160,
    "quickstart": 12,
    "teacher": 12,
    "wordproblems_methods": 36,
}
PUBLISHED = {"data_fraction": 40, "methods": 16, "model_size": 24, "rationale_rate": 20}


def dry_run(name: str, folder: pathlib.Path, data: pathlib.Path) -> int:
    return sweep.main(
        [
            "sweep",
            f"--gin_file=gin/sweeps/{name}.gin",
            f"--gin.SWEEP_DIR='{folder}'",
            f"--gin.DATA_DIR='{data}'",
            "--dry_run",
        ]
    )


def check(printed: str, runs: int) -> None:
    assert printed.startswith(f"{runs} runs, {runs} to do\n")
    assert "\nequal for all: " in printed
    assert printed.count("\n  python -m distill_sbs.train --gin_file=gin/sweeps/") == runs


def test_all_are_tested() -> None:
    assert set(SWEEPS) == {*EMBEDDED, *PUBLISHED}


@pytest.mark.slow
@pytest.mark.parametrize("name", EMBEDDED)
def test_on_embedded_data(
    name: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dry_run(name, tmp_path / "sweep", tmp_path / "data") == 0
    check(capsys.readouterr().out, EMBEDDED[name])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.realdata
@pytest.mark.parametrize("name", PUBLISHED)
def test_on_published_data(
    name: str,
    real_data: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert dry_run(name, tmp_path / "sweep", real_data) == 0
    check(capsys.readouterr().out, PUBLISHED[name])
    assert list(tmp_path.iterdir()) == []
