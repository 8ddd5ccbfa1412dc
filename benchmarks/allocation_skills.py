"""Made-up skills for allocate: which a task needs, one it does not, and one that contradicts.

    python benchmarks/allocation_skills.py build/skills
    python -m distill_sbs.allocate --task_file=benchmarks/allocation_skills_tasks.py \
      --gin_file=build/skills/allocate.gin --gin.POLICY="'linucb'"

Enters: a folder. Leaves: in it JSON Lines of five datasets, a task card and a gin file. `add` is
the last digit of a sum, `max` the largest of three digits, `compare` a sign between two numbers;
`clash` asks as `add` does and answers with the last digit of the difference. `both`, the task, is
`add` and `max`, half and half.
"""

from __future__ import annotations

import json
import pathlib
import random
import sys
from collections.abc import Callable

Skill = Callable[[random.Random], tuple[str, str]]
TRAINING, HELD_OUT = 3000, 200


def _add(draws: random.Random) -> tuple[str, str]:
    first, second = draws.randrange(10, 100), draws.randrange(10, 100)
    return f"{first} and {second} ?", str((first + second) % 10)


def _clash(draws: random.Random) -> tuple[str, str]:
    first, second = draws.randrange(10, 100), draws.randrange(10, 100)
    return f"{first} and {second} ?", str((first - second) % 10)


def _max(draws: random.Random) -> tuple[str, str]:
    digits = [draws.randrange(10) for _ in range(4)]
    return f"largest of {' '.join(map(str, digits))} ?", str(max(digits))


def _compare(draws: random.Random) -> tuple[str, str]:
    first, second = draws.randrange(100, 1000), draws.randrange(100, 1000)
    return f"is {first} more than {second} ?", "yes" if first > second else "no"


def _both(draws: random.Random) -> tuple[str, str]:
    return draws.choice([_add, _max])(draws)


SKILLS: dict[str, Skill] = {
    "add": _add, "max": _max, "compare": _compare, "clash": _clash, "both": _both,
}  # fmt: skip

GIN = """include 'gin/models/embedded_2x64.gin'

MIXTURE_OR_TASK_NAME = 'both_label'
CAPABILITIES = {{
    'add': 'add_label', 'max': 'max_label', 'compare': 'compare_label', 'clash': 'clash_label',
}}
TASK_CARD = '{folder}/card.toml'
DATA_DIR = '{folder}/prepared'
TASK_FEATURE_LENGTHS = {{'inputs': 32, 'targets': 8}}
VOCABULARY_FILE = 'embedded'
INITIAL_CHECKPOINT_PATH = None
DROPOUT_RATE = 0.0
BUDGET_TOKENS = 360000
INTERVAL_TOKENS = 30000
WARMUP_INTERVALS = 3
TOKEN_COST = 0.0
TOP_K = 4
BATCH_SIZE = 64
LEARNING_RATE = 2e-3
MAX_DECODE_TOKENS = 4
MODEL_DIR = '{folder}/run'
"""


def write_rows(path: pathlib.Path, skill: Skill, count: int, seed: str) -> None:
    """Questions of a skill, each once."""
    draws = random.Random(seed)
    seen: set[str] = set()
    lines = []
    while len(lines) < count:
        question, answer = skill(draws)
        if question not in seen:
            seen.add(question)
            row = {"id": f"{path.stem}-{len(lines)}", "input": question, "label": answer}
            lines.append(json.dumps(row) + "\n")
    path.write_text("".join(lines))


def main(folder: str) -> None:
    """Writes everything."""
    root = pathlib.Path(folder).absolute()
    root.mkdir(parents=True, exist_ok=True)
    for name, skill in SKILLS.items():
        write_rows(root / f"{name}.jsonl", skill, TRAINING, f"{name} train")
        for split in ("validation", "test"):
            write_rows(root / f"{name}_{split}.jsonl", skill, HELD_OUT, f"{name} {split}")
    (root / "card.toml").write_text("[requirement]\nadd = 0.5\nmax = 0.5\n")
    (root / "allocate.gin").write_text(GIN.format(folder=root))


if __name__ == "__main__":
    main(sys.argv[1])
