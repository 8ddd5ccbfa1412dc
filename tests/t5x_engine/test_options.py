"""options: a part of the configuration out of gin's macros, as T5X's run file reads them."""

from __future__ import annotations

from collections.abc import Iterator

import gin
import pytest

from distill_sbs.config import OptimizerConfig
from distill_sbs.errors import UserError
from distill_sbs.t5x_engine.options import read_options


@pytest.fixture(autouse=True)
def no_configuration() -> Iterator[None]:
    gin.clear_config()
    yield
    gin.clear_config()


def test_macros_by_name_and_defaults_for_the_rest() -> None:
    gin.parse_config("LEARNING_RATE = %RATE\nRATE = 0.5\nOPTIMIZER = 'adafactor'\n")
    assert read_options(OptimizerConfig) == OptimizerConfig(name="adafactor", learning_rate=0.5)
    assert read_options(OptimizerConfig, optimizer="adamw", warmup_steps=3) == OptimizerConfig(
        learning_rate=0.5, warmup_steps=3
    )


def test_what_was_read_stands_in_the_operative_configuration() -> None:
    """T5X writes that to MODEL_DIR."""
    gin.parse_config("LEARNING_RATE = 0.5\nWARMUP_STEPS = 4\n")
    read_options(OptimizerConfig)
    assert "LEARNING_RATE = 0.5\n" in gin.operative_config_str()
    assert "WARMUP_STEPS = 4\n" in gin.operative_config_str()


def test_wrong_values_are_one_line() -> None:
    gin.parse_config("WARMUP_STEPS = '4'\n")
    with pytest.raises(UserError, match="WARMUP_STEPS='4' is text; expected a whole number"):
        read_options(OptimizerConfig)
