"""A selection: label and rationale tasks keep the same examples, a fraction is one of it."""

from __future__ import annotations

import json
import pathlib

import pytest
import seqio

from distill_sbs.data import registration
from distill_sbs.data import selection as selections
from distill_sbs.data.selection import Selection, read_selection, write_selection
from distill_sbs.data.tasks import preprocessors
from distill_sbs.errors import UserError

LENGTHS = {"inputs": 64, "targets": 48, "task_ids": 48}
CHOSEN = ("train-3", "train-9", "train-12", "train-30")  # of 9 the output could not be parsed


def targets(task: str, split: str = "train") -> list[str]:
    dataset = seqio.get_mixture_or_task(task).get_dataset(
        LENGTHS, split, shuffle=False, num_epochs=1
    )
    vocabulary = seqio.ByteVocabulary()
    return [vocabulary.decode(row["targets"].numpy().tolist()) for row in dataset]


def test_label_and_rationale_keep_the_same_examples(tiny_settings) -> None:
    tiny_settings(selection=Selection({"tiny": CHOSEN}))
    assert targets("tiny_label") == ["yes 3", "yes 9", "yes 12", "yes 30"]
    assert targets("tiny_rationale_gpt") == ["rationale 3", "rationale 12", "rationale 30"]
    assert targets("tiny_joint_gpt")[0] == "rationale 3 So the answer is yes 3"
    assert len(targets("tiny_label", "validation")) == len(targets("tiny_label", "test")) == 8


@pytest.mark.slow
def test_a_fraction_is_one_of_the_selection(tiny_settings) -> None:
    chosen = Selection({"tiny": tuple(f"train-{number}" for number in range(10, 30))})
    sets = []
    for fraction in (0.25, 0.5, 1.0):
        tiny_settings(selection=chosen, data_fraction=fraction)
        sets.append(set(targets("tiny_label")))
    assert [len(each) for each in sets] == [5, 10, 20]
    assert sets[0] < sets[1] < sets[2]
    tiny_settings(selection=chosen, data_fraction=0.25, fraction_seed=1)
    assert set(targets("tiny_label")) != sets[0]


def test_ranks_among_the_selected_by_hand() -> None:
    ranks = preprocessors.rank_examples(6, seed=0)
    selected = preprocessors.np.array([1, 4, 5])
    among = preprocessors.rank_selected(ranks, selected)
    assert sorted(among[selected]) == [0, 1, 2]
    assert set(among[[0, 2, 3]]) == {6}
    # The one that comes first among all comes first among these.
    assert selected[among[selected].argmin()] == selected[ranks[selected].argmin()]


def test_what_is_written_is_read(tmp_path: pathlib.Path) -> None:
    path = str(tmp_path / "chosen.json")
    written = write_selection(path, {"b": ["2", "1"], "a": ["ä"]}, {"pool": 7})
    read = read_selection(path)
    assert read == written
    assert read.examples == {"a": ("ä",), "b": ("1", "2")}
    content = json.loads((tmp_path / "chosen.json").read_text())
    assert content["pool"] == 7
    assert content["sha256"] == read.sha256
    write_selection(str(tmp_path / "again.json"), {"a": ["ä"], "b": ["1", "2"]}, {"pool": 7})
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "chosen.json").read_bytes()
    # By hand, ids are enough, and their order is nobody's.
    (tmp_path / "hand.json").write_text('{"examples": {"b": ["2", "1"], "a": ["\\u00e4"]}}')
    assert read_selection(str(tmp_path / "hand.json")).sha256 == read.sha256


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("[]", "is no selection; expected"),
        ('{"examples": []}', "is no selection; expected"),
        ('{"examples": {}}', "chooses nothing; expected"),
        ('{"examples": {"tiny": []}}', r"of tiny it has \[\]; expected"),
        ('{"examples": {"tiny": "train-1"}}', "of tiny it has 'train-1'; expected"),
        ('{"examples": {"tiny": ["a", 3]}}', "3 among the ids of tiny; ids are texts"),
        ('{"examples": {"tiny": ["a", "b", "a"]}}', "the id 'a' of tiny stands twice"),
        ('{"examples": {"tiny": ["a"]}, "sha256": "12"}', "its ids are not those of which it says"),
        ('{"examples": {"tiny": ["a"]}, "format_version": 2}', "has format version 2, expected 1"),
        ('{"examples": {"tiny": ["\\ud800"]}}', "lone surrogate"),
        ("{", r"broken JSON"),
    ],
)
def test_what_is_no_selection(tmp_path: pathlib.Path, content: str, told: str) -> None:
    path = tmp_path / "wrong.json"
    path.write_text(content)
    with pytest.raises(UserError, match=told) as raised:
        read_selection(str(path))
    assert str(path) in str(raised.value)
    with pytest.raises(UserError, match="holds something that is no selection and would be lost"):
        selections.check_output(str(path))
    assert path.read_text() == content


def test_a_file_that_is_none(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match="no such file; make one: python -m distill_sbs.curate"):
        read_selection(str(tmp_path / "nowhere.json"))
    with pytest.raises(UserError, match="is a folder, expected a file that curate wrote"):
        read_selection(str(tmp_path))


def test_ids_that_the_records_lack(tiny_settings) -> None:
    tiny_settings(selection=Selection({"tiny": ("train-1", "train-99")}, "mine.json"))
    task = registration.get_mixture_or_task("tiny_dss_gpt")
    told = "SELECTION='mine.json': 1 of its 2 ids of tiny are not in the training split of .*99"
    with pytest.raises(UserError, match=told):
        registration.check_prepared(task)
    with pytest.raises(UserError, match=told):
        targets("tiny_label")


def test_a_mixture_of_which_it_chooses_nothing(tiny_settings) -> None:
    tiny_settings(selection=Selection({"cqa": ("1",)}, "mine.json"))
    for name in ("tiny_dss_gpt", "tiny_label"):
        with pytest.raises(UserError, match="'mine.json' chooses nothing of tiny, only of cqa"):
            registration.check_selection(registration.get_mixture_or_task(name))
    with pytest.raises(UserError, match="reads texts, which have no ids; set SELECTION = None"):
        registration.check_selection(registration.get_mixture_or_task("text_pretrain"))
