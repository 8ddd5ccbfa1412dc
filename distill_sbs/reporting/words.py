"""The words of a report: methods by name, and numbers and texts as people read them.

Enters: values of runs, and texts from anywhere. Leaves: one line of text each, without anything
that a terminal obeys; escaping for HTML, Markdown or CSV is left to whoever writes those.
"""

from __future__ import annotations

import dataclasses
import math
import textwrap
from collections.abc import Iterable

from distill_sbs.cli import terminal


@dataclasses.dataclass(frozen=True)
class Method:
    """What is known of a method.

    Attributes:
      name: as results and mixtures have it.
      title: as the paper calls it.
      has_rate: whether λ means something to it.
      asks_teacher: whether the teacher is needed at test time.
    """

    name: str
    title: str
    has_rate: bool = False
    asks_teacher: bool = False


FEW_SHOT = "few_shot_cot"
FINETUNE, DISTILL, DSS, DSS_DISTILL = "finetune", "distill", "dss", "dss_distill"
JOINT, PINTO = "joint", "pinto"
PRETRAIN = "pretrain"

# In the order in which they are listed.
METHODS = {
    each.name: each
    for each in (
        Method(FINETUNE, "standard finetuning"),
        Method(DISTILL, "standard distillation"),
        Method(DSS, "distilling step-by-step", has_rate=True),
        Method(DSS_DISTILL, "distilling step-by-step, teacher labels", has_rate=True),
        Method(JOINT, "single-task"),
        Method(PINTO, "PINTO tuning", asks_teacher=True),
        Method(FEW_SHOT, "few-shot CoT of the teacher", asks_teacher=True),
        Method(PRETRAIN, "pretraining"),
    )
}

# The word for a method inside the name of a mixture or task → the method; with a teacher's name
# behind it, and without.
_WITH_TEACHER = {
    "dss_distill": DSS_DISTILL,
    "dss": DSS,
    "distill": DISTILL,
    "joint": JOINT,
    "pinto": PINTO,
    "label": DISTILL,
    "rationale": "rationale",
    "teacher": FEW_SHOT,
}
_ALONE = {"finetune": FINETUNE, "label": FINETUNE, "pretrain": PRETRAIN}


def describe_method(name: str) -> Method:
    """The method of that name; of an unknown one only the name is known."""
    return METHODS.get(name) or Method(name, name, has_rate=True)


def rank_method(name: str) -> tuple[int, str]:
    """Where a method stands in lists: known ones first, as in the paper."""
    return (list(METHODS).index(name) if name in METHODS else len(METHODS), name)


def split_mixture(mixture: str) -> tuple[str, str, str | None]:
    """Dataset, method and teacher of a mixture's or task's name, as `docs/data.md` forms them.

    A name may be read in several ways where a dataset's name has such a word in it; the shortest
    teacher is taken. Results that state `dataset`, `method` and `teacher` are never read like this.
    """
    for word, method in _ALONE.items():
        if mixture.endswith(f"_{word}") and len(mixture) > len(word) + 1:
            return mixture[: -len(word) - 1], method, None
    found: list[tuple[int, str, str, str]] = []
    for word, method in _WITH_TEACHER.items():
        dataset, separator, teacher = mixture.rpartition(f"_{word}_")
        if separator and dataset and teacher:
            found.append((len(teacher), dataset, method, teacher))
    if not found:
        return mixture, "other", None
    # `a_dss_distill_t`: both `dss_distill` of `a` and `distill` of `a_dss`; the former.
    _, dataset, method, teacher = min(found, key=lambda each: (each[0], len(each[1])))
    return dataset, method, teacher


# ---------------------------------- texts ------------------------------------


def show_lines(text: str) -> str:
    """A text in its lines, controls shown as escapes, and what is no Unicode text as well."""
    whole = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return terminal.clean(whole)


def join_lines(text: str) -> str:
    """A text on one line, controls shown as escapes."""
    return " ".join(show_lines(text).split())


def cut(text: str, most: int) -> str:
    """A text on one line of at most so many characters; of a longer one the end is left out."""
    text = join_lines(text)
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def wrap(text: str, width: int, most_lines: int) -> str:
    """A text in lines of a width; of one that needs too many the middle is left out."""
    text, most = join_lines(text), width * most_lines
    if len(text) > most:
        half = (most - 3) // 2
        text = f"{text[:half]} … {text[-half:]}"
    return "\n".join(textwrap.wrap(text, width, break_on_hyphens=False))


def describe_setting(macro: str, value: str) -> str:
    """An option in which runs differ, behind a method's name: 'from runs/a', 'SEED=1'."""
    if macro == "INITIAL_CHECKPOINT_PATH":
        return f"from {'random parameters' if value == 'None' else value}"
    return f"{macro}={value}"


# ---------------------------------- numbers ----------------------------------


def show_percent(share: float, digits: int = 1) -> str:
    """0.8838 is '88.4'."""
    return f"{100 * share:.{digits}f}"


def show_signed(share: float) -> str:
    """A difference in percentage points: 0.0113 is '+1.1'."""
    return f"{100 * share:+.1f}"


def show_seeds(counts: Iterable[int]) -> str:
    """'4 seeds', '1 seed', '1 to 4 seeds'."""
    found = sorted(set(counts))
    if not found:
        return "no seed"
    numbers = str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}"
    return f"{numbers} seed" + ("" if found == [1] else "s")


def show_fraction(fraction: float | None) -> str:
    """A data fraction: 0.125 is '12.5 %'."""
    return "–" if fraction is None else f"{100 * fraction:.4g} %"


def show_rate(rate: float | None) -> str:
    """λ: 1.0 is '1'."""
    return "–" if rate is None else f"{rate:g}"


def show_count(count: float | None) -> str:
    """Parameters, FLOPs and the like with three digits: 220000000 is '220 M'."""
    if count is None or not math.isfinite(count):
        return "–"
    for power, unit in ((18, "E"), (15, "P"), (12, "T"), (9, "B"), (6, "M"), (3, "k")):
        if count >= 10**power * 0.9995:
            return f"{count / 10**power:.3g} {unit}"
    return f"{count:.3g}"


def show_step(step: float) -> str:
    """A step on an axis: 800, 20 k."""
    return f"{step:g}" if abs(step) < 10_000 else show_count(step)


def show_flops(count: float | None) -> str:
    """FLOPs as a power of ten: 8.15e12 is '8.2e12'."""
    if count is None or not math.isfinite(count):
        return "–"
    mantissa, _, exponent = f"{count:.1e}".partition("e")
    return f"{mantissa}e{int(exponent)}"
