"""`results.json`: what `train` and `extract --report` write, and what anybody may write.

Enters: a JSON value. Leaves: `Run`s whose every value is of its type and in its range; or a
`SourceError` that names the key, what it is, and what is expected. docs/report.md has the form.
Keys that are not of the form are passed over.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from distill_sbs.errors import SourceError, nearest_names
from distill_sbs.json_lines import name_kind, show_value
from distill_sbs.reporting import words
from distill_sbs.reporting.run import SPLITS, Cost, Model, Run, Scores

KEYS = (
    "mixture",
    "dataset",
    "method",
    "teacher",
    "model",
    "parameters",
    "data_fraction",
    "rationale_rate",
    "seed",
    "seeds",
    "standard_error",
    "train_steps",
    "best_step",
    "validation",
    "test",
    "teacher_accuracy",
    "answer_flops",
    "train_flops",
    "command",
    "source",
)
MOST_NAME = 200
MOST_TEXT = 20_000
# More results than this in one file are no table of a paper.
MOST_IN_A_LIST = 10_000
_MOST_WHOLE = 2**63
_OR_LIST = ", or a list of them"


def read_results(value: object, folder: str, place: str) -> list[Run]:
    """The runs that a `results.json` states: one, or a list of them.

    Args:
      value: the file's JSON.
      folder: the run's folder, as `Run.folder` shall have it.
      place: the file, for messages.

    Raises:
      SourceError: it is of another form.
    """
    if not isinstance(value, list):
        return [_read_one(value, folder, place)]
    if len(value) > MOST_IN_A_LIST:
        raise SourceError(f"{place}: a list of {len(value):,} results; {MOST_IN_A_LIST:,} are read")
    if not value:
        raise SourceError(
            f"{place}: an empty list, expected an object as `train` writes it{_OR_LIST}"
        )
    return [
        _read_one(each, f"{folder}#{number}", f"{place}: result {number}")
        for number, each in enumerate(value, start=1)
    ]


def _read_one(value: object, folder: str, place: str) -> Run:
    if not isinstance(value, dict):
        raise SourceError(
            f"{place}: {name_kind(value)} found, expected an object as `train` writes it{_OR_LIST}"
        )
    form = _Form(value, place)
    mixture = form.text("mixture")
    of_mixture = words.split_mixture(mixture) if mixture else (None, None, None)
    dataset, method, teacher = (
        form.text(key) or named
        for key, named in zip(("dataset", "method", "teacher"), of_mixture, strict=True)
    )
    if dataset is None or method is None:
        raise form.error("it states no mixture, nor dataset and method", "mixture")
    known = words.describe_method(method)
    is_line = method == words.FEW_SHOT
    fraction = form.number("data_fraction", above=0, most=1)
    if fraction is None and not is_line:
        raise form.error("it states no data_fraction, above 0 and up to 1", "data_fraction")
    scores = {split: found for split in SPLITS if (found := form.scores(split)) is not None}
    if not scores and not mixture:  # a run of ours may have none: it was pretrained
        raise form.error('it states no accuracy: "test": {"accuracy": 0.5}', "test")
    name, parameters = form.text("model"), form.whole("parameters", least=1)
    seeds = form.whole("seeds", least=1)
    return Run(
        folder=folder,
        dataset=dataset,
        method=method,
        teacher=teacher,
        model=Model(name or "–", parameters) if (name or parameters) and not is_line else None,
        fraction=None if is_line else fraction,
        rate=form.number("rationale_rate", least=0) if known.has_rate else None,
        seed=form.whole("seed"),
        seeds=seeds or 1,
        standard_error=form.number("standard_error", least=0),
        scores=scores,
        validation_loss=form.loss("validation"),
        teacher_accuracy=form.number("teacher_accuracy", least=0, most=1),
        train_steps=form.whole("train_steps", least=0),
        cost=Cost(
            answer_flops=form.number("answer_flops", least=0),
            train_flops=form.number("train_flops", least=0),
        ),
        command=form.text("command", MOST_TEXT),
        source=form.text("source", MOST_TEXT),
    )


class _Form:
    """The values of one object, each asked for by its key; None where it is missing or null."""

    def __init__(self, values: Mapping[str, object], place: str) -> None:
        self._values = values
        self._place = place

    def error(self, message: str, key: str) -> SourceError:
        """The error for a value that is missing; a key that is near to it is named."""
        near = "" if key in self._values else _near(key, self._values)
        return SourceError(f"{self._place}: {message}{near}")

    def text(self, key: str, most: int = MOST_NAME) -> str | None:
        """A text of a sensible length; blanks alone are none."""
        value = self._values.get(key)
        if value is None:
            return None
        if not isinstance(value, str):
            raise self._wrong(key, value, "text")
        if len(value) > most:
            raise self._wrong(key, value, f"text of at most {most:,} characters")
        return value if value.strip() else None

    def number(
        self,
        key: str,
        least: float = -math.inf,
        above: float = -math.inf,
        most: float = math.inf,
    ) -> float | None:
        """A number in its range."""
        value = self._values.get(key)
        if value is None:
            return None
        bounds = [f"from {least:g}"] if least > -math.inf else []
        bounds += [f"above {above:g}"] if above > -math.inf else []
        bounds += [f"up to {most:g}"] if most < math.inf else []
        expected = " ".join(["a finite number", " and ".join(bounds)]).rstrip()
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(key, value, expected)
        if isinstance(value, int) and abs(value) > _MOST_WHOLE:
            raise self._wrong(key, value, expected)
        number = float(value)
        if not (math.isfinite(number) and least <= number <= most and number > above):
            is_percent = key.endswith("accuracy") and 1 < number <= 100
            hint = " (a share, not percent)" if is_percent else ""
            raise self._wrong(key, value, expected + hint)
        return number

    def whole(self, key: str, least: int = -_MOST_WHOLE) -> int | None:
        """A whole number; 2.2e8 is one."""
        value = self._values.get(key)
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong(key, value, "a whole number")
        if not least <= value <= _MOST_WHOLE:
            bound = f" of {least} or more" if least > -_MOST_WHOLE else " of 64 bits"
            raise self._wrong(key, value, f"a whole number{bound}")
        return value

    def scores(self, split: str) -> Scores | None:
        """What was measured on a split; None without an accuracy."""
        inner = self._inside(split)
        if inner is None:
            return None
        accuracy = inner.number("accuracy", least=0, most=1)
        if accuracy is None:
            return None
        return Scores(
            accuracy,
            inner.whole("examples", least=1),
            inner.number("decoded_tokens", least=0),
        )

    def loss(self, split: str) -> float | None:
        """The loss on a split, in nats a token."""
        inner = self._inside(split)
        return None if inner is None else inner.number("loss", least=0)

    def _inside(self, split: str) -> _Form | None:
        value = self._values.get(split)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self._wrong(split, value, 'an object such as {"accuracy": 0.5}')
        return _Form(value, f"{self._place}: {split}")

    def _wrong(self, key: str, value: object, expected: str) -> SourceError:
        return SourceError(f"{self._place}: {key} is {show_value(value)}; expected {expected}")


def _near(key: str, values: Mapping[str, object]) -> str:
    """The end of a message: which of the keys that mean nothing here may be meant for this one."""
    near = nearest_names(key, [each for each in values if each not in KEYS], most=1)
    return f"; did you mean {key} by {near[0]}?" if near else ""
