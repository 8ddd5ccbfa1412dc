"""The choice of exactly N examples: rules, score, strata.

Enters: candidates of training splits, the texts of evaluation splits by hash, what is wanted.
Leaves: a `Choice`: the ids, and what became of everything else. The same for the same candidates in
whatever order they come (arXiv 2305.11206, on rationales).
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

from distill_sbs.curating import rules, strata
from distill_sbs.curating.rules import Candidate, Limits
from distill_sbs.errors import UserError, did_you_mean

MODES = ("curated", "unfiltered", "homogeneous", "random")
PREFERENCES = ("score", "distance")
# Of the vectors between which distances are measured.
_FEATURES = 256
_EXAMPLES_SHOWN = 2

Key = tuple[str, str]  # dataset, id


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What is to be chosen.

    Attributes:
      examples: exactly how many.
      mode: 'curated'; 'unfiltered' asks no rule and looks at no score; 'homogeneous' takes the
        largest stratum alone; 'random' takes any.
      seed: of what is chosen among equals.
      temperature: τ of the strata (`strata.share_out`).
      strata: what a stratum is made of.
      prefer: within a stratum the highest 'score', or after the first one whatever is at the
        greatest 'distance' of all that are taken.
      least_score: lower scores are dropped, 0 to 1.
      limits: the numbers in the rules.
      without_rules: rules that are not asked.
    """

    examples: int
    mode: str = "curated"
    seed: int = 0
    temperature: float = 3.0
    strata: tuple[str, ...] = ("dataset", "label", "question")
    prefer: str = "score"
    least_score: float = 0.0
    limits: Limits = Limits()
    without_rules: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.examples < 1:
            raise UserError(f"--examples={self.examples}: expected how many to choose, 1 or more")
        if not 0.0 <= self.least_score <= 1.0:
            raise UserError(f"--least_score={self.least_score:g}: expected a share from 0 to 1")
        strata.share_out({}, 0, self.temperature)
        strata.name_strata([], self.strata)
        known = self.rule_names()
        for name in self.without_rules:
            if name not in known:
                raise UserError(
                    f"--without_rules={','.join(self.without_rules)}: {name!r} is none of "
                    f"{', '.join(known)}{did_you_mean(name, known)}"
                )

    @property
    def asks_rules(self) -> bool:
        """Whether anything is dropped at all."""
        return self.mode in ("curated", "homogeneous")

    def rule_names(self) -> list[str]:
        """The rules in the order in which they are asked, those of task files among them."""
        return [*rules.hard_rules(self.limits), *rules.own_rules(), *rules.RULES_OVER_MANY]


@dataclasses.dataclass
class RuleCount:
    """What a rule dropped.

    Attributes:
      name: the rule's.
      dropped: how many it was the first to refuse.
      shown: some of them, with the reasons.
    """

    name: str
    dropped: int = 0
    shown: list[tuple[Candidate, str]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Stratum:
    """How many examples a stratum has, before the rules and after, and how many were chosen."""

    name: str
    pool: int
    passed: int
    chosen: int


@dataclasses.dataclass(frozen=True)
class Choice:
    """What was chosen, and what became of the rest.

    Attributes:
      keys: dataset and id of each, sorted.
      pool: how many examples there were.
      rules: what each rule dropped, in the order in which they were asked; with those that passed
        they make the pool.
      passed: how many no rule dropped.
      strata: sorted by name.
      mean_score: of the chosen; None where nothing was scored.
      dropped: each dropped example with its rule and reason, sorted by dataset and id.
    """

    keys: list[Key]
    pool: int
    rules: list[RuleCount]
    passed: int
    strata: list[Stratum]
    mean_score: float | None
    dropped: list[tuple[Candidate, str, str]]


def choose(
    groups: Iterable[Sequence[Candidate]], held_out: frozenset[str], wanted: Wanted
) -> Choice:
    """Chooses exactly `wanted.examples` examples.

    Args:
      groups: each example's candidates, one a teacher; an example is dropped if a rule drops one of
        them, and its score is the lowest of theirs.
      held_out: `rules.hash_text` of the inputs of evaluation splits.
      wanted: what.

    Raises:
      UserError: fewer pass; it says which rule dropped most.
    """
    # Sorted: nothing below depends on the order in which they came.
    pool = sorted(groups, key=lambda group: _key(group[0]))
    counts = {name: RuleCount(name) for name in wanted.rule_names()}
    dropped: list[tuple[Candidate, str, str]] = []

    def drop(candidate: Candidate, name: str, reason: str) -> None:
        counts[name].dropped += 1
        if len(counts[name].shown) < _EXAMPLES_SHOWN:
            counts[name].shown.append((candidate, reason))
        dropped.append((candidate, name, reason))

    passed: list[Sequence[Candidate]] = []
    for group in pool:
        found = _ask_hard_rules(group, held_out, wanted) if wanted.asks_rules else None
        if found is None:
            passed.append(group)
        else:
            drop(*found)
    scores = {_key(group[0]): min(map(score, group)) for group in passed}
    if wanted.asks_rules:
        kept = []
        for group, found in _judge_together(passed, scores, wanted):
            if found is None:
                kept.append(group)
            else:
                drop(*found)
        passed = kept
    dropped.sort(key=lambda each: _key(each[0]))
    if len(passed) < wanted.examples:
        raise UserError(_tell_too_few(wanted, len(pool), len(passed), list(counts.values())))

    names = dict(
        zip(
            (_key(group[0]) for group in pool),
            strata.name_strata([group[0] for group in pool], wanted.strata),
            strict=True,
        )
    )
    by_stratum: dict[str, list[Candidate]] = collections.defaultdict(list)
    for group in passed:
        by_stratum[names[_key(group[0])]].append(group[0])
    quotas = _share_out(by_stratum, wanted)
    keys: list[Key] = []
    for name in sorted(by_stratum):
        keys += _choose_within(by_stratum[name], quotas[name], scores, wanted)
    in_pool = collections.Counter(names.values())
    chosen_of = collections.Counter(names[key] for key in keys)
    return Choice(
        keys=sorted(keys),
        pool=len(pool),
        rules=list(counts.values()),
        passed=len(passed),
        strata=[
            Stratum(name, in_pool[name], len(by_stratum.get(name, ())), chosen_of[name])
            for name in sorted(in_pool)
        ],
        mean_score=sum(scores[key] for key in keys) / len(keys) if wanted.asks_rules else None,
        dropped=dropped,
    )


def _key(candidate: Candidate) -> Key:
    return candidate.dataset, candidate.id


def score(candidate: Candidate) -> float:
    """The share of soft rules that a candidate keeps, 0 to 1."""
    soft = {**rules.SOFT_RULES, **rules.own_rules(soft=True)}
    kept = sum(rules.ask(name, rule, candidate) is None for name, rule in soft.items())
    return kept / len(soft)


_Found = tuple[Candidate, str, str]  # what is dropped, by which rule, why


def _ask_hard_rules(
    group: Sequence[Candidate], held_out: frozenset[str], wanted: Wanted
) -> _Found | None:
    every = {**rules.hard_rules(wanted.limits), **rules.own_rules()}
    for name, rule in every.items():
        if name in wanted.without_rules:
            continue
        for candidate in group:
            if (reason := rules.ask(name, rule, candidate)) is not None:
                return candidate, name, reason
    if "not_in_evaluation" not in wanted.without_rules:
        if rules.hash_text(group[0].input) in held_out:
            return group[0], "not_in_evaluation", "its input stands in an evaluation split"
    return None


def _judge_together(
    passed: Sequence[Sequence[Candidate]], scores: dict[Key, float], wanted: Wanted
) -> Iterable[tuple[Sequence[Candidate], _Found | None]]:
    """Of equal inputs the one of highest score stays, of those the first by dataset and id."""
    best: dict[str, Key] = {}
    if "not_duplicate" not in wanted.without_rules:
        for group in passed:  # sorted
            text, key = rules.hash_text(group[0].input), _key(group[0])
            if text not in best or scores[key] > scores[best[text]]:
                best[text] = key
    for group in passed:
        candidate, key = group[0], _key(group[0])
        first = best.get(rules.hash_text(candidate.input), key) if best else key
        if first != key:
            yield group, (candidate, "not_duplicate", f"the input of {first[0]} id {first[1]}")
        elif "good_enough" not in wanted.without_rules and scores[key] < wanted.least_score:
            yield group, (candidate, "good_enough", f"score {scores[key]:.2f}")
        else:
            yield group, None


def _tell_too_few(wanted: Wanted, pool: int, passed: int, counts: Sequence[RuleCount]) -> str:
    told = f"--examples={wanted.examples}: "
    if not wanted.asks_rules:
        return told + f"there are {pool:,} examples; ask for {pool} or fewer"
    most = sorted((count for count in counts if count.dropped), key=lambda count: -count.dropped)
    named = ", ".join(f"{count.name} {count.dropped:,}" for count in most[:3])
    advice = f"ask for {passed} or fewer, or leave" if passed else "leave"
    return told + (
        f"{passed:,} of {pool:,} examples pass the rules (dropped by {named}); {advice} a rule "
        f"out: --without_rules={most[0].name}"
    )


def _share_out(by_stratum: dict[str, list[Candidate]], wanted: Wanted) -> dict[str, int]:
    sizes = {name: len(group) for name, group in by_stratum.items()}
    if wanted.mode == "random":
        everything = [candidate for name in sorted(by_stratum) for candidate in by_stratum[name]]
        taken = sorted(everything, key=lambda each: _draw(each, wanted.seed))[: wanted.examples]
        chosen = {_key(each) for each in taken}
        return {
            name: sum(_key(each) in chosen for each in group) for name, group in by_stratum.items()
        }
    if wanted.mode == "homogeneous":
        largest = min(sizes, key=lambda name: (-sizes[name], name))
        if sizes[largest] < wanted.examples:
            raise UserError(
                f"--examples={wanted.examples} --mode=homogeneous: the largest stratum "
                f"({largest}) has {sizes[largest]:,}; ask for {sizes[largest]} or fewer, or for "
                "larger strata: --strata=dataset"
            )
        return {name: wanted.examples if name == largest else 0 for name in sizes}
    return strata.share_out(sizes, wanted.examples, wanted.temperature)


def _choose_within(
    group: Sequence[Candidate], count: int, scores: dict[Key, float], wanted: Wanted
) -> list[Key]:
    """`count` of a stratum: by score, by distance, or as a seeded draw has it."""

    def rank(candidate: Candidate) -> tuple[float, bytes]:
        by_score = -scores[_key(candidate)] if wanted.asks_rules else 0.0
        return by_score, _draw(candidate, wanted.seed)

    ordered = sorted(group, key=rank)
    if not wanted.asks_rules or wanted.prefer == "score" or count == 0:
        return [_key(each) for each in ordered[:count]]
    vectors = np.stack([_vector(each) for each in ordered])
    nearest = np.full(len(ordered), -np.inf, np.float32)
    places = [0]
    while len(places) < count:
        # The first of equals, which has the higher score.
        nearest = np.maximum(nearest, vectors @ vectors[places[-1]])
        nearest[places[-1]] = np.inf
        places.append(int(np.argmin(np.round(nearest, 5))))
    return [_key(ordered[place]) for place in places]


def _draw(candidate: Candidate, seed: int) -> bytes:
    """A place in an order that depends on the seed and the example alone."""
    text = f"{seed}\0{candidate.dataset}\0{candidate.id}"
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _vector(candidate: Candidate) -> np.ndarray:
    """Words and pairs of words of the input, hashed, of length 1: float32 [_FEATURES]."""
    vector: np.ndarray = np.zeros(_FEATURES, np.float32)
    words = rules.split_words(candidate.input)
    for part in (*words, *map(" ".join, zip(words, words[1:], strict=False))):
        digest = hashlib.blake2b(part.encode("utf-8", "surrogatepass"), digest_size=4).digest()
        vector[int.from_bytes(digest, "little") % _FEATURES] += 1.0
    length = float(np.linalg.norm(vector))
    return vector / length if length else vector
