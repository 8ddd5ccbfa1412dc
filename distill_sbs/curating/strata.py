"""Strata: what kinds of examples there are, and how many of each are taken.

Enters: candidates; the number in each stratum. Leaves: each candidate's stratum; quotas that sum to
what is asked for, p_g ∝ n_g^(1/τ), as LIMA (arXiv 2305.11206) draws its sites with τ = 3.
"""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Callable, Mapping, Sequence

from distill_sbs.curating import rules
from distill_sbs.curating.rules import Candidate
from distill_sbs.errors import UserError, did_you_mean

# Up to this many different gold labels are classes; more are free text.
_MOST_CLASSES = 10
_EQUATION = re.compile(r"[\d\s.,()+\-*/=%]+")
_NUMBER = re.compile(r"\d[\d.,]*")
_QUESTION_WORDS = (
    "how many",
    "how much",
    "how",
    "what",
    "where",
    "which",
    "who",
    "whom",
    "whose",
    "why",
    "when",
)


def name_strata(candidates: Sequence[Candidate], parts: Sequence[str]) -> list[str]:
    """The stratum of each candidate, its parts joined by ` / `.

    Args:
      candidates: all that may be chosen.
      parts: 'dataset'; 'label': the gold label where a dataset has ten different ones at most, the
        form of the equation where it is one (`( # + # )`); 'question': the question's first
        question word; or what a task file registered.

    Raises:
      UserError: an unknown part, or a value of a task file's that is no text.
    """
    known = {
        "dataset": lambda candidate: candidate.dataset,
        "label": _describe_labels(candidates),
        "question": _find_question_word,
        **rules.own_strata(),
    }
    for part in parts:
        if part not in known:
            raise UserError(
                f"--strata={','.join(parts)}: {part!r} is none of {', '.join(known)}"
                f"{did_you_mean(part, known)}"
            )
    names = []
    for candidate in candidates:
        values = [_call(part, known[part], candidate) for part in parts]
        names.append(" / ".join(filter(None, values)) or "all")
    return names


def _call(part: str, find: Callable[[Candidate], str], candidate: Candidate) -> str:
    value = find(candidate)
    if not isinstance(value, str):
        raise UserError(
            f"the stratum {part} gave {value!r:.60} for {candidate.dataset} id {candidate.id!r}; "
            "expected a text"
        )
    return value


def _describe_labels(candidates: Sequence[Candidate]) -> Callable[[Candidate], str]:
    classes: dict[str, set[str]] = collections.defaultdict(set)
    for candidate in candidates:
        classes[candidate.dataset].add(_label_of(candidate))

    def describe(candidate: Candidate) -> str:
        label = _label_of(candidate)
        if _EQUATION.fullmatch(label) and any(character in "+-*/" for character in label):
            return " ".join(_NUMBER.sub("#", label).split())
        return label if len(classes[candidate.dataset]) <= _MOST_CLASSES else ""

    return describe


def _label_of(candidate: Candidate) -> str:
    """The gold label; where there is none, the teacher's."""
    return candidate.label or candidate.teacher_label or ""


def _find_question_word(candidate: Candidate) -> str:
    """The first question word of the sentence that ends in the input's first question mark."""
    before, mark, _ = candidate.input.partition("?")
    if not mark:
        return "no question"
    words = rules.split_words(re.split(r"[.!\n]", before)[-1])
    sentence = f" {' '.join(words)} "
    found = [word for word in _QUESTION_WORDS if f" {word} " in sentence]
    # The first; of those that begin at one place the first named, which is the longest.
    return min(found, key=lambda word: sentence.index(f" {word} "), default="other question")


def share_out(sizes: Mapping[str, int], total: int, temperature: float) -> dict[str, int]:
    """How many to take of each stratum: `total` in all, and of none more than it has.

    p_g ∝ n_g^(1/τ). A stratum that has fewer than its part gives all, and what is left goes to the
    others by the same rule. Parts of one example go by the largest remainder, of equals by name.

    Args:
      sizes: stratum → how many it has.
      total: how many are asked for, at most all.
      temperature: τ: 1 is in proportion to the sizes; the higher, the more alike.

    Raises:
      UserError: there are fewer than `total`, or a temperature that is none.
    """
    if not (math.isfinite(temperature) and temperature > 0):
        raise UserError(f"--temperature={temperature:g}: expected a number above 0, such as 3")
    if total > sum(sizes.values()):
        raise UserError(f"{total:,} are asked for, and there are {sum(sizes.values()):,}")
    weights = {name: size ** (1 / temperature) for name, size in sizes.items() if size}
    taken = dict.fromkeys(sizes, 0)
    open_ones = set(weights)
    left = total
    while open_ones:
        whole = math.fsum(weights[name] for name in sorted(open_ones))
        parts = {name: left * weights[name] / whole for name in sorted(open_ones)}
        full = [name for name, part in parts.items() if part >= sizes[name]]
        if not full:
            for name, part in parts.items():
                taken[name] = math.floor(round(part, 9))
            rest = total - sum(taken.values())
            by_remainder = sorted(
                parts, key=lambda name: (taken[name] - round(parts[name], 9), name)
            )
            for name in by_remainder[:rest]:
                taken[name] += 1
            break
        for name in full:
            taken[name] = sizes[name]
            open_ones.remove(name)
        left = total - sum(taken[name] for name in taken if name not in open_ones)
    return taken
