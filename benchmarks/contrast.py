"""What a contrast does to a shared misconception, in a small world where the truth is known.

    python benchmarks/contrast.py --output=runs/contrast --seeds=0,1,2

A problem is four digits; its rationale adds them up one by one, modulo 10: `3 5 8 1` is
`3+5=8;8+8=6;6+1=7;=7`. The misconception: where the added digit is 5 or more, the written sum is
one too high. The amateur's data hold it always, the expert's with probability 0.6, the truth's
never. For each seed the three are trained, and the expert is then tuned on contrasts of 512
problems without labels, in every mode. Last comes the negative: a student of 500 steps on the
truth, with its own step 250 as the amateur. Each result is one line of OUTPUT/results.jsonl; what
is there already is not computed again. The plan and the results are in docs/contrast.md.
"""

from __future__ import annotations

import argparse
import json
import pathlib
from collections.abc import Iterator

import numpy as np

from distill_sbs.cli import quiet_tensorflow

quiet_tensorflow.import_tensorflow()

from distill_sbs.config import TrainConfig  # noqa: E402
from distill_sbs.contrast import contrast  # noqa: E402
from distill_sbs.contrasting.options import ContrastOptions  # noqa: E402
from distill_sbs.contrasting.rollouts import load_part  # noqa: E402
from distill_sbs.data import metrics, registration, settings  # noqa: E402
from distill_sbs.data.dataset import DatasetSpec, Example, RawSplit, TeacherOutput  # noqa: E402
from distill_sbs.data.records import build, soft_labels  # noqa: E402
from distill_sbs.inference.student import Student  # noqa: E402
from distill_sbs.train import train  # noqa: E402

SIZES = {"train": 6000, "validation": 512, "test": 400}
MISTAKEN = {"truth": 0.0, "expert": 0.6, "amateur": 1.0}
STUDENT = {
    "vocab_size": 384,
    "emb_dim": 64,
    "num_heads": 4,
    "head_dim": 16,
    "mlp_dim": 128,
    "num_encoder_layers": 2,
    "num_decoder_layers": 2,
    "logits_via_embedding": True,
}
# Character 6 i + 4 of a rationale is the i-th sum; 0 and 2 are copied, the others always the same.
PLACES = {"computed": (4,), "copied": (0, 2), "template": (1, 3, 5)}

# Name, mode, amateur, anchor's weight, tuning steps, learning rate.
RUNS = (
    ("contrast, anchor 0.1", "full", "amateur", 0.1, 100, 1e-4),
    ("no contrast", "no_contrast", "amateur", 0.1, 100, 1e-4),
    ("amateur better than the expert", "full", "truth", 0.1, 100, 1e-4),
    ("contrast, no anchor", "full", "amateur", 0.0, 100, 1e-4),
    ("no selection", "no_select", "amateur", 0.1, 100, 1e-4),
    ("neither", "neither", "amateur", 0.1, 100, 1e-4),
    ("random selection", "random_select", "amateur", 0.1, 100, 1e-4),
    ("overtuned, no anchor", "full", "amateur", 0.0, 300, 3e-4),
    ("overtuned, anchor 0.1", "full", "amateur", 0.1, 300, 3e-4),
)

# The negative: a student on the truth, and the step of the same run that is its amateur.
LATE, EARLY = 500, 250


def write_rationale(digits: list[int], mistaken: float, random: np.random.Generator) -> str:
    """A rationale, with the misconception at a probability."""
    total, steps = digits[0], []
    for digit in digits[1:]:
        wrong = digit >= 5 and random.random() < mistaken
        result = (total + digit + wrong) % 10
        steps.append(f"{total}+{digit}={result};")
        total = result
    return "".join(steps) + f"={total}"


def read_world(_: object, split: str) -> RawSplit:
    """The examples of a split, the same each time."""
    order = np.random.default_rng(0).permutation(10_000)
    begin = {"train": 0, "validation": 6000, "test": 6512}[split]
    random = np.random.default_rng([1, begin])

    def examples() -> Iterator[Example]:
        for number in order[begin : begin + SIZES[split]]:
            digits = [int(digit) for digit in f"{number:04d}"]
            label = str(sum(digits) % 10)
            outputs = {
                name: TeacherOutput(label, write_rationale(digits, share, random))
                for name, share in MISTAKEN.items()
            }
            yield Example(f"{split}-{number}", " ".join(map(str, digits)), label, outputs)

    return RawSplit(SIZES[split], examples)


def train_student(
    folder: pathlib.Path, data_dir: str, mixture: str, seed: int, steps: int, **changes: object
) -> None:
    """Trains, or tunes, one student."""
    train(
        TrainConfig.from_options(
            **{
                "model_dir": str(folder),
                "mixture_or_task_name": mixture,
                "task_feature_lengths": {"inputs": 24, "targets": 24, "task_ids": 24},
                "train_steps": steps,
                "batch_size": 64,
                "initial_checkpoint_path": None,
                "vocabulary_file": "bytes",
                "data_dir": data_dir,
                "student": "t5_1_1_tiny",
                "student_overrides": STUDENT,
                "dropout_rate": 0.0,
                "learning_rate": 1e-3,
                "random_seed": seed,
                "eval_period": steps,
                "eval_examples": 8,
                "log_period": 100,
                "max_decode_tokens": 24,
                **changes,
            }
        )
    )


def score(folder: pathlib.Path) -> float:
    """Share of test problems whose decoded rationale ends in the true sum."""
    examples = list(read_world(None, "test").examples())
    said = Student.load(str(folder)).explain([each.input for each in examples])
    right = [text[-1:] == each.label for text, each in zip(said, examples, strict=True)]
    return float(np.mean(right))


def tune(
    output: pathlib.Path,
    seed: int,
    number: int,
    students: tuple[str, str],
    mode: str,
    anchor: float,
    steps: int,
    rate: float,
) -> tuple[pathlib.Path, soft_labels.Manifest]:
    """Contrasts (expert, amateur) on problems without labels, and tunes the expert on it."""
    name, data_dir = f"s{seed}_{number}", str(output / "data")
    options = ContrastOptions(
        mode=mode, anchor_weight=anchor, num_problems=512, max_rollout=24, shard_size=512
    )
    manifest = contrast("chains", name, *students, options, split="validation", data_dir=data_dir)
    assert manifest is not None
    tuned = output / f"tuned-{seed}-{number}"
    train_student(
        tuned,
        data_dir,
        f"chains_contrast_{name}",
        seed,
        steps,
        batch_size=32,
        learning_rate=rate,
        initial_checkpoint_path=students[0],
    )
    return tuned, manifest


def count_places(data_dir: str, beta: float) -> dict[str, float]:
    """Share of positions of each kind whose divergence is at least β, of the newest rollouts."""
    work = pathlib.Path(data_dir, "contrast", "chains", ".rollouts")
    newest = max(work.iterdir(), key=lambda path: path.stat().st_mtime)
    kept: dict[str, list[bool]] = {name: [] for name in PLACES}
    for path in sorted(newest.glob("part-*")):
        part = load_part(path)
        for divergence, length in zip(part.divergence, part.lengths, strict=True):
            for place in range(1, min(int(length), 18)):
                kind = next(name for name, places in PLACES.items() if place % 6 in places)
                kept[kind].append(bool(divergence[place] >= np.float32(beta)))
    return {name: float(np.mean(values)) for name, values in kept.items()}


def main() -> None:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", required=True)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--runs", type=int, default=len(RUNS), help="the first so many of RUNS")
    given = parser.parse_args()
    output = pathlib.Path(given.output)
    output.mkdir(parents=True, exist_ok=True)
    data_dir = str(output / "data")
    registration.load_task_files()
    spec = DatasetSpec(
        "chains", read_world, metrics.answers_match, tuple(MISTAKEN), needs_source_dir=False
    )
    registration.register_dataset(spec)
    settings.use(settings.DataSettings(data_dir, vocabulary_file="bytes"))
    if not (output / "data" / "chains").exists():
        build.prepare_dataset(spec, None, data_dir, None)
    log = output / "results.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    done = {(row["seed"], row["run"]) for row in map(json.loads, lines)}

    def tell(seed: int, run: str, values: dict[str, object]) -> None:
        row = json.dumps({"seed": seed, "run": run, **values})
        with log.open("a") as file:
            file.write(row + "\n")
        print(row, flush=True)

    for seed in map(int, given.seeds.split(",")):
        students = {name: output / f"{name}-{seed}" for name in MISTAKEN}
        for name, folder in students.items():
            if (seed, name) in done:
                continue
            train_student(
                folder, data_dir, f"chains_rationale_{name}", seed, 700, keep_checkpoints=1
            )
            tell(seed, name, {"accuracy": score(folder)})
        for number, (run, mode, amateur, anchor, steps, rate) in enumerate(RUNS[: given.runs]):
            if (seed, run) in done:
                continue
            tuned, manifest = tune(
                output,
                seed,
                number,
                (str(students["expert"]), str(students[amateur])),
                mode,
                anchor,
                steps,
                rate,
            )
            values: dict[str, object] = {
                "accuracy": score(tuned),
                "kept": manifest.kept,
                "valid": manifest.valid,
            }
            if run == RUNS[0][0]:
                values["share kept by place"] = count_places(data_dir, manifest.beta)
            tell(seed, run, values)

        run = "an earlier step as the amateur"
        if (seed, run) not in done:
            late = output / f"late-{seed}"
            train_student(
                late, data_dir, "chains_rationale_truth", seed, LATE, checkpoint_period=EARLY
            )
            expert, amateur = (str(late / "checkpoints" / str(step)) for step in (LATE, EARLY))
            scores = {each: score(pathlib.Path(each)) for each in (expert, amateur)}
            tuned, manifest = tune(
                output, seed, len(RUNS), (expert, amateur), "full", 0.1, 100, 1e-4
            )
            tell(
                seed,
                run,
                {
                    "accuracy": score(tuned),
                    "expert": scores[expert],
                    "amateur": scores[amateur],
                    "kept": manifest.kept,
                    "valid": manifest.valid,
                },
            )


if __name__ == "__main__":
    main()
