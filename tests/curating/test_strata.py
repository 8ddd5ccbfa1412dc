"""strata: what they are made of, and quotas by temperature (specs/lima.md, 6.3)."""

from __future__ import annotations

import pytest

from distill_sbs.curating import strata
from distill_sbs.curating.rules import Candidate
from distill_sbs.errors import UserError

SIZES = {"a": 1000, "b": 8, "c": 1}


def test_temperature_three_is_the_cube_root() -> None:
    # 1000^(1/3) : 8^(1/3) : 1 = 10 : 2 : 1, as the specification has it; of 13 one is left over by
    # no stratum.
    assert strata.share_out(SIZES, 13, 3.0) == {"a": 10, "b": 2, "c": 1}


def test_temperature_one_is_in_proportion_and_a_high_one_equal() -> None:
    assert strata.share_out({"a": 60, "b": 30, "c": 10}, 10, 1.0) == {"a": 6, "b": 3, "c": 1}
    assert strata.share_out({"a": 60, "b": 30, "c": 10}, 9, 1e9) == {"a": 3, "b": 3, "c": 3}


def test_small_strata_spill_over() -> None:
    # Of 39 the cube roots give 30 : 6 : 3; c has 1, and of the 38 that are left b gets 38 · 2/12.
    assert strata.share_out(SIZES, 39, 3.0) == {"a": 32, "b": 6, "c": 1}
    assert strata.share_out(SIZES, 1009, 3.0) == SIZES
    assert strata.share_out({"a": 5, "b": 0}, 5, 3.0) == {"a": 5, "b": 0}
    assert strata.share_out({}, 0, 3.0) == {}


@pytest.mark.parametrize("total", [1, 2, 7, 100, 400, 1000, 1008])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0, 50.0])
def test_quotas_sum_to_the_total_and_no_stratum_gives_more_than_it_has(
    total: int, temperature: float
) -> None:
    taken = strata.share_out(SIZES, total, temperature)
    assert sum(taken.values()) == total
    assert all(0 <= taken[name] <= SIZES[name] for name in SIZES)


def test_remainders_go_by_size_then_by_name() -> None:
    assert strata.share_out({"b": 10, "a": 10, "c": 10}, 4, 1.0) == {"a": 2, "b": 1, "c": 1}
    # 1.5 and 2.5 and 3: both halves want the one that is left.
    assert strata.share_out({"x": 3, "y": 5, "z": 6}, 7, 1.0) == {"x": 2, "y": 2, "z": 3}


def test_what_cannot_be() -> None:
    with pytest.raises(UserError, match="1,010 are asked for, and there are 1,009"):
        strata.share_out(SIZES, 1010, 3.0)
    for temperature in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UserError, match="expected a number above 0, such as 3"):
            strata.share_out(SIZES, 1, temperature)


def make(text: str, label: str | None, dataset: str = "cqa") -> Candidate:
    return Candidate(dataset, text, text, label, "palm", label, "because")


def test_names_of_strata() -> None:
    many = [make(f"What is {number}?", f"thing {number}") for number in range(11)]
    few = [make(f"Premise {number}.", ["yes", "no"][number % 2], "nli") for number in range(4)]
    names = strata.name_strata([*many, *few], ("dataset", "label", "question"))
    # Eleven different labels are no classes.
    assert names[0] == "cqa / what"
    assert names[11:13] == ["nli / yes / no question", "nli / no / no question"]
    assert strata.name_strata(many[:1], ("label",)) == ["thing 0"]
    assert strata.name_strata([make("x", None)], ("label",)) == ["all"]


@pytest.mark.parametrize(
    ("text", "label", "name"),
    [
        ("Anna has 3. How many apples are there?", "( 3 + 12 )", "( # + # ) / how many"),
        ("Tell me. Is that where you live? What?", "1.5 * 2", "# * # / where"),
        ("Is it so?", "7", "7 / other question"),
    ],
)
def test_equations_and_questions(text: str, label: str, name: str) -> None:
    assert strata.name_strata([make(text, label)], ("label", "question")) == [name]


def test_an_unknown_part_is_refused() -> None:
    with pytest.raises(UserError, match="'topic' is none of dataset, label, question"):
        strata.name_strata([], ("dataset", "topic"))
