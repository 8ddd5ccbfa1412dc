"""Figures drawn by several processes: the same bytes, whoever drew them, whatever befell them."""

from __future__ import annotations

import os
import pathlib
import sys

import pytest

from distill_sbs.reporting import parallel
from distill_sbs.reporting.findings import Findings, find
from distill_sbs.reporting.run import Model, Run, Scores


@pytest.fixture
def findings(monkeypatch: pytest.MonkeyPatch) -> Findings:
    """Two figures, which two processes share; `sched_getaffinity` is not everywhere."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr(parallel, "_FEWEST_FIGURES_A_PROCESS", 1)
    runs = [
        Run(
            f"{size}/{fraction}",
            "cqa",
            "finetune",
            None,
            Model(size, 1000),
            fraction,
            scores={"test": Scores(0.5)},
        )
        for size in ("small", "large")
        for fraction in (0.5, 1.0)
    ]
    return find(runs, "test")


@pytest.mark.slow
def test_two_processes_give_the_same_bytes(findings: Findings) -> None:
    alone = parallel.draw(findings, range(2))
    here: list[range] = []
    draw = parallel.draw

    def look(found: Findings, numbers: range) -> list[parallel.Drawn]:
        here.append(numbers)
        return draw(found, numbers)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "draw", look)
        drawn, notes = parallel.draw_figures(findings)
    assert drawn == [each.figure for each in alone] and notes == []
    assert [each.name for each in drawn] == ["data_fraction_1", "data_fraction_2"]
    assert here == [range(0, 2, 2)]  # the second was drawn elsewhere


def test_what_a_process_does_not_bring_is_drawn_here(
    findings: Findings, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    """An interpreter that fails, such as one that the system kills for its memory."""
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nkill -KILL $$\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    drawn, _ = parallel.draw_figures(findings)
    assert [each.name for each in drawn] == ["data_fraction_1", "data_fraction_2"]


def test_where_no_process_can_be_started_all_is_drawn_here(
    findings: Findings, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "missing"))
    drawn, _ = parallel.draw_figures(findings)
    assert [each.name for each in drawn] == ["data_fraction_1", "data_fraction_2"]


def test_no_process_is_left_when_drawing_fails(
    findings: Findings, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    program, alive = tmp_path / "python", tmp_path / "alive"
    program.write_text(f"#!/bin/sh\necho $$ >{alive}\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))

    def interrupt(_: Findings, numbers: range) -> list[parallel.Drawn]:
        while not alive.exists() or not alive.read_text():
            pass
        raise KeyboardInterrupt

    monkeypatch.setattr(parallel, "draw", interrupt)
    with pytest.raises(KeyboardInterrupt):
        parallel.draw_figures(findings)
    with pytest.raises(ProcessLookupError):
        os.kill(int(alive.read_text()), 0)
