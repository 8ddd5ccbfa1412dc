"""Every regular expression of the package, and hostile texts made from it; run as a program.

    python tests/helpers/adversarial_text.py

Enters: the package's source. Leaves: a line on standard output before each piece of work, and exit
status 1 with a line on standard error for whatever takes more than `MOST_SECONDS` of processor time
with a text of 100 kB. What grows with the square of a text takes hundreds of times as long as what
grows with the text, so the limit is no matter of how fast a machine is.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import pathlib
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from re import _constants, _parser  # type: ignore[attr-defined]
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]
LENGTH = 100_000
MOST_SECONDS = 3.0
# A shorter text first: only what is not instantaneous with it is tried with the long one.
SHORT_LENGTH = 20_000
SUSPICIOUS_SECONDS = 0.03

CALLS = ("compile", "match", "fullmatch", "search", "split", "sub", "subn", "findall", "finditer")

# Patterns that are put together inside a function: what stands in the source → one that it becomes.
PUT_TOGETHER: dict[tuple[str, str], str] = {
    (
        "distill_sbs/model/axes.py",
        r"pattern.replace('LAYER', f'(encoder|decoder)/(?:layers_\\d+|{STACKED})')",
    ): r"(encoder|decoder)/(?:layers_\d+|layers)/self_attention/(query|key|value)/kernel",
    (
        "distill_sbs/teacher/parsing.py",
        "_marker_pattern(prompt.answer_marker)",
    ): r"(?<!\w)So\s++the\s++answer\s++is(?!\w)",
}

_GENERIC = (
    *" \t\na1(){[<=.-_x|$é\"'",
    *("\n ", "a ", "1,", "()", "(a) ", "{a", "<a ", "</", "/a", "%a"),
)


@dataclasses.dataclass(frozen=True)
class Pattern:
    """A regular expression of the package, where it stands, and how it is used."""

    place: str
    text: str
    flags: int
    methods: tuple[str, ...]


def collect_patterns() -> tuple[list[Pattern], list[tuple[str, str]]]:
    """All of them; and (file, expression) of those that cannot be evaluated nor are listed."""
    found, unknown = [], []
    for path in sorted([*(ROOT / "distill_sbs").rglob("*.py"), *(ROOT / "tasks").glob("*.py")]):
        tree = ast.parse(path.read_text("utf-8"))
        names = {
            id(node.value): node.targets[0].id
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        }
        for call in ast.walk(tree):
            if not (
                isinstance(call, ast.Call)
                and isinstance(call.func, ast.Attribute)
                and isinstance(call.func.value, ast.Name)
                and call.func.value.id == "re"
                and call.func.attr in CALLS
            ):
                continue
            file = str(path.relative_to(ROOT))
            source = ast.unparse(call.args[0])
            text = PUT_TOGETHER.get((file, source)) or _evaluate(call.args[0], path)
            if text is None:
                unknown.append((file, source))
                continue
            methods: tuple[str, ...] = (call.func.attr,)
            if call.func.attr == "compile":
                methods = _methods_of(names.get(id(call)), tree) or ("search", "finditer")
            found.append(Pattern(f"{file}:{call.lineno}", text, _flags(call), methods))
    return found, unknown


class _Names(dict[str, Any]):
    def __missing__(self, name: str) -> str:
        return "a"


def _evaluate(node: ast.expr, path: pathlib.Path) -> str | None:
    names: dict[str, Any] = {}
    if not isinstance(node, ast.Constant):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        try:
            names = vars(importlib.import_module(module))
        except ImportError:
            return None
    try:
        # A name of a function's own stands for "a".
        text = eval(compile(ast.Expression(node), str(path), "eval"), {}, _Names(names))
    except AttributeError:
        return None
    if isinstance(text, bytes):
        return text.decode("latin-1")
    return text if isinstance(text, str) else None


def _flags(call: ast.Call) -> int:
    nodes = [keyword.value for keyword in call.keywords if keyword.arg == "flags"]
    assert isinstance(call.func, ast.Attribute)
    place = {"compile": 1, "sub": 4, "subn": 4, "split": 3}.get(call.func.attr, 2)
    nodes += call.args[place : place + 1]
    return int(eval(ast.unparse(nodes[0]), {"re": re})) if nodes else 0  # noqa: S307


def _methods_of(name: str | None, tree: ast.Module) -> tuple[str, ...]:
    uses = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == name
        and node.attr in CALLS
    }
    return tuple(sorted(uses))


# ---------------------------------- texts ------------------------------------


def _sample(items: Any) -> str:
    """A text that matches, more or less."""
    return "".join(_sample_of(code, argument) for code, argument in items)


def _sample_of(code: Any, argument: Any) -> str:
    if code is _constants.LITERAL:
        return chr(argument)
    if code is _constants.NOT_LITERAL:
        return "a" if argument != ord("a") else "b"
    if code is _constants.ANY:
        return "a"
    if code is _constants.IN:
        return _members(argument)[0]
    if code in (_constants.MAX_REPEAT, _constants.MIN_REPEAT, _constants.POSSESSIVE_REPEAT):
        low, _, body = argument
        return _sample(body) * max(1, low)
    if code is _constants.SUBPATTERN:
        return _sample(argument[-1])
    if code is _constants.ATOMIC_GROUP:
        return _sample(argument)
    if code is _constants.BRANCH:
        return _sample(argument[1][0])
    return ""


def _members(items: Any) -> list[str]:
    """Some characters of a set."""
    of_category = {
        _constants.CATEGORY_DIGIT: "1",
        _constants.CATEGORY_SPACE: " \n",
        _constants.CATEGORY_WORD: "a1",
        _constants.CATEGORY_NOT_WORD: " (",
        _constants.CATEGORY_NOT_SPACE: "a(",
        _constants.CATEGORY_NOT_DIGIT: "a ",
    }
    found, negated = [], False
    for code, argument in items:
        if code is _constants.NEGATE:
            negated = True
        elif code is _constants.LITERAL:
            found.append(chr(argument))
        elif code is _constants.RANGE:
            found.append(chr(argument[0]))
        elif code is _constants.CATEGORY:
            found += of_category[argument]
    if negated:
        return [each for each in "a 1(<" if each not in found] or ["a"]
    return found or ["a"]


def _repeats(items: Any, prefix: str) -> Iterator[tuple[str, str]]:
    """(text that leads to it, what it repeats) of every unbounded repetition."""
    for place, (code, argument) in enumerate(items):
        if code in (_constants.MAX_REPEAT, _constants.MIN_REPEAT, _constants.POSSESSIVE_REPEAT):
            _, high, body = argument
            if high > 10:
                yield prefix, _sample(body)
                # What ends the repetition, again and again.
                following = _sample(list(items)[place + 1 :])
                yield from ((prefix, following[:end]) for end in range(1, min(len(following), 8)))
                if len(body) == 1 and body[0][0] is _constants.IN:
                    yield from ((prefix, each) for each in _members(body[0][1]))
            yield from _repeats(body, prefix)
        elif code is _constants.SUBPATTERN:
            yield from _repeats(argument[-1], prefix)
        elif code is _constants.ATOMIC_GROUP:
            yield from _repeats(argument, prefix)
        elif code is _constants.BRANCH:
            for branch in argument[1]:
                yield from _repeats(branch, prefix)
        prefix += _sample_of(code, argument)


def hostile_pieces(text: str, flags: int) -> list[tuple[str, str]]:
    """(beginning, what is repeated after it) of texts that may make a pattern go back and forth."""
    items = _parser.parse(text, flags)
    whole = _sample(items)
    pieces = [("", each) for each in _GENERIC] + [("", whole), ("", whole[:-1]), ("", whole + " ")]
    for prefix, repeated in _repeats(items, ""):
        pieces += [("", repeated), (prefix, repeated), ("", prefix + repeated), ("", prefix)]
    return list(dict.fromkeys((start, each) for start, each in pieces if each))


# ---------------------------------- work -------------------------------------


class _TooLong(Exception):
    """The processor time is used up."""


def _stop(*_: object) -> None:
    raise _TooLong


def _seconds(work: Callable[[], object]) -> float:
    """Processor time that `work` takes, `MOST_SECONDS` at most."""
    start = time.process_time()
    try:
        signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
        try:
            work()
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    except _TooLong:  # out of the work, or in the moment after it
        return MOST_SECONDS
    return time.process_time() - start


def _apply(compiled: re.Pattern[str], method: str, text: str) -> object:
    if method == "finditer":
        return sum(1 for _ in compiled.finditer(text))
    if method in ("sub", "subn"):
        return compiled.sub("", text)
    return getattr(compiled, method)(text)


def check_pattern(pattern: Pattern) -> str | None:
    """What is wrong with it, if anything."""
    compiled = re.compile(pattern.text, pattern.flags)
    for method in pattern.methods:
        for start, repeated in hostile_pieces(pattern.text, pattern.flags):
            for end in ("", "\0"):

                def run(length: int, start=start, repeated=repeated, end=end, method=method):
                    text = start + repeated * (length // len(repeated)) + end
                    return _seconds(lambda: _apply(compiled, method, text))

                if run(SHORT_LENGTH) > SUSPICIOUS_SECONDS and run(LENGTH) >= MOST_SECONDS:
                    return (
                        f"{pattern.place}: re.{method} of {pattern.text!a} takes too long on "
                        f"{start!a} + many times {repeated!a} + {end!a}"
                    )
    return None


def hostile_texts() -> list[str]:
    """Texts of 100 kB for functions that read what users and models write."""
    pieces = [
        *(("", each) for each in _GENERIC),
        ("(a) b", " "), ("(a)", "\n(a) b"), ("", "(a) b\n"), ("x. The answer is ", "("),
        ("x. The answer is (", ")"), ("x. The answer is ", "1+"), ("x. The answer is ", "-"),
        ("x. The answer is ", "1"), ("x. The answer is 1", "0"), ("x", " The answer is (1)."),
        ("x. So the answer is ", "(a) b "), ("x", " So the answer is (a) b."), ("x. The", " "),
        ("x. So the answer is (a) b", " "), ("x\nAnswer: neutral", "."), ("", "Answer: "),
        ("", "\nQ:"), ("", "Q: "), ("", "<think>"), ("", "</think>"), ("", "<think>a</think>"),
        ("", "<think "), ("<think>", "a"), ("", "&lt;"), ("", "[THINK]"), ("", "<details>"),
        ("", "<|channel|>final<|message|>"), ("", "<|channel|>"), ("", "<|"), ("analysis", "A"),
        ("", "assistantfinal"), ("Here is my thought process:", "Here is my response:"),
        ("", "\\u"), ("", "[1,"), ("", '{"a":'), ("", "\x1b["), ("", "</s>"), ("", "**"),
    ]  # fmt: skip
    return [start + each * (LENGTH // len(each)) + "c" for start, each in pieces]


def functions() -> dict[str, Callable[[str], object]]:
    """Functions of the package that read what users and models write, by name."""
    from distill_sbs import errors, json_lines
    from distill_sbs.cli import terminal
    from distill_sbs.data import metrics
    from distill_sbs.data.readers import palm_outputs, thinking
    from distill_sbs.teacher import parsing, prompts, quality

    def parse_json(text: str) -> object:
        try:
            return json_lines.parse_json(text, "x")
        except errors.SourceError:
            return None

    def parse_with(task: str) -> Callable[[str], object]:
        prompt = prompts.load(task)
        return lambda text: parsing.parse(prompt, text, text, "length")

    return {
        # One of every form of answer.
        **{f"parse of {task}": parse_with(task) for task in ("svamp", "cqa", "esnli", "zero_shot")},
        "lettered_choices": prompts.lettered_choices,
        "find_final_part": lambda text: thinking.find_final_part(text, text[:1000]),
        "parse_cqa": palm_outputs.parse_cqa,
        "parse_svamp": palm_outputs.parse_svamp,
        "parse_esnli": palm_outputs.parse_esnli,
        "parse_anli": palm_outputs.parse_anli,
        "palm_outputs.find_expression": palm_outputs.find_expression,
        "equation_value": metrics.equation_value,
        "answers_match": lambda text: metrics.answers_match(text, text),
        "equations_match": lambda text: metrics.equations_match(text, text),
        "word_overlap": lambda text: metrics.word_overlap(text, text[::-1]),
        "holds_the_label": lambda text: quality.holds_the_label(text, text[: len(text) // 2] + "c"),
        "says_nothing_but_the_label": lambda text: quality.says_nothing_but_the_label(text, text),
        "terminal.clean": terminal.clean,
        "parse_json": parse_json,
        "find_surrogate": json_lines.find_surrogate,
    }


def main(texts: Sequence[str]) -> int:
    """Checks all patterns and functions, or the patterns given; the exit status."""
    global MOST_SECONDS
    signal.signal(signal.SIGPROF, _stop)
    if texts:
        MOST_SECONDS = 0.5
        given = [Pattern("given", text, re.MULTILINE, ("search",)) for text in texts]
        found = [fault for pattern in given if (fault := check_pattern(pattern))]
        print(*found, sep="\n", file=sys.stderr)
        return 1 if found else 0
    faults = []
    patterns, unknown = collect_patterns()
    faults += [f"{file}: add {source} to PUT_TOGETHER" for file, source in unknown]
    for pattern in patterns:
        print(f"{pattern.place}: {pattern.text!a}", flush=True)
        faults += [fault] if (fault := check_pattern(pattern)) else []
    texts = hostile_texts()
    for name, function in functions().items():
        print(name, flush=True)
        for text in texts:
            if _seconds(functools.partial(function, text)) >= MOST_SECONDS:
                faults.append(f"{name} takes too long with {text[:20]!a} … {text[-20:]!a}")
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
