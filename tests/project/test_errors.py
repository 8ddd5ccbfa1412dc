"""The messages that every room shares."""

from __future__ import annotations

from distill_sbs.errors import DamagedError, UserError


def test_damage_is_told_on_one_line_with_its_remedy() -> None:
    error = DamagedError("state/d: tensor wo", ValueError("bad chunk\nmore\n"))
    assert isinstance(error, UserError)
    assert str(error) == (
        "state/d: tensor wo cannot be read (bad chunk); it is truncated or damaged, or was not "
        "copied whole: copy it again"
    )
    assert "(EOFError())" in str(DamagedError("file", EOFError()))
