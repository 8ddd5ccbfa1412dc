"""metrics_file: what a run wrote is read, whatever else stands in the file."""

from __future__ import annotations

import pathlib

import pytest

from distill_sbs.training.metrics_file import read_metrics

GOOD = b'{"step": 5, "loss": 2.5}\n{"step": 10, "loss": 2}\n'
LINES = [{"step": 5, "loss": 2.5}, {"step": 10, "loss": 2}]


@pytest.mark.parametrize(
    ("tail", "told"),
    [
        (b"", None),
        (b"\n\n", None),
        (b'{"step": 15, "lo', "line 3: broken JSON"),
        (b"\xff\xfe\x00\n", "line 3: UTF-16, not UTF-8"),
        (b"5\n", "line 3: a number found, expected an object"),
        (b"[]\nnull\n", "line 3: a list found, expected an object, and 1 more"),
        (b'{"loss": 1.0}\n', "line 3: its step is None"),
        (b'{"step": true}\n', "line 3: its step is True"),
        (b'{"step": NaN}\n', "line 3: its step is nan"),
        (b'{"step": "15"}\n', "line 3: its step is '15'"),
        (b'{"step": 15, "loss": NaN}\n', "line 3: its loss is nan"),
        (b'{"step": 15, "loss": 1e999}\n', "line 3: its loss is inf"),
        (b'{"step": 15, "loss": "low"}\n', "line 3: its loss is 'low'"),
        (b'{"step": 10, "loss": 2}\n', "line 3: step 10 comes after step 10"),
        (b'{"step": -1, "loss": 2}\n', "line 3: step -1 comes after step 10"),
        (b"[" * 100_000 + b"\n", "line 3: JSON that is nested too deeply"),
        (b'{"step": ' + b"9" * 5000 + b"}\n", "line 3: a number that is too long"),
        (b"\x00" * 4096, "line 3: broken JSON"),
    ],
)
def test_what_is_no_line_of_a_run_is_passed_over(
    tmp_path: pathlib.Path, tail: bytes, told: str | None
) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(GOOD + tail)
    lines, wrong = read_metrics(str(tmp_path))
    assert lines == LINES
    assert (wrong is None) == (told is None)
    if told is not None and wrong is not None:
        assert wrong.startswith(told)


def test_lines_after_a_bad_one_are_kept(tmp_path: pathlib.Path) -> None:
    first, second, _ = GOOD.split(b"\n")
    (tmp_path / "metrics.jsonl").write_bytes(first + b"\n5\n" + second + b"\n")
    assert read_metrics(str(tmp_path)) == (LINES, "line 2: a number found, expected an object")


def test_there_is_no_file(tmp_path: pathlib.Path) -> None:
    assert read_metrics(str(tmp_path)) == ([], None)
