"""settings: ranges, and where the current ones come from."""

from __future__ import annotations

import pytest

from distill_sbs.data import settings
from distill_sbs.errors import UserError


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.01])
def test_refuses_a_fraction_outside_its_range(fraction: float) -> None:
    with pytest.raises(UserError, match=r"DATA_FRACTION=.* is not in \(0, 1\]"):
        settings.DataSettings(data_fraction=fraction)


@pytest.mark.parametrize("rate", [-0.1, float("nan"), float("inf")])
def test_refuses_a_rate_that_is_no_weight(rate: float) -> None:
    with pytest.raises(UserError, match="RATIONALE_RATE"):
        settings.DataSettings(rationale_rate=rate)


def test_data_dir_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILL_SBS_DATA_DIR", "/somewhere")
    assert settings.DataSettings().folder == "/somewhere"
    assert settings.DataSettings(data_dir="/elsewhere").folder == "/elsewhere"


def test_provider_is_asked_each_time() -> None:
    rates = iter([0.25, 0.5])
    settings.provide(lambda: settings.DataSettings(rationale_rate=next(rates)))
    try:
        assert [settings.current().rationale_rate for _ in range(2)] == [0.25, 0.5]
    finally:
        settings.provide(settings.DataSettings)
