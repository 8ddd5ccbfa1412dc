"""What a task needs: from its card, from interventions, or from one name."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from distill_sbs.allocating import requirement
from distill_sbs.allocating.requirement import TaskCard
from distill_sbs.errors import UserError

NAMES = ["label", "rationale", "answer"]


def test_a_cards_vector_is_normalised() -> None:
    card = TaskCard("card.toml", requirement={"label": 3.0, "answer": 1.0})
    assert requirement.resolve_requirement(card, NAMES).tolist() == [0.75, 0.0, 0.25]


def test_a_vector_that_sums_to_nothing_is_refused() -> None:
    card = TaskCard("card.toml", requirement={"label": 0.0})
    with pytest.raises(UserError, match=r"card\.toml: the requirement vector sums to 0; give one"):
        requirement.resolve_requirement(card, NAMES)


def test_one_declared_capability() -> None:
    found = requirement.resolve_requirement(TaskCard("card.toml", "rationale"), NAMES)
    assert found[1] == pytest.approx(1 / 1.002)
    assert found[0] == found[2] == pytest.approx(0.001 / 1.002)


def test_interventions_come_before_the_declared_one_and_after_the_vector() -> None:
    measured = (np.eye(3), np.array([0.0, 0.2, 0.8]))
    found = requirement.resolve_requirement(TaskCard("c", "label"), NAMES, measured)
    assert found == pytest.approx([0.0, 0.2, 0.8], abs=1e-6)
    explicit = TaskCard("c", "label", {"label": 1.0})
    assert requirement.resolve_requirement(explicit, NAMES, measured).tolist() == [1.0, 0.0, 0.0]


def test_a_known_requirement_is_learned_from_200_interventions() -> None:
    draws = np.random.default_rng(0)
    known = np.array([0.5, 0.3, 0.15, 0.05, 0.0])
    changes = draws.normal(0.0, 0.1, (200, 5))
    utilities = changes @ known + draws.normal(0.0, 0.01, 200)
    found = requirement.learn_requirement(changes, utilities)
    assert np.abs(found - known).sum() < 0.1
    assert found.sum() == pytest.approx(1.0) and (found >= 0).all()
    assert requirement.learn_requirement(np.zeros((3, 2)), np.ones(3)).tolist() == [0.5, 0.5]


def test_projection_by_hand() -> None:
    assert requirement.project_on_simplex(np.array([0.2, 0.8])).tolist() == [0.2, 0.8]
    assert requirement.project_on_simplex(np.array([2.0, 0.0])).tolist() == [1.0, 0.0]
    assert requirement.project_on_simplex(np.array([0.9, 0.5])) == pytest.approx([0.7, 0.3])


def write(folder: pathlib.Path, text: str) -> str:
    path = folder / "card.toml"
    path.write_text(text)
    return str(path)


def test_a_card_is_read(tmp_path: pathlib.Path) -> None:
    text = 'capability = "label"\ninterventions = "probe.jsonl"\n[requirement]\nlabel = 3\n'
    path = write(tmp_path, text)
    assert requirement.read_card(path) == TaskCard(
        path, "label", {"label": 3.0}, str(tmp_path / "probe.jsonl")
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("capabilty = 'a'", "a task card has no 'capabilty'; did you mean capability"),
        ("capability = 1", "capability is 1, expected text"),
        ("requirement = 3", "requirement is 3, expected a table"),
        ("[requirement]\na = -1", "requirement.a is -1, expected a number ≥ 0"),
        ("[requirement]\na = nan", "requirement.a is nan, expected a number ≥ 0"),
        ("[requirement", "no TOML"),
    ],
)
def test_broken_cards(tmp_path: pathlib.Path, text: str, told: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UserError) as error:
        requirement.read_card(path)
    assert str(error.value).startswith(path) and told in str(error.value)
    assert "\n" not in str(error.value)


def test_a_card_that_is_missing_or_names_what_is_not_there(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        requirement.read_card(str(tmp_path / "none.toml"))
    with pytest.raises(UserError, match="unknown capability 'lable'; did you mean label"):
        requirement.resolve_requirement(TaskCard("c", "lable"), NAMES)
    with pytest.raises(UserError, match="neither"):
        requirement.resolve_requirement(TaskCard("c"), NAMES)
