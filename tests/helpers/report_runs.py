"""Folders of runs for tests of `report`: the paper's tables as results, and runs like `train`'s."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence

from distill_sbs.config import TrainConfig

# T5-Base on 100 % of the data, accuracy in %: Tables 1 and 2 of arXiv 2305.02301.
PAPER = {
    "esnli": {"finetune": 88.38, "joint": 88.88, "dss gpt_neox": 89.12, "dss palm": 89.51},
    "anli1": {"finetune": 43.58, "joint": 43.50, "dss gpt_neox": 48.15, "dss palm": 49.58},
    "cqa": {"finetune": 62.19, "joint": 61.37, "dss gpt_neox": 63.25, "dss palm": 63.29},
    "svamp": {"finetune": 62.63, "joint": 63.00, "dss gpt_neox": 63.00, "dss palm": 65.50},
}
# Measured from the released outputs of PaLM 540B; the paper prints no number.
TEACHER = {"esnli": 72.99, "anli1": 65.6, "cqa": 77.23, "svamp": 74.0}

# What the paper claims of figures whose points are printed nowhere: a student that beats a line is
# entered as 0.01 % above it, one that does not yet as 0.01 % below. (dataset, student, parameters,
# fraction, line, above)
CLAIMS = (
    ("esnli", "T5-Base", 220_000_000, 0.05, "finetune", False),
    ("esnli", "T5-Base", 220_000_000, 0.125, "finetune", True),
    ("anli1", "T5-Base", 220_000_000, 0.25, "finetune", True),
    ("cqa", "T5-Base", 220_000_000, 0.75, "finetune", True),
    ("svamp", "T5-Base", 220_000_000, 0.8, "finetune", True),
    ("esnli", "T5-Base", 220_000_000, 0.001, "teacher", True),
    ("anli1", "T5-Large", 770_000_000, 0.6, "teacher", False),
    ("anli1", "T5-Large", 770_000_000, 0.8, "teacher", True),
    ("cqa", "T5-Large", 770_000_000, 1.0, "teacher", False),
    ("cqa", "T5-XXL", 11_000_000_000, 1.0, "teacher", True),
)


def paper_results() -> list[dict[str, object]]:
    """The paper's tables and claims, in the form of docs/report.md."""
    results: list[dict[str, object]] = []
    for dataset, accuracies in PAPER.items():
        for name, accuracy in accuracies.items():
            method, _, teacher = name.partition(" ")
            teacher = teacher or ("palm" if method == "joint" else "")
            results.append(
                {
                    "dataset": dataset,
                    "method": method,
                    "teacher": teacher or None,
                    "model": "T5-Base",
                    "parameters": 220_000_000,
                    "data_fraction": 1.0,
                    "seeds": 4,
                    "test": {"accuracy": accuracy / 100},
                    "source": "arXiv 2305.02301, Tables 1 and 2",
                }
            )
    for dataset, model, parameters, fraction, line, above in CLAIMS:
        goal = TEACHER[dataset] if line == "teacher" else PAPER[dataset]["finetune"]
        # e-SNLI's 0.1 % is above the teacher and below finetuning.
        accuracy = goal + (0.01 if above else -0.01)
        results.append(
            {
                "dataset": dataset,
                "method": "dss",
                "teacher": "palm",
                "model": model,
                "parameters": parameters,
                "data_fraction": fraction,
                "seeds": 4,
                "test": {"accuracy": accuracy / 100},
                "source": "arXiv 2305.02301, a claim of the text; the point is printed nowhere",
            }
        )
    for dataset, accuracy in TEACHER.items():
        results.append(
            {
                "dataset": dataset,
                "method": "few_shot_cot",
                "teacher": "palm",
                "parameters": 540_000_000_000,
                "test": {"accuracy": accuracy / 100},
                "source": "measured from the released outputs",
            }
        )
    return results


def write_results(folder: pathlib.Path, results: object) -> None:
    """A `results.json` in a folder, made where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")


def write_run(
    folder: pathlib.Path,
    accuracy: float | None,
    *,
    metrics: Iterable[Mapping[str, float]] = (),
    **options: object,
) -> None:
    """A run's folder as `train` leaves it; without an accuracy one that has not finished."""
    given: dict[str, object] = {
        "model_dir": str(folder),
        "mixture_or_task_name": "wordproblems_dss_template",
        "task_feature_lengths": {"inputs": 64, "targets": 64},
        "vocabulary_file": "embedded",
        "batch_size": 32,
        "train_steps": 100,
        "initial_checkpoint_path": None,
        "student": "t5_1_1_tiny",
        "student_overrides": {"vocab_size": 640},
    }
    config = TrainConfig.from_options(**{**given, **options})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.gin").write_text(config.to_gin(), encoding="utf-8")
    lines = "".join(json.dumps(line) + "\n" for line in metrics)
    if lines:
        (folder / "metrics.jsonl").write_text(lines, encoding="utf-8")
    if accuracy is None:
        return
    values = {
        "mixture": config.data.mixture_or_task_name,
        "data_fraction": config.data.data_fraction,
        "rationale_rate": config.objective.rationale_rate,
        "seed": config.run.random_seed,
        "train_steps": config.run.train_steps,
        "best_step": config.run.train_steps,
        "validation": {"accuracy": accuracy},
        "test": {"accuracy": accuracy},
    }
    write_results(folder, values)


def write_sweep(
    folder: pathlib.Path,
    accuracies: Mapping[str, Mapping[float, Sequence[float]]],
    **options: object,
) -> None:
    """Runs of mixtures × fractions × seeds: mixture → fraction → accuracy by seed, 0 to 1."""
    for mixture, by_fraction in accuracies.items():
        for fraction, by_seed in by_fraction.items():
            for seed, accuracy in enumerate(by_seed):
                write_run(
                    folder / mixture / f"fraction_{fraction:g}" / f"seed_{seed}",
                    accuracy,
                    metrics=_curves(accuracy, "dss" in mixture, seed),
                    mixture_or_task_name=mixture,
                    data_fraction=fraction,
                    random_seed=seed,
                    **options,
                )


def _curves(accuracy: float, has_rationales: bool, seed: int) -> Iterable[dict[str, float]]:
    for step in range(10, 101, 10):
        line = {"step": step, "label_loss": 4 / step**0.5 + 0.02 * seed}
        if has_rationales:
            line["rationale_loss"] = 6 / step**0.5 + 0.03 * seed
        if step % 20 == 0:
            line["validation_accuracy"] = accuracy * step / 100
        yield line
