"""thinking: what models think aloud is no part of an answer."""

from __future__ import annotations

import pytest

from distill_sbs.data.readers import palm_outputs
from distill_sbs.data.readers.thinking import NOTHING_ELSE, UNFINISHED, find_final_part
from distill_sbs.teacher import parsing, prompts

FINAL = "It adds up. The answer is (1 + 2)."
THOUGHT = "Let me see. The answer is (9)."

# What stands before a thought, and what stands between it and the final part.
PAIRS = [
    ("<think>", "</think>"),
    ("<think>\n", "\n</think>\n\n"),
    ("<THINK>", "</THINK>"),
    ("< think >", "</ think >"),
    ('<think duration="3">', "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thinking>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<thoughts>", "</thoughts>"),
    ("<reasoning>", "</reasoning>"),
    ("<Reason>", "</Reason>"),
    ("<reflection>", "</reflection>"),
    ("<scratchpad>", "</scratchpad>"),
    ("<inner_monologue>", "</inner_monologue>"),
    ("<seed:think>", "</seed:think>"),
    ("&lt;think&gt;", "&lt;/think&gt;"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|><|begin_of_solution|>"),
    ("<|START_THINKING|>", "<|END_THINKING|><|START_RESPONSE|>"),
    ("<|thinking_start|>", "<|thinking_end|>"),
    ("<|think|>", "<|/think|>"),
    ("<｜begin▁of▁thinking｜>", "<｜end▁of▁thinking｜>"),
    ("<start_working_out>", "<end_working_out>"),
    ("<|channel>thought\n", "<channel|>"),
    ("<unused94>thought\n", "<unused95>"),
    ('<details type="reasoning" done="true">', "</details>"),
    ("<Think\n  id='1'\n>", "</tHINK\n>"),
    (f"<think note='{'x' * 999}'>", "</think>"),
    ("<ThoughtProcess>", "</ThoughtProcess>"),
    ("<beginthink>", "<endthink>"),
    ("<thinkpad>", "<//thinkpad>"),
    ("<mm:think>", "</mm:think>"),
    ("<think:opensource>", "</think:opensource>\n<answer:opensource>"),
    ("<chain-of-thought>", "</chain-of-thought>"),
    ("<ponder>", "</ponder>"),
    ("<brainstorm>", "</brainstorm>"),
    ("<internal>", "</internal>"),
    ("<planning>", "</planning>"),
    ("&LT;think&GT;", "&LT;/think&GT;"),
    ("&#60;think&#62;", "&#60;/think&#62;"),
    ("\\u003cthink\\u003e", "\\u003c/think\\u003e"),
    ("＜think＞", "＜／think＞"),
    ("【think】", "【/think】"),
    ("<\u200bthink>", "</\u200bthink>"),
    ("[[think]]", "[[/think]]"),
    ("{think}", "{/think}"),
    ("<%think%>", "<%/think%>"),
    ("```thinking\n", "\n```\n"),
    ("<details><summary>Thinking</summary>", "</details>"),
    ("<think>", "</think><answer>"),
    ("<think>", "</think>\n<response>\n"),
    ("Here is my thought process: ", "Here is my response: "),
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    ("<|CHANNEL|>Analysis<|MESSAGE|>", "<|END|><|START|>assistant<|CHANNEL|>Final<|MESSAGE|>"),
    ("<|channel|>analysis<|message|>", "<|end|><|channel|>final <|constrain|>json<|message|>"),
    ("<|channel|>analysis<|message|>", "<|end|><|channel|>commentary<|message|>x<|end|>"
     "<|start|>assistant<|channel|>final<|message|>"),
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant to=functions.f<|channel|>"
     "commentary <|constrain|>json<|message|>{}<|call|><|start|>assistant<|channel|>final"
     "<|message|>"),
    ("< | channel | >analysis< | message | >", "< | end | >< | channel | >final< | message | >"),
    ("analysis", "assistantfinal"),
    ("analysisthe user asks. ", "assistantcommentary to=functions.f json{}assistantfinal"),
]  # fmt: skip


@pytest.mark.parametrize(("opening", "closing"), PAIRS)
def test_the_final_part_is_kept(opening: str, closing: str) -> None:
    part = find_final_part(f"{opening}{THOUGHT}{closing}{FINAL}")
    assert (part.text.strip(), part.had_thinking, part.problem) == (FINAL, True, None)
    answer = parsing.parse(prompts.load("svamp"), "x", f"{opening}{THOUGHT}{closing}{FINAL}")
    assert answer == parsing.ParsedAnswer("(1 + 2)", "It adds up.", had_thinking=True)
    published = palm_outputs.parse_svamp(f"{opening}{THOUGHT}{closing}{FINAL}")
    assert (published.label, published.rationale) == ("(1 + 2)", "It adds up.")


@pytest.mark.parametrize(("opening", "closing"), PAIRS)
def test_an_unfinished_thought_is_no_answer(opening: str, closing: str) -> None:
    part = find_final_part(f"{opening}{THOUGHT}")
    assert (part.text, part.had_thinking, part.problem) == ("", True, UNFINISHED)
    assert palm_outputs.parse_svamp(f"{opening}{THOUGHT}") == palm_outputs.UNPARSED
    if opening.startswith(("analysis", "Here", "```")):
        return  # sentences and words begin a response, or mean what they say
    again = find_final_part(f"{opening}{THOUGHT}{closing}{FINAL}\n{opening}{THOUGHT}")
    assert THOUGHT not in again.text


@pytest.mark.parametrize(
    ("opening", "closing"), [pair for pair in PAIRS if not pair[0].startswith(("Here", "```"))]
)
def test_a_thought_that_the_template_opened(opening: str, closing: str) -> None:
    part = find_final_part(f"{THOUGHT}{closing}{FINAL}")
    if opening.startswith("<details"):  # a closing tag that other parts of a page have too
        return
    assert (part.text.strip(), part.had_thinking) == (FINAL, True)


@pytest.mark.parametrize(
    ("response", "final", "problem"),
    [
        ("<think>a<think>b</think>c</think>d", "d", None),
        ("<think>\n<think>a</think>d", "d", None),  # the template's tag, and the model's
        ("<think>a<think>b</think>c", "", UNFINISHED),
        ("<think>a<reasoning>b</think>d", "d", None),
        ("<think>a</think>b<think>c</think>d", "d", None),
        ("a</think>b</think>d", "d", None),
        ("<think></think>d", "d", None),
        ("<think/>d", "d", None),
        ("<think />d", "d", None),
        ("<think>a</think>", "", NOTHING_ELSE),
        ("<think>a</think>\n\n", "", NOTHING_ELSE),
        ("<think>a</think><answer>d</answer>", "d", None),
        ("<think>a</think><answer>d", "d", None),
        ("<|channel|>analysis<|message|>a<|end|>", "", UNFINISHED),
        ("<|channel|>commentary to=functions.f<|message|>{}<|call|>", "", UNFINISHED),
        ("<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final", "",
         UNFINISHED),
        ("analysis We. assistant final d", "d", None),
        ("Here are my reasoning steps:\na\n[BEGIN FINAL RESPONSE]\nd\n[END FINAL RESPONSE]", "d",
         None),
        ("[REASONING]a[/REASONING]d", "d", None),
        ("<THINK>a<reasoning>b</Reasoning>c</tHink>d", "d", None),
        ("<|channel|>final<|message|>d<|return|>", "d", None),
        ("<|channel|>final<|message|>d<|end|><|channel|>analysis<|message|>a", "d", None),
        ("<|channel|>analysis<|message|>a<|end|><|channel|>final<|message|><think>b</think>d",
         "d", None),
    ],
)  # fmt: skip
def test_nested_and_broken_thinking(response: str, final: str, problem: str | None) -> None:
    part = find_final_part(response)
    assert (part.text.strip(), part.had_thinking, part.problem) == (final, True, problem)


@pytest.mark.parametrize(
    "response",
    [
        FINAL,
        "analysis shows that 1 < 2. The answer is (1 + 2).",
        "[Reasoning] It adds up. The answer is (1 + 2).",
        "analysis's words, {reason} and <nothink> stay. The answer is (1 + 2).",
        "```python\nthink()\n```\nThe answer is (1 + 2).",
        "<details><summary>Steps</summary>It adds up.</details> The answer is (1 + 2).",
        "I think <b>it</b> adds up. [1, 2] <no_think> </details> The answer is (1 + 2).",
    ],
)
def test_what_is_no_thinking_stays(response: str) -> None:
    part = find_final_part(response)
    assert (part.text, part.had_thinking, part.problem) == (response, False, None)


def test_a_message_without_a_channel_is_the_final_part() -> None:
    part = find_final_part(f"<|start|>assistant<|message|>{FINAL}<|end|>")
    assert (part.text, part.had_thinking, part.problem) == (FINAL, False, None)


def test_the_layouts_own_tags_are_no_thinking() -> None:
    layout = "<reasoning>{rationale}</reasoning>\n<answer>{label}</answer>"
    response = "<think>Hm.</think><reasoning>It adds up.</reasoning>\n<answer>3</answer>"
    part = find_final_part(response, layout)
    assert part.text == "<reasoning>It adds up.</reasoning>\n<answer>3</answer>"
    assert find_final_part(part.text, layout).had_thinking is False
