"""rules: each names its reason; those of task files are asked like ours."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from distill_sbs.curating import rules
from distill_sbs.curating.rules import Candidate, Limits
from distill_sbs.errors import UserError


def make(rationale: str | None, said: str | None = "toolbox", **fields: object) -> Candidate:
    values = {
        "dataset": "cqa",
        "id": "7",
        "input": "Where would you keep a wrench at home?",
        "label": "toolbox",
        "teacher": "palm",
        "teacher_label": said,
        "rationale": rationale,
        "label_is_right": None if said is None else said == "toolbox",
        **fields,
    }
    return Candidate(**values)  # type: ignore[arg-type]


GOOD = "You would keep a wrench in a place that holds tools, and a toolbox does."


def first_reason(candidate: Candidate, limits: Limits | None = None) -> tuple[str, str] | None:
    for name, rule in rules.hard_rules(limits or Limits()).items():
        if (reason := rules.ask(name, rule, candidate)) is not None:
            return name, reason
    return None


@pytest.mark.parametrize(
    ("candidate", "name", "reason"),
    [
        (make(None, None), "parsed", "no label could be read from the response"),
        (make(None), "parsed", "no rationale"),
        (make(GOOD, "garage"), "label_agrees", "the teacher says garage, gold is toolbox"),
        (make("A wrench."), "rationale_length", "2 words"),
        (make("wrench " * 129), "rationale_length", "129 words"),
        (make("So the answer must be toolbox."), "says_more_than_label", "says nothing but the"),
        (make(f"I think so. {GOOD}"), "no_first_person", "the first person: i"),
        (make(f"As mentioned, {GOOD}"), "no_self_reference", "refers to something else: as ment"),
        (make("Fish swim deep below some ships."), "mentions_input", "0% of its words"),
        (make(f"{'keep it at home ' * 3}"), "not_degenerate", "3 times 'keep it at home'"),
    ],
)
def test_each_hard_rule_drops_with_its_reason(candidate: Candidate, name: str, reason: str) -> None:
    found = first_reason(candidate)
    assert found is not None
    assert found[0] == name
    assert found[1].startswith(reason)


def test_a_good_rationale_passes_every_rule() -> None:
    assert first_reason(make(GOOD)) is None
    # Without a gold label nothing is known against the teacher's.
    assert first_reason(make(GOOD, "garage", label=None, label_is_right=None)) is None
    # 'I' stands in the input, or is the answer.
    assert first_reason(make(f"I keep it: {GOOD}", input="Where do I keep a wrench?")) is None


def test_limits_move_the_rules() -> None:
    assert first_reason(make("A wrench lies there."), Limits(fewest_words=5)) is not None
    assert first_reason(make("A wrench lies there."), Limits(least_overlap=0.9)) is not None
    assert first_reason(make("keep it at home " * 3), Limits(most_repeats=3)) is None
    for limits, told in [
        ({"fewest_words": 9, "most_words": 3}, "--rationale_words=9,3"),
        ({"least_overlap": 1.5}, "--least_overlap=1.5: expected a share from 0 to 1"),
        ({"most_repeats": 0}, "--most_repeats=0: expected 1 or more"),
    ]:
        with pytest.raises(UserError, match=told):
            Limits(**limits)  # type: ignore[arg-type]


def test_soft_rules() -> None:
    def lowered(candidate: Candidate) -> list[str]:
        return [name for name, rule in rules.SOFT_RULES.items() if rule(candidate) is not None]

    assert lowered(make(GOOD)) == []
    assert lowered(make("a toolbox holds tools")) == ["ends_as_a_sentence", "has_substance"]
    copied = "Where would you keep a wrench at home?"
    assert lowered(make(copied)) == ["names_its_label", "adds_words"]


def test_overlap_by_hand() -> None:
    # Of keep, wrench, tools (a, in stand everywhere) two stand in the input.
    assert rules.measure_overlap("keep a wrench in tools", "Where to keep a wrench") == 2 / 3
    assert rules.measure_overlap("a the of", "a the of") == 0.0


def test_equal_texts_hash_alike() -> None:
    assert rules.hash_text(" One  TWO\n") == rules.hash_text("one two")
    assert rules.hash_text("one two") != rules.hash_text("one, two")


@pytest.fixture
def own_rules() -> Iterator[None]:
    before = [dict(each) for each in (rules._OWN_RULES, rules._OWN_SOFT_RULES, rules._OWN_STRATA)]
    yield
    for each, old in zip(
        (rules._OWN_RULES, rules._OWN_SOFT_RULES, rules._OWN_STRATA), before, strict=True
    ):
        each.clear()
        each.update(old)


@pytest.mark.usefixtures("own_rules")
def test_rules_of_a_task_file() -> None:
    before = rules.count_own()

    @rules.register_rule
    def no_links(candidate: Candidate) -> str | None:
        return "holds a link" if "http" in (candidate.rationale or "") else None

    assert rules.own_rules()["no_links"](make("see http://x")) == "holds a link"
    assert rules.count_own() == before + 1
    with pytest.raises(UserError, match="'no_links' is there already"):
        rules.register_rule(no_links)
    no_links.__name__ = "parsed"
    with pytest.raises(UserError, match="'parsed' is there already"):
        rules.register_rule(no_links, soft=True)


def test_what_a_rule_may_give() -> None:
    for wrong in (True, "", 3):
        with pytest.raises(UserError, match="the rule mine gave .* for cqa id '7'; expected the"):
            rules.ask("mine", lambda _: wrong, make(GOOD))  # type: ignore[arg-type,return-value]  # noqa: B023
