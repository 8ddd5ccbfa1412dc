"""How time and memory grow: a step, a start, a checkpoint; measurements, and a figure of them.

    python benchmarks/growth.py --output=build/growth [--parts=step,start,checkpoint]
    python benchmarks/growth.py --output=build/growth --figure=build/growth/growth.png

Enters: nothing; the data are made up. Leaves: a line of OUTPUT/growth.jsonl for each measurement,
as it is made (what is there is not measured again), or the figure. All of it on one core, and in
seconds of processor time, which other work on the machine changes least:

- step: of a student of width 64, by rows, by tokens of a row, by layers;
- start: from records to the first batch, by training examples, the first time and the second, when
  the tokens are there; and the most memory that the process had. Texts are as long as e-SNLI's;
- checkpoint: to save, and to check and restore, by the bytes of parameters and AdamW's state.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import random
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

ROWS, TOKENS, LAYERS = (4, 8, 16, 32, 64, 128), (16, 32, 64, 128, 256, 512), (1, 2, 4, 8, 16, 32)
EXAMPLES = (1_000, 10_000, 100_000, 549_367)  # the last is e-SNLI's training split
WIDTHS = (64, 128, 256, 512, 1024)
STEPS = 7
Measured = dict[str, object]


def student(**changes: int) -> dict[str, int]:
    """Fields of a small student."""
    shape = {
        "vocab_size": 512,
        "emb_dim": 64,
        "num_heads": 4,
        "head_dim": 16,
        "mlp_dim": 256,
        "num_encoder_layers": 2,
        "num_decoder_layers": 2,
    }
    return {**shape, **changes}


# ---------------------------------- a step -------------------------------------


def measure_step(rows: int, tokens: int, layers: int) -> Measured:
    """Processor seconds of one step: inputs and targets of `tokens` each, a sequence a row."""
    import jax
    import numpy as np

    from distill_sbs import constants
    from distill_sbs.config import OptimizerConfig, StudentConfig
    from distill_sbs.data.batches import layout
    from distill_sbs.model.network import Transformer
    from distill_sbs.training.optimizer import make_optimizer
    from distill_sbs.training.train_step import Objective, initial_state, make_train_step

    overrides = student(num_encoder_layers=layers, num_decoder_layers=layers)
    config = StudentConfig(name="t5_1_1_tiny", overrides=overrides, dropout_rate=0.0).architecture()
    model, update = Transformer(config), make_optimizer(OptimizerConfig(), 1000)
    step = jax.jit(make_train_step(model, update, Objective(), 0), donate_argnums=0)
    draw = np.random.default_rng(0)
    label = np.full(tokens, constants.LABEL_TASK_ID, np.int32)
    sequences = [
        layout.Sequence2Sequence(*draw.integers(2, 500, (2, tokens), dtype=np.int32), label)
        for _ in range(rows)
    ]
    shape = layout.BatchShape(rows, tokens, tokens)
    batch = layout.fill(sequences, layout.Layout(shape, shape))
    since = time.process_time()
    state, metrics = step(initial_state(model, update, 0), batch)
    jax.block_until_ready(metrics)
    compiled = time.process_time() - since
    taken = []
    for _ in range(STEPS):
        since = time.process_time()
        state, metrics = step(state, batch)
        jax.block_until_ready(metrics)
        taken.append(time.process_time() - since)
    return {"seconds": statistics.median(taken), "compile_seconds": compiled}


# ---------------------------------- a start ------------------------------------


def prepare_texts(data_dir: str, examples: int) -> None:
    """Records of made-up pairs of sentences, about as long as e-SNLI's."""
    from distill_sbs.cli import quiet_tensorflow

    quiet_tensorflow.import_tensorflow()
    from distill_sbs.data.dataset import Example, RawSplit, TeacherOutput
    from distill_sbs.data.records import build

    words = [f"{a}{b}{c}" for a in "bdfglmnprst" for b in "aeiou" for c in ("ck", "ll", "n", "st")]

    def read(_: object, split: str) -> RawSplit:
        count = examples if split == "train" else 1_000

        def every() -> Iterator[Example]:
            draw = random.Random(split)
            for number in range(count):
                first, second, reason = (
                    " ".join(draw.choices(words, k=many)) for many in (14, 8, 13)
                )
                label = draw.choice(("entailment", "neutral", "contradiction"))
                outputs = {"made_up": TeacherOutput(label, f"{reason}.")}
                yield Example(f"{split}-{number}", f"{first}. </s> {second}.", label, outputs)

        return RawSplit(count, every)

    build.prepare_dataset(register_texts(read), None, data_dir, None)


def register_texts(read=None):  # type: ignore[no-untyped-def]  # a reader, and a DatasetSpec
    """Registers the dataset `growth`; its reader is wanted for preparing alone."""
    from distill_sbs.data import metrics, registration
    from distill_sbs.data.dataset import DatasetSpec

    spec = DatasetSpec("growth", read, metrics.answers_match, ("made_up",), needs_source_dir=False)
    registration.register_dataset(spec)
    return spec


def measure_start(data_dir: str) -> Measured:
    """Processor seconds from records to the first batch, and the process's most memory."""
    from distill_sbs.cli import quiet_tensorflow

    quiet_tensorflow.import_tensorflow()
    from distill_sbs.data import registration, settings
    from distill_sbs.data.batches import input_pipeline

    settings.use(settings.DataSettings(data_dir, vocabulary_file="embedded"))
    register_texts()
    since, clock = time.process_time(), time.monotonic()
    mixture = registration.get_mixture_or_task("growth_dss_made_up")
    lengths = {"inputs": 128, "targets": 128}
    data = input_pipeline.load_training_data(mixture, lengths, 128, 0)
    next(data.batches(data.sampler.start()))
    return {
        "seconds": time.process_time() - since,
        "clock_seconds": time.monotonic() - clock,
        "bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


# ---------------------------------- a checkpoint -------------------------------


def measure_checkpoint(folder: pathlib.Path, width: int) -> Measured:
    """Processor seconds to save a step, and to check and restore it."""
    import jax
    import numpy as np

    from distill_sbs.checkpoint import steps
    from distill_sbs.checkpoint.checkpointer import Checkpointer
    from distill_sbs.checkpoint.description import RunDescription
    from distill_sbs.config import OptimizerConfig, StudentConfig
    from distill_sbs.distributed import sharding
    from distill_sbs.training.optimizer import make_optimizer
    from distill_sbs.training.program import build_training_program

    overrides = student(vocab_size=32128, emb_dim=width, mlp_dim=4 * width, head_dim=width // 4)
    config = StudentConfig(name="t5_1_1_tiny", overrides=overrides).architecture()
    update = make_optimizer(OptimizerConfig(), 1)
    program = build_training_program(config, update, sharding.make_mesh(1))
    draw = np.random.default_rng(0)
    state = jax.tree.map(
        lambda leaf: jax.device_put(
            draw.random(leaf.shape, np.float32).astype(leaf.dtype), leaf.sharding
        ),
        program.state,
    )
    lengths = {"inputs": 512, "targets": 128, "task_ids": 128}
    about = RunDescription(config, {"kind": "random"}, "random", lengths, 64)
    measured: Measured = {"state_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(state))}
    since = time.process_time()
    checkpointer = Checkpointer(str(folder))
    checkpointer.save(1, state, steps.Progress({"random": 1}), about)
    checkpointer.close()
    measured["seconds"] = time.process_time() - since
    since = time.process_time()
    steps.check_step(steps.step_folder(str(folder), 1))
    Checkpointer(str(folder)).restore(1, program.state)
    measured["restore_seconds"] = time.process_time() - since
    return measured


# ---------------------------------- all ----------------------------------------


def run_apart(*arguments: object) -> Measured:
    """One measurement in a process of its own, on one core."""
    core = str(max(os.sched_getaffinity(0)))
    command = ["taskset", "-c", core, sys.executable, __file__, "--one", *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    measured: Measured = json.loads(done.stdout.splitlines()[-1])
    return measured


def run_one(kind: str, *values: str) -> Measured:
    """What `run_apart` asks its process for."""
    if kind == "step":
        return measure_step(*map(int, values))
    if kind == "start":
        return measure_start(values[0])
    return measure_checkpoint(pathlib.Path(values[0]), int(values[1]))


def measure_all(output: pathlib.Path, parts: Sequence[str], most_examples: int) -> None:
    """Makes every measurement that is not there yet."""
    log = output / "growth.jsonl"
    done = {json.dumps(row["of"]) for row in read(log)}

    def note(of: Measured, measured: Measured) -> None:
        row = json.dumps({"of": of, **measured, "load": round(os.getloadavg()[0], 1)})
        with log.open("a") as file:
            file.write(row + "\n")
        print(row, flush=True)

    if "step" in parts:
        shapes = [("rows", each, 64, 2) for each in ROWS]
        shapes += [("tokens", 16, each, 2) for each in TOKENS]
        shapes += [("layers", 16, 64, each) for each in LAYERS]
        for axis, *shape in shapes:
            of: Measured = {"part": "step", "by": axis, "shape": shape}
            if json.dumps(of) not in done:
                note(of, run_apart("step", *shape))
    for examples in EXAMPLES if "start" in parts else ():
        of = {"part": "start", "examples": examples, "time": "first"}
        if json.dumps(of) in done or examples > most_examples:
            continue
        data_dir = output / f"data_{examples}"
        if not data_dir.exists():
            program = f"import growth; growth.prepare_texts({str(data_dir)!r}, {examples})"
            environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'benchmarks'}"}
            subprocess.run([sys.executable, "-c", program], env=environment, check=True)
        shutil.rmtree(data_dir / "growth" / ".tokens", ignore_errors=True)
        for which in ("first", "second"):
            note({**of, "time": which}, run_apart("start", data_dir))
    for width in WIDTHS if "checkpoint" in parts else ():
        of = {"part": "checkpoint", "width": width}
        if json.dumps(of) not in done:
            folder = output / "checkpoint"
            note(of, run_apart("checkpoint", folder, width))
            shutil.rmtree(folder)


def read(log: pathlib.Path) -> list[dict[str, object]]:
    """The lines of what was measured."""
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def draw(log: pathlib.Path, path: str) -> None:
    """Six small figures, both axes logarithmic."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    found = read(log)
    figure = Figure(figsize=(10, 5.6), layout="constrained")
    axes = figure.subplots(2, 3).flat

    def plot(axis, title: str, across: str, lines) -> None:  # type: ignore[no-untyped-def]
        for (name, points), colour, marker in zip(
            lines, ("#0072B2", "#D55E00"), "os", strict=False
        ):
            if points:
                axis.plot(
                    *zip(*sorted(points), strict=True), marker=marker, color=colour, label=name
                )
        axis.set(title=title, xlabel=across, xscale="log", yscale="log", ymargin=0.15)
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.grid(visible=True, which="both", color="#dddddd")
        axis.legend(fontsize=8)

    for place, name in enumerate(("rows", "tokens", "layers")):
        rows = [each for each in found if each["of"].get("by") == name]  # type: ignore[attr-defined]
        points = [(each["of"]["shape"][place], 1e3 * each["seconds"]) for each in rows]  # type: ignore
        across = {"rows": "rows a step", "tokens": "tokens a row", "layers": "layers, each stack"}
        plot(next(axes), f"a step by {name}", across[name], [("ms of processor", points)])
    starts = [each for each in found if each["of"]["part"] == "start"]  # type: ignore[index]
    by_time = [
        (which, [(each["of"]["examples"], each) for each in starts if each["of"]["time"] == which])  # type: ignore
        for which in ("first", "second")
    ]
    plot(
        next(axes),
        "from records to the first batch",
        "training examples",
        [(f"s, the {which} time", [(x, y["seconds"]) for x, y in own]) for which, own in by_time],
    )
    plot(
        next(axes),
        "memory of that process",
        "training examples",
        [(f"GB, the {w} time", [(x, y["bytes"] / 1e9) for x, y in own]) for w, own in by_time],
    )
    saved = [each for each in found if each["of"]["part"] == "checkpoint"]  # type: ignore[index]
    plot(
        next(axes),
        "a checkpoint",
        "GB of parameters and AdamW's state",
        [
            (name, [(each["state_bytes"] / 1e9, each[key]) for each in saved])  # type: ignore[operator]
            for name, key in (("s to save", "seconds"), ("s to restore", "restore_seconds"))
        ],
    )
    figure.savefig(path, dpi=110)


def main() -> None:
    """Does what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", default="build/growth")
    parser.add_argument("--parts", default="step,start,checkpoint")
    parser.add_argument("--most_examples", type=int, default=EXAMPLES[-1])
    parser.add_argument("--figure", help="draws what was measured into this file")
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(run_one(*given.one)))
        return
    output = pathlib.Path(given.output).absolute()
    if given.figure:
        draw(output / "growth.jsonl", given.figure)
        return
    output.mkdir(parents=True, exist_ok=True)
    measure_all(output, given.parts.split(","), given.most_examples)


if __name__ == "__main__":
    main()
