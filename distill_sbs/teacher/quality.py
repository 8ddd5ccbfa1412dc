"""How good a teacher's outputs are: the figures of a report, and the teacher as a baseline.

Enters: judged answers, one an input. Leaves: a `Quality`: counts, distributions, examples of what
went wrong. Memory grows by 8 bytes a rationale and with the number of different labels.
"""

from __future__ import annotations

import array
import collections
import dataclasses
import json
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from distill_sbs import files, json_lines
from distill_sbs.data import metrics
from distill_sbs.data.dataset import Example, TeacherOutput
from distill_sbs.data.readers import published, responses, thinking
from distill_sbs.data.readers.responses import AnswerIndex, ResponseRow, Selection
from distill_sbs.teacher import parsing
from distill_sbs.teacher.prompts import Prompt

# Examples shown of every kind of failure.
EXAMPLES_SHOWN = 2

_WORD = re.compile(r"[^\W_]+")
# What a rationale that only announces its label is made of, besides the label.
_ANNOUNCING = frozenset(
    "a an the so is are be must answer label choice correct option it this that therefore hence "
    "because thus of in to a".split()
)


@dataclasses.dataclass(frozen=True)
class AnsweredExample:
    """One input with what the teacher made of it.

    Attributes:
      example: id, input, gold label.
      label: the teacher's; None where nothing could be read, or nothing came.
      rationale: likewise.
      raw: what the teacher said; None where it is not at hand.
      problem: why there is no label, in words.
      failed: whether the example failed for good: no answer came.
      had_thinking: whether a thinking part was left out of the response.
    """

    example: Example
    label: str | None
    rationale: str | None
    raw: str | None = None
    problem: str | None = None
    failed: bool = False
    had_thinking: bool = False


class Quality:
    """The figures of some judged answers. `is_correct` compares a gold label with a teacher's."""

    def __init__(self, is_correct: Callable[[str, str], bool]) -> None:
        self._is_correct = is_correct
        self.examples = self.parsed = self.failed = self.gold = self.agreeing = 0
        self.parsed_with_gold = self.with_thinking = 0
        self.holds_label = self.nothing_but_label = 0
        self.problems: collections.Counter[str] = collections.Counter()
        self.labels: collections.Counter[str] = collections.Counter()
        self.gold_labels: collections.Counter[str] = collections.Counter()
        self.shown: dict[str, list[AnsweredExample]] = {}
        self._words: collections.Counter[int] = collections.Counter()
        self._rationales = array.array("Q")

    def add(self, judged: AnsweredExample) -> None:
        """Counts one answer."""
        self.examples += 1
        self.with_thinking += judged.had_thinking
        gold = judged.example.label
        if gold is not None:
            self.gold += 1
            self.gold_labels[gold] += 1
        if judged.label is None or judged.rationale is None:
            self.failed += judged.failed
            problem = judged.problem or "unparsed"
            self.problems[problem] += 1
            self._show(problem, judged)
            return
        self.parsed += 1
        self.labels[judged.label] += 1
        if gold is not None:
            self.parsed_with_gold += 1
            if self._is_correct(gold, judged.label):
                self.agreeing += 1
            else:
                self._show("label differs from gold", judged)
        self._words[len(judged.rationale.split())] += 1
        self._rationales.append(responses.hash_text(judged.rationale))
        self.holds_label += holds_the_label(judged.rationale, judged.label)
        if says_nothing_but_the_label(judged.rationale, judged.label):
            self.nothing_but_label += 1
            self._show("rationale says nothing but the label", judged)

    def _show(self, kind: str, judged: AnsweredExample) -> None:
        shown = self.shown.setdefault(kind, [])
        if len(shown) < EXAMPLES_SHOWN:
            shown.append(judged)

    @property
    def accuracy(self) -> float | None:
        """Share of the examples with a gold label whose label is right, 0 to 1; unparsed: wrong."""
        return self.agreeing / self.gold if self.gold else None

    @property
    def mean_words(self) -> float | None:
        """Mean length of the rationales."""
        total = sum(words * count for words, count in self._words.items())
        return total / self.parsed if self.parsed else None

    def words_quantile(self, share: float) -> int | None:
        """The length in words that `share` of the rationales do not exceed."""
        if not self.parsed:
            return None
        seen = 0
        for words in sorted(self._words):
            seen += self._words[words]
            if seen >= share * self.parsed:
                return words
        return max(self._words)

    def words_histogram(self, bins: int = 8) -> list[tuple[int, int, int]]:
        """(from, to, rationales) of equally wide ranges of length in words."""
        if not self.parsed:
            return []
        low, high = min(self._words), max(self._words)
        width = max(1, -(-(high - low + 1) // bins))
        ranges = []
        for start in range(low, high + 1, width):
            count = sum(self._words[words] for words in range(start, start + width))
            ranges.append((start, min(start + width - 1, high), count))
        return ranges

    @property
    def duplicates(self) -> int:
        """Rationales that stand elsewhere too, word for word, less one of each."""
        numbers = np.frombuffer(self._rationales, np.uint64) if self._rationales else np.zeros(0)
        return len(numbers) - len(np.unique(numbers))

    def as_dict(self) -> dict[str, object]:
        """The figures as JSON; shares are 0 to 1."""
        parsed = max(self.parsed, 1)
        return {
            "examples": self.examples,
            "parsed": self.parsed,
            "unparsed": self.examples - self.parsed,
            "failed": self.failed,
            "with_thinking": self.with_thinking,
            "with_gold_label": self.gold,
            "agreeing": self.agreeing,
            "accuracy": self.accuracy,
            "problems": dict(self.problems.most_common()),
            "rationale_words": {
                "mean": self.mean_words,
                **{f"p{100 * share:g}": self.words_quantile(share) for share in (0.05, 0.5, 0.95)},
                "max": max(self._words, default=None),
            },
            "duplicate_rationales": self.duplicates,
            "rationales_with_label": self.holds_label / parsed,
            "rationales_nothing_but_label": self.nothing_but_label,
            "labels": dict(self.labels.most_common(20)),
            "gold_labels": dict(self.gold_labels.most_common(20)),
            "different_labels": len(self.labels),
            "different_gold_labels": len(self.gold_labels),
        }


def holds_the_label(rationale: str, label: str) -> bool:
    """Whether the label stands in the rationale, the outer parentheses of an expression aside."""
    if label.startswith("(") and label.endswith(")"):
        label = label[1:-1].strip()
    return label.casefold() in rationale.casefold()


def says_nothing_but_the_label(rationale: str, label: str) -> bool:
    """Whether nothing is left of a rationale without the label's words and announcing ones."""
    of_label = set(_WORD.findall(label.casefold()))
    words = [word for word in _WORD.findall(rationale.casefold()) if word not in of_label]
    return all(word in _ANNOUNCING for word in words)


# ---------------------------------- judging ----------------------------------


def judge_index(
    examples: Iterable[Example], index: AnswerIndex, selection: Selection, prompt: Prompt | None
) -> Iterator[AnsweredExample]:
    """Judges the answers of output files, one an input; what was not kept has no label.

    Raises:
      SourceError: an answer was given to another input text.
    """
    for example in examples:
        rows = index.answers(example.id)
        for each in rows if example.input else ():  # '': the inputs are not at hand
            responses.check_same_input(each, example.input, ", ".join(index.paths))
        kept = selection.choose(rows, example.label)
        row = next(iter(kept or rows), None)
        output: TeacherOutput = responses.output_of(kept)
        raw = None if row is None else row.get("raw")
        failed = bool(rows) and all(each.get("error") for each in rows)
        problem = None
        if output.label is None:
            problem = _problem(prompt, example, row, failed)
        layout = "" if prompt is None else prompt.answer
        had_thinking = thinking.find_final_part(raw or "", layout).had_thinking
        yield AnsweredExample(
            example, output.label, output.rationale, raw, problem, failed, had_thinking
        )


def _problem(prompt: Prompt | None, example: Example, row: ResponseRow | None, failed: bool) -> str:
    if row is None:
        return "not asked yet"
    if failed:
        return f"failed: {row['error']}"
    if row.get("label") is not None:
        return "dropped: label differs from gold"
    if prompt is None:
        return "unparsed"
    response, finish_reason = row.get("raw") or "", row.get("finish_reason")
    return parsing.parse(prompt, example.input, response, finish_reason).problem or "unparsed"


def judge_published(
    examples: Iterable[Example], texts: Iterable[str], dataset: str, prompt: Prompt
) -> Iterator[AnsweredExample]:
    """Judges raw texts that go with the inputs by position, as `prepare` reads them.

    For the published datasets that is by the published rules, whose figures are known;
    else by the prompt's layout.
    """
    layout = published.LAYOUTS.get("svamp" if dataset == "asdiv" else dataset)
    for example, raw in zip(examples, texts, strict=True):
        ours = parsing.parse(prompt, example.input, raw)
        if layout is None:
            yield AnsweredExample(
                example,
                ours.label,
                ours.rationale,
                raw,
                ours.problem,
                had_thinking=ours.had_thinking,
            )
            continue
        output = layout.parse_output(raw)
        problem = None
        if output.label is None:
            problem = ours.problem or "refused by the published rules"
        yield AnsweredExample(
            example,
            output.label,
            output.rationale,
            raw,
            problem,
            had_thinking=ours.had_thinking,
        )


def choose_comparison(equations: bool) -> Callable[[str, str], bool]:
    """How labels are compared: by value, or word for word."""
    return metrics.equations_match if equations else metrics.answers_match


def measure(judged: Iterable[AnsweredExample], equations: bool) -> Quality:
    """The figures of `judged`."""
    quality = Quality(choose_comparison(equations))
    for each in judged:
        quality.add(each)
    return quality


# ---------------------------------- baseline ---------------------------------


def write_results(
    folder: str, dataset: str, teacher: str, model: str | None, split: str, quality: Quality
) -> dict[str, object]:
    """Adds a split to `results.json` in `folder`: the teacher's few-shot accuracy, as a run's.

    There is nothing that was trained, so fraction, λ and seed are null and the steps are 0; reports
    draw such a line across all fractions.
    """
    path = pathlib.Path(folder) / "results.json"
    results: dict[str, object] = {
        "mixture": f"{dataset}_teacher_{teacher}",
        "method": "few_shot_cot",
        "teacher": teacher,
        "model": model,
        "data_fraction": None,
        "rationale_rate": None,
        "seed": None,
        "train_steps": 0,
        "best_step": 0,
        "validation": {"accuracy": None},
        "test": {"accuracy": None},
    }
    if path.exists():
        earlier = json_lines.read_json(path)
        same = ("mixture", "method")
        if isinstance(earlier, dict) and all(earlier.get(key) == results[key] for key in same):
            results.update(earlier)
    results[split] = {
        "accuracy": quality.accuracy,
        "examples": quality.examples,
        "unparsed": quality.examples - quality.parsed,
    }
    files.write_file(path, json.dumps(results, indent=2) + "\n")
    return results
