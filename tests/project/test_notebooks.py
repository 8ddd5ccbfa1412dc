"""The notebooks of docs/: their cells run, with fewer steps, as they stand there."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def read_cells(path: pathlib.Path, kind: str) -> list[str]:
    cells = json.loads(path.read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == kind]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_cells_run(path: pathlib.Path, tmp_path: pathlib.Path) -> None:
    program = "\n".join(read_cells(path, "code"))
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "NOTEBOOK_FOLDER": str(tmp_path / "notebook"),
        "NOTEBOOK_STEPS": "4",
        "MPLBACKEND": "agg",
    }
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "notebook" / "answers.html").read_text().startswith("<!DOCTYPE html>")
    # Nothing is left anywhere else.
    assert [each.name for each in tmp_path.iterdir()] == ["notebook"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_they_were_run_from_top_to_bottom_and_links_lead_somewhere(path: pathlib.Path) -> None:
    cells = json.loads(path.read_text())["cells"]
    counts = [cell["execution_count"] for cell in cells if cell["cell_type"] == "code"]
    assert counts == list(range(1, len(counts) + 1))
    for text in read_cells(path, "markdown"):
        for target in (part.split(")")[0] for part in text.split("](")[1:]):
            if "://" not in target:
                assert (path.parent / target.partition("#")[0]).exists(), target
