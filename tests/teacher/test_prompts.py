"""prompts: what is sent for each task, and what a broken prompt file is told."""

from __future__ import annotations

import pathlib

import pytest

from distill_sbs import resources
from distill_sbs.data import metrics
from distill_sbs.errors import UserError
from distill_sbs.teacher import parsing, prompts

CQA_INPUT = "Where is a cup?\nAnswer Choices:\n(a) sky\n(b) cupboard\n(c) sea\n(d) moon\n(e) tree"


@pytest.mark.parametrize("task", ["cqa", "svamp", "asdiv", "esnli", "anli1", "wordproblems"])
def test_own_prompts_have_ten_demonstrations_that_parse(task: str) -> None:
    prompt = prompts.load(task)
    assert len(prompt.demonstrations) == 10
    assert len({each.input for each in prompt.demonstrations}) == 10
    for each in prompt.demonstrations:
        answer = prompt.messages(each.input)[2]["content"]
        own = prompt._answer_text(each)
        assert parsing.parse(prompt, each.input, own) == parsing.ParsedAnswer(
            each.label, each.rationale
        )
        assert answer
        if prompt.answers == "equation":
            assert metrics.equation_value(each.label) == metrics.equation_value(each.label)


def test_every_label_of_a_closed_set_is_demonstrated() -> None:
    for task in ("esnli", "anli1"):
        prompt = prompts.load(task)
        assert {each.label for each in prompt.demonstrations} == set(prompt.labels)


@pytest.mark.realdata
def test_no_demonstration_is_a_row_of_the_data(source_dir: pathlib.Path) -> None:
    for task in ("cqa", "svamp", "esnli", "anli1"):
        prompt = prompts.load(task)
        text = "".join(path.read_text() for path in (source_dir / task).glob(f"{task}_*.json"))
        for each in prompt.demonstrations:
            first = each.input.split(prompt.input_separator or "\n")[0]
            assert first not in text


def test_completion_text_of_each_layout() -> None:
    cqa = prompts.load("cqa").completion_text(CQA_INPUT)
    assert cqa.startswith("Q: Where would you hang a dripping umbrella")
    assert "(e) piano\nA: A dripping umbrella has" in cqa
    assert "So the answer is (b) hallway stand.\n\nQ: The committee" in cqa
    assert cqa.endswith(f"\n\nQ: {CQA_INPUT}\nA:")

    svamp = prompts.load("asdiv").completion_text("Two and two.\nHow many?")
    assert svamp.endswith("The answer is (14 - 6).\n\nQ: Two and two.\nHow many?\nA:")

    esnli = prompts.load("esnli").completion_text("A man.</s>A person.")
    assert "\nReasonings: Pigeons are birds, and" in esnli
    assert "outdoors.\nAnswer: entailment\n\nPremise: Two boys" in esnli
    assert esnli.endswith("\n\nPremise: A man.\nHypothesis: A person.\nReasonings:")

    anli = prompts.load("anli1").completion_text("A man.</s>A person.")
    assert "earlier. So the answer is entailment.\n\nPremise: Ines" in anli
    assert anli.endswith("\n\nPremise: A man.\nHypothesis: A person.\nAnswer:")


def test_messages_are_turns() -> None:
    turns = prompts.load("cqa").messages(CQA_INPUT)
    assert [turn["role"] for turn in turns] == ["user", "assistant"] * 10 + ["user"]
    assert turns[1]["content"].startswith("A dripping umbrella")
    assert turns[-1]["content"] == f"Q: {CQA_INPUT}"
    zero = prompts.load("zero_shot").messages("Is ice cold?")
    assert [turn["role"] for turn in zero] == ["system", "user"]
    assert "So the answer is <answer>." in zero[0]["content"]


def test_the_gold_label_is_given_away_where_asked() -> None:
    prompt = prompts.load("cqa")
    asked = prompt.messages(CQA_INPUT, "cupboard")
    assert asked[-1]["content"] == f"Q: {CQA_INPUT}\n(The correct answer is (b) cupboard.)"
    assert asked[0]["content"].endswith("(The correct answer is (b) hallway stand.)")
    assert prompt.completion_text(CQA_INPUT, "cupboard").endswith("(b) cupboard.)\nA:")


def test_stop_sequences_come_from_the_layout() -> None:
    assert prompts.load("cqa").stop_sequences == ["\nQ:"]
    assert prompts.load("esnli").stop_sequences == ["\nPremise:"]
    assert prompts.load("zero_shot").stop_sequences == []


def test_braces_in_an_input_stay() -> None:
    text = prompts.load("svamp").completion_text("What is {input} + {label}?")
    assert text.endswith("Q: What is {input} + {label}?\nA:")


def test_an_input_without_its_parts_is_refused() -> None:
    with pytest.raises(UserError, match="premise \\+ hypothesis, separated by '</s>'"):
        prompts.load("esnli").messages("A man is a person.")


OWN = """
question = "Ticket: {input}"
answer = "Reasons: {rationale}\\nQueue: {label}"
labels = ["billing", "shipping"]

[[demonstrations]]
input = "I was charged twice."
rationale = "A charge is about money."
label = "billing"
"""


def test_a_prompt_of_ones_own(tmp_path: pathlib.Path) -> None:
    (tmp_path / "tickets.toml").write_text(OWN)
    prompt = prompts.load(str(tmp_path / "tickets.toml"))
    assert prompt.name == "tickets"
    assert prompt.completion_text("Where is it?") == (
        "Ticket: I was charged twice.\nReasons: A charge is about money.\nQueue: billing\n\n"
        "Ticket: Where is it?\nReasons:"
    )
    assert prompts.load(str(tmp_path)).digest == prompt.digest


def test_a_folder_may_hold_a_parser(tmp_path: pathlib.Path) -> None:
    (tmp_path / "prompt.toml").write_text(OWN)
    (tmp_path / "parser.py").write_text(
        "def parse(answer, text):\n"
        "    label, _, rationale = answer.partition('|')\n"
        "    if label == 'odd': raise RuntimeError\n"
        "    return (label, rationale) if rationale else None\n"
    )
    prompt = prompts.load(str(tmp_path))
    assert parsing.parse(prompt, "x", "billing|money") == parsing.ParsedAnswer("billing", "money")
    assert parsing.parse(prompt, "x", "billing").problem == "parser.py gives none"
    assert parsing.parse(prompt, "x", "odd|x").problem == "parser.py raises RuntimeError"
    assert prompt.digest != prompts.load(str(tmp_path / "prompt.toml")).digest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("question = ", "questoin = "), "unknown key questoin; did you mean question"),
        (('"Ticket: {input}"', '"Ticket"'), r"question must name \{input\}"),
        (("{rationale}", "{reason}"), r"answer must name \{rationale\}"),
        (("\\nQueue: ", ""), "needs words between"),
        (('"billing"\n', '"money"\n'), "demonstration 1 has the label 'money'"),
        (('rationale = "A charge is about money."', ""), "demonstration 1 has the keys"),
        (('answer = "', "answer = "), "expected a TOML file"),
        (("labels = [", "answers = 'number'\nlabels = ["), "expected one of text, choice"),
    ],
)
def test_broken_prompt_files(tmp_path: pathlib.Path, change: tuple[str, str], message) -> None:
    assert change[0] in OWN
    path = tmp_path / "tickets.toml"
    path.write_text(OWN.replace(*change))
    with pytest.raises(UserError, match=message) as error:
        prompts.load(str(path))
    assert str(path) in str(error.value)


def test_unknown_tasks(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match="did you mean svamp"):
        prompts.load("svmap")
    with pytest.raises(UserError, match="one \\*.toml in that folder; found: none"):
        prompts.load(str(tmp_path))


def test_prompts_travel_with_the_package() -> None:
    assert len(list(resources.prompt_folder().glob("*.toml"))) == 6
