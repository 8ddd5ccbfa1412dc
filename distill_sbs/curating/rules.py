"""Rules of curation: each a pure function of one example that gives the reason to drop it, or None.

Enters: a `Candidate`, an input with what a teacher said of it. Leaves: a reason in a few words.

Hard rules drop; soft ones only lower the score. Both lists follow the recipe that LIMA
(arXiv 2305.11206) gives for Stack Exchange, brought over to rationales: answers that are too short
or too long, in the first person, or that refer to other answers, are left out. A task file adds
rules of its own with `register_rule`.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import re
from collections.abc import Callable, Mapping
from typing import TypeVar

from distill_sbs.errors import UserError

_WORD = re.compile(r"[^\W_]+")
_ENDS = (".", "!", "?", ")", '"', "'", "”")
_FIRST_PERSON = frozenset({"i", "my", "me", "mine", "myself"})
# What only makes sense beside something that the student never sees.
_ELSEWHERE = (
    "as mentioned",
    "mentioned above",
    "as stated above",
    "see above",
    "the previous question",
    "the previous answer",
    "other answers",
    "stack exchange",
    "as an ai",
    "language model",
)
# Words that stand in every text, and so say nothing of a common subject.
_EVERYWHERE = frozenset(
    "a an and are as at be by for from had has have he her his in is it its of on or she so that "
    "the their them they this to was were what which who with".split()
)
_REPEATED_WORDS = 4  # words of what must not be repeated
_FEWEST_SOFT_WORDS = 8
_MOST_COPIED = 0.9


@dataclasses.dataclass(frozen=True)
class Candidate:
    """An example as a rule sees it, with the output of one teacher.

    Attributes:
      dataset: its dataset's name.
      id: its id there.
      input: the text.
      label: the gold label; None where there is none.
      teacher: whose output it is.
      teacher_label: None where the response could not be parsed, or was not asked for.
      rationale: likewise.
      label_is_right: what the dataset's `is_correct` says of the two labels; None where one lacks.
    """

    dataset: str
    id: str
    input: str
    label: str | None
    teacher: str
    teacher_label: str | None
    rationale: str | None
    label_is_right: bool | None = None


# The reason to drop a candidate; None keeps it.
Rule = Callable[[Candidate], str | None]
_OfUser = TypeVar("_OfUser", bound=Rule)


@dataclasses.dataclass(frozen=True)
class Limits:
    """The numbers in the rules.

    Attributes:
      fewest_words: of a rationale.
      most_words: likewise.
      least_overlap: share of a rationale's words that stand in the input, those aside that stand
        everywhere.
      most_repeats: how often the same four words may follow each other.
    """

    fewest_words: int = 3
    most_words: int = 128
    least_overlap: float = 0.1
    most_repeats: int = 2

    def __post_init__(self) -> None:
        if not 0 <= self.fewest_words <= self.most_words:
            raise UserError(
                f"--rationale_words={self.fewest_words},{self.most_words}: expected the fewest and "
                "the most words of a rationale, such as 3,128"
            )
        if not 0.0 <= self.least_overlap <= 1.0:
            raise UserError(f"--least_overlap={self.least_overlap:g}: expected a share from 0 to 1")
        if self.most_repeats < 1:
            raise UserError(f"--most_repeats={self.most_repeats}: expected 1 or more")


def split_words(text: str) -> list[str]:
    """The words of a text in small letters, without what stands between them."""
    return _WORD.findall(text.casefold())


def hash_text(text: str) -> str:
    """The same for texts that differ in capitals and blanks alone: 32 hexadecimal digits."""
    normal = " ".join(text.casefold().split())
    return hashlib.blake2b(normal.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def measure_overlap(rationale: str, text: str) -> float:
    """The share of a rationale's different words that stand in the text, 0 to 1."""
    said = set(split_words(rationale)) - _EVERYWHERE
    return len(said & set(split_words(text))) / len(said) if said else 0.0


# ---------------------------------- hard rules -------------------------------


def _drop_unparsed(candidate: Candidate) -> str | None:
    if candidate.teacher_label is None:
        return "no label could be read from the response"
    return "no rationale" if candidate.rationale is None else None


def _drop_wrong(candidate: Candidate) -> str | None:
    if candidate.label_is_right is False:
        return f"the teacher says {candidate.teacher_label}, gold is {candidate.label}"
    return None


def _drop_first_person(candidate: Candidate) -> str | None:
    found = _FIRST_PERSON.intersection(split_words(candidate.rationale or ""))
    # 'I' may be the answer: a choice, a numeral.
    found -= set(split_words(candidate.teacher_label or "")) | set(split_words(candidate.input))
    return f"the first person: {min(found)}" if found else None


def _drop_reference(candidate: Candidate) -> str | None:
    text = (candidate.rationale or "").casefold()
    found = next((words for words in _ELSEWHERE if words in text), None)
    return f"refers to something else: {found}" if found else None


def _drop_bare_label(candidate: Candidate) -> str | None:
    of_label = set(split_words(candidate.teacher_label or ""))
    announcing = {"answer", "must", "so", "therefore", "thus", "label", "correct", "choice"}
    left = set(split_words(candidate.rationale or "")) - of_label - _EVERYWHERE - announcing
    return None if left else "says nothing but the label"


def hard_rules(limits: Limits) -> dict[str, Rule]:
    """The rules that drop, by name, in the order in which they are asked."""

    def drop_by_length(candidate: Candidate) -> str | None:
        words = len((candidate.rationale or "").split())
        if limits.fewest_words <= words <= limits.most_words:
            return None
        return f"{words} words"

    def drop_off_subject(candidate: Candidate) -> str | None:
        overlap = measure_overlap(candidate.rationale or "", candidate.input)
        return None if overlap >= limits.least_overlap else f"{overlap:.0%} of its words"

    def drop_degenerate(candidate: Candidate) -> str | None:
        words = split_words(candidate.rationale or "")
        runs = zip(*(words[start:] for start in range(_REPEATED_WORDS)), strict=False)
        most = collections.Counter(runs).most_common(1)
        if most and most[0][1] > limits.most_repeats:
            return f"{most[0][1]} times '{' '.join(most[0][0])}'"
        return None

    return {
        "parsed": _drop_unparsed,
        "label_agrees": _drop_wrong,
        "rationale_length": drop_by_length,
        "says_more_than_label": _drop_bare_label,
        "no_first_person": _drop_first_person,
        "no_self_reference": _drop_reference,
        "mentions_input": drop_off_subject,
        "not_degenerate": drop_degenerate,
    }


# ---------------------------------- soft rules -------------------------------


def _ends_as_a_sentence(candidate: Candidate) -> str | None:
    ends = (candidate.rationale or "").rstrip().endswith(_ENDS)
    return None if ends else "does not end as a sentence"


def _names_its_label(candidate: Candidate) -> str | None:
    label = set(split_words(candidate.teacher_label or ""))
    named = label <= set(split_words(candidate.rationale or ""))
    return None if named else "does not name its label"


def _has_substance(candidate: Candidate) -> str | None:
    words = len((candidate.rationale or "").split())
    return None if words >= _FEWEST_SOFT_WORDS else "a few words only"


def _adds_words(candidate: Candidate) -> str | None:
    overlap = measure_overlap(candidate.rationale or "", candidate.input)
    return None if overlap <= _MOST_COPIED else "copies the input"


SOFT_RULES: Mapping[str, Rule] = {
    "ends_as_a_sentence": _ends_as_a_sentence,
    "names_its_label": _names_its_label,
    "has_substance": _has_substance,
    "adds_words": _adds_words,
}

# ---------------------------------- rules of task files ----------------------

_OWN_RULES: dict[str, Rule] = {}
_OWN_SOFT_RULES: dict[str, Rule] = {}
_OWN_STRATA: dict[str, Callable[[Candidate], str]] = {}


def register_rule(rule: _OfUser, *, soft: bool = False) -> _OfUser:
    """Adds a rule under its function's name; for task files, and as a decorator.

        @rules.register_rule
        def no_links(candidate):
            return "holds a link" if "http" in candidate.rationale else None

    It is asked after this project's own hard rules, and only of candidates that passed them: so a
    rationale is there unless `parsed` was left out.

    Args:
      rule: gives the reason to drop, a text, or None to keep.
      soft: it only lowers the score.

    Raises:
      UserError: a rule of that name is there already.
    """
    _check_name(rule.__name__)
    (_OWN_SOFT_RULES if soft else _OWN_RULES)[rule.__name__] = rule
    return rule


def register_stratum(find: Callable[[Candidate], str]) -> Callable[[Candidate], str]:
    """Adds a part of strata under its function's name, for `--strata`; gives a candidate's value.

    Raises:
      UserError: something of that name is there already.
    """
    _check_name(find.__name__)
    _OWN_STRATA[find.__name__] = find
    return find


def _check_name(name: str) -> None:
    taken = {*hard_rules(Limits()), *SOFT_RULES, *RULES_OVER_MANY, *BUILT_IN_STRATA}
    if name in taken or name in {**_OWN_RULES, **_OWN_SOFT_RULES, **_OWN_STRATA}:
        raise UserError(f"a rule or stratum {name!r} is there already; give yours another name")


# What is decided over all candidates together (`choosing`), and what strata are made of (`strata`).
RULES_OVER_MANY = ("not_in_evaluation", "not_duplicate", "good_enough")
BUILT_IN_STRATA = ("dataset", "label", "question")


def own_rules(soft: bool = False) -> dict[str, Rule]:
    """The rules of task files, by name."""
    return dict(_OWN_SOFT_RULES if soft else _OWN_RULES)


def own_strata() -> dict[str, Callable[[Candidate], str]]:
    """The strata of task files, by name."""
    return dict(_OWN_STRATA)


def count_own() -> int:
    """How many rules and strata task files have added."""
    return len(_OWN_RULES) + len(_OWN_SOFT_RULES) + len(_OWN_STRATA)


def ask(name: str, rule: Rule, candidate: Candidate) -> str | None:
    """What a rule says of a candidate.

    Raises:
      UserError: it gives something else than a text or None.
    """
    reason = rule(candidate)
    if reason is None or (isinstance(reason, str) and reason):
        return reason
    raise UserError(
        f"the rule {name} gave {reason!r:.60} for {candidate.dataset} id {candidate.id!r}; "
        "expected the reason to drop it, a text, or None to keep it"
    )
