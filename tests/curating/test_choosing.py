"""choosing: exactly N, the same in any order, and everything dropped is accounted for."""

from __future__ import annotations

import random

import pytest

from distill_sbs.curating import choosing, rules
from distill_sbs.curating.choosing import Choice, Wanted, choose
from distill_sbs.curating.rules import Candidate, Limits
from distill_sbs.errors import UserError

NOTHING: frozenset[str] = frozenset()


def make_pool(count: int = 200) -> list[tuple[Candidate, ...]]:
    """Every fifth label is wrong, every seventh rationale bare, every eleventh input the same."""
    draws = random.Random(0)
    pool = []
    for number in range(count):
        label = ["yes", "no", "maybe"][number % 3]
        said = "never" if number % 5 == 0 else label
        subject = f"box {draws.randrange(10**6)}"
        text = "Is the lid open?" if number % 11 == 0 else f"Is {subject} open or closed?"
        rationale = f"So {said}." if number % 7 == 0 else f"{text[:-1]} is what we see, so {said}."
        pool.append(
            (
                Candidate(
                    "boxes", f"{number:03}", text, label, "gpt", said, rationale, said == label
                ),
            )
        )
    return pool


def passes(candidate: Candidate) -> bool:
    every = rules.hard_rules(Limits())
    return all(rule(candidate) is None for rule in every.values())


def test_exactly_n_that_pass_every_rule() -> None:
    pool = make_pool()
    by_id = {group[0].id: group[0] for group in pool}
    held_out = frozenset({rules.hash_text(by_id["001"].input), rules.hash_text(by_id["002"].input)})
    choice = choose(pool, held_out, Wanted(50))
    assert len(choice.keys) == len(set(choice.keys)) == 50
    assert all(passes(by_id[key]) for _, key in choice.keys)
    texts = {rules.hash_text(by_id[key].input) for _, key in choice.keys}
    assert len(texts) == 50  # none stands twice
    assert not texts & held_out
    counts = {count.name: count.dropped for count in choice.rules}
    assert sum(counts.values()) + choice.passed == choice.pool == 200
    assert counts["label_agrees"] == 40
    assert counts["not_in_evaluation"] == 2
    assert counts["not_duplicate"] > 0
    assert len(choice.dropped) == sum(counts.values())
    assert sum(each.chosen for each in choice.strata) == 50
    assert sum(each.pool for each in choice.strata) == 200
    assert sum(each.passed for each in choice.strata) == choice.passed


@pytest.mark.parametrize("mode", choosing.MODES)
@pytest.mark.parametrize("prefer", choosing.PREFERENCES)
def test_the_order_of_the_pool_changes_nothing(mode: str, prefer: str) -> None:
    pool = make_pool()
    wanted = Wanted(20, mode=mode, prefer=prefer, strata=("label",))
    first = choose(pool, NOTHING, wanted)
    for seed in range(3):
        shuffled = list(pool)
        random.Random(seed).shuffle(shuffled)
        assert choose(shuffled, NOTHING, wanted) == first
    assert len(first.keys) == 20


def test_another_seed_chooses_others_among_equals() -> None:
    pool = make_pool()
    for mode in ("curated", "unfiltered", "random"):
        chosen = [choose(pool, NOTHING, Wanted(20, mode=mode, seed=seed)).keys for seed in (0, 1)]
        assert chosen[0] != chosen[1]


def test_modes() -> None:
    pool = make_pool()
    by_id = {group[0].id: group[0] for group in pool}

    def labels(choice: Choice) -> set[str | None]:
        return {by_id[key].label for _, key in choice.keys}

    def wrong(choice: Choice) -> int:
        return sum(not by_id[key].label_is_right for _, key in choice.keys)

    homogeneous = choose(pool, NOTHING, Wanted(20, mode="homogeneous", strata=("label",)))
    assert len(labels(homogeneous)) == 1
    unfiltered = choose(pool, NOTHING, Wanted(99, mode="unfiltered", strata=("label",)))
    assert wrong(unfiltered) > 0
    assert [each.chosen for each in unfiltered.strata] == [33, 33, 33]
    assert unfiltered.passed == 200
    assert unfiltered.mean_score is None
    everything = choose(pool, NOTHING, Wanted(200, mode="random"))
    assert len(everything.keys) == 200
    assert wrong(everything) == 40


def test_the_higher_score_goes_first_and_a_low_one_may_be_dropped() -> None:
    def candidate(number: int, rationale: str) -> tuple[Candidate, ...]:
        text = f"Is box {number} open?"
        return (Candidate("boxes", str(number), text, "yes", "gpt", "yes", rationale, True),)

    good = [candidate(n, f"The lid of box {n} is up, so one says yes.") for n in range(5)]
    weak = [candidate(n, f"box {n} stands here") for n in range(5, 9)]  # 1 of 4 soft rules
    assert [choosing.score(group[0]) for group in (good[0], weak[0])] == [1.0, 0.25]
    choice = choose([*weak, *good], NOTHING, Wanted(5))
    assert [key for _, key in choice.keys] == ["0", "1", "2", "3", "4"]
    assert choice.mean_score == 1.0
    strict = choose([*weak, *good], NOTHING, Wanted(5, least_score=0.5))
    assert {count.name: count.dropped for count in strict.rules}["good_enough"] == 4


def test_distance_spreads_what_is_taken() -> None:
    def candidate(number: int, text: str) -> tuple[Candidate, ...]:
        return (Candidate("x", str(number), text, "yes", "gpt", "yes", f"{text} is so.", True),)

    alike = [candidate(n, f"red apples grow on tree {n}") for n in range(8)]
    other = candidate(9, "blue whales swim under cold ice")
    wanted = Wanted(2, prefer="distance", strata=("dataset",))
    assert ("x", "9") in choose([*alike, other], NOTHING, wanted).keys


def test_of_several_teachers_each_must_pass() -> None:
    def group(number: int, labels: tuple[str, str]) -> tuple[Candidate, ...]:
        text = f"Is box {number} open?"
        rationale = f"box {number} is open, as one sees, so one says yes."
        return tuple(
            Candidate("boxes", str(number), text, "yes", teacher, label, rationale, label == "yes")
            for teacher, label in zip(("gpt", "palm"), labels, strict=True)
        )

    choice = choose([group(0, ("yes", "yes")), group(1, ("yes", "no"))], NOTHING, Wanted(1))
    assert choice.keys == [("boxes", "0")]
    assert choice.dropped[0][0].teacher == "palm"


def test_a_rule_may_be_left_out() -> None:
    pool = make_pool()
    choice = choose(pool, NOTHING, Wanted(20, without_rules=("label_agrees", "not_duplicate")))
    counts = {count.name: count.dropped for count in choice.rules}
    assert counts["label_agrees"] == counts["not_duplicate"] == 0
    with pytest.raises(UserError, match="'label_agree' is none of .*; did you mean label_agrees"):
        Wanted(20, without_rules=("label_agree",))


def test_too_few_say_what_dropped_most() -> None:
    told = r"--examples=190: 1\d\d of 200 examples pass the rules \(dropped by label_agrees 40, .*"
    with pytest.raises(UserError, match=told + "--without_rules=label_agrees"):
        choose(make_pool(), NOTHING, Wanted(190))
    with pytest.raises(UserError, match="there are 200 examples; ask for 200 or fewer"):
        choose(make_pool(), NOTHING, Wanted(201, mode="random"))
    with pytest.raises(UserError, match="the largest stratum"):
        choose(make_pool(), NOTHING, Wanted(100, mode="homogeneous", strata=("label",)))
    with pytest.raises(UserError, match="there are 0 examples"):
        choose([], NOTHING, Wanted(1, mode="random"))
    for wrong in ({"examples": 0}, {"examples": 1, "least_score": 2.0}):
        with pytest.raises(UserError, match="expected"):
            Wanted(**wrong)  # type: ignore[arg-type]
