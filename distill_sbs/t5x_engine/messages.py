"""What a T5X user reads from us: one line for what can be mended, nothing for what is meant.

Enters: our functions that T5X or gin calls. Leaves: the same, a `UserError` in them answered as our
own entry points do: `error: …` and exit status 2. gin would wrap it in a traceback of its own.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import NoReturn, ParamSpec, TypeVar

from tensorflow import errors as tensorflow_errors

from distill_sbs.cli import terminal
from distill_sbs.errors import UserError

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def one_line_errors(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Decorates a function: SystemExit with status 2 where it raises `UserError`.

    TensorFlow's errors, a bucket that cannot be reached, are answered likewise.
    """

    @functools.wraps(function)
    def answer(*arguments: Arguments.args, **keywords: Arguments.kwargs) -> Result:
        try:
            return function(*arguments, **keywords)
        except UserError as error:
            _stop(str(error), error)
        except tensorflow_errors.OpError as error:
            _stop(error.message, error)

    return answer


def _stop(message: str, cause: Exception) -> NoReturn:
    terminal.say(f"error: {message}", stderr=True)
    raise SystemExit(2) from cause


# Two lines for every tensor of the optimizer, whose state we do not restore; and a warning of T5X's
# that `configuration.data_seed` has answered.
_EXPECTED_WARNINGS = (
    "Not restoring param=state/param_states/",
    "Initializing param=state/param_states/",
    "Providing a random seed for the train dataset with `checkpoint_train_ds=False`",
)


def _is_unexpected(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_EXPECTED_WARNINGS)


def drop_expected_warnings() -> None:
    """Silences warnings of T5X about what `gin/t5x/finetune.gin` does on purpose."""
    logger = logging.getLogger("absl")
    if _is_unexpected not in logger.filters:
        logger.addFilter(_is_unexpected)
