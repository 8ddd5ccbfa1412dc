"""A training step of ours beside PyTorch's, eager and compiled, on one GPU: time and MFU.

    python benchmarks/gpu.py --size=t5_1_1_large --rounds=5
    python benchmarks/gpu.py --size=t5_1_1_tiny --rows=2 --inputs=64 --targets=32   # on a CPU

Enters: nothing; weights and tokens are random, rows are full, as packed ones are. Leaves: one line
of JSON. Wanted: JAX, Flax, Optax, torch and transformers; no TensorFlow, no SeqIO.

The same work for all three: transformers' T5 with our weights, parameters and AdamW in float32,
products in bfloat16 (autocast there, `dtype` here), no dropout, gradients clipped at norm 1, a mean
over all target tokens. Before anything is timed the losses of the first two steps are compared, and
a difference ends the program with status 1. Rounds of all three take turns, so that what else the
machine does, and how warm it is, meets each of them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

# Two libraries share the GPU's memory; each would otherwise take most of it when it starts.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import numpy as np
import torch
import torch_student

from distill_sbs import constants
from distill_sbs.config import ObjectiveConfig, OptimizerConfig
from distill_sbs.distributed import sharding
from distill_sbs.model import flops
from distill_sbs.model.config import REMAT_POLICIES, T5Config, named_config
from distill_sbs.precompiling import chips
from distill_sbs.training import optimizer, program

LEARNING_RATE = 1e-4
# Of the losses of two steps: bfloat16 products round differently in different orders.
LARGEST_DIFFERENCE = {"bfloat16": 2e-2, "float32": 1e-4}


def make_batch(config: T5Config, rows: int, inputs: int, targets: int) -> dict[str, np.ndarray]:
    """Full rows of random tokens, as the feature converter would give them, all of one task."""
    random = np.random.default_rng(0)

    def draw(length: int) -> np.ndarray:
        return random.integers(2, config.vocab_size, (rows, length)).astype(np.int32)

    target = draw(targets)
    return {
        constants.ENCODER_INPUT_TOKENS: draw(inputs),
        constants.DECODER_INPUT_TOKENS: np.pad(target, ((0, 0), (1, 0)))[:, :-1],
        constants.DECODER_TARGET_TOKENS: target,
        constants.DECODER_TASK_IDS: np.full_like(target, constants.LABEL_TASK_ID),
    }


class Ours:
    """Our training step; parameters are handed out before the first one."""

    def __init__(self, config: T5Config, batch: dict[str, np.ndarray]) -> None:
        self._mesh = sharding.make_mesh(1, jax.devices()[:1])
        update = optimizer.make_optimizer(
            OptimizerConfig(learning_rate=LEARNING_RATE, final_learning_rate=LEARNING_RATE), 1000
        )
        self._program = program.build_training_program(
            config, update, self._mesh, objective=ObjectiveConfig(), fsdp=False
        )
        with sharding.rules(self._mesh):
            self._state = self._program.make_state()
        self._batch = sharding.put_batch(batch, self._mesh)

    def parameters(self) -> Any:
        """Of the next step, on the host."""
        return jax.device_get(self._state.params)

    def step(self) -> float:
        """One step; waits for its loss."""
        with sharding.rules(self._mesh):
            self._state, metrics = self._program.step(self._state, self._batch)
        return float(metrics["loss"])


class Theirs:
    """transformers' T5 with given weights, trained as it is or compiled."""

    def __init__(self, config: T5Config, weights: Any, batch: dict[str, np.ndarray]) -> None:
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._autocast = config.dtype == "bfloat16"
        with self._device:  # where 783 million random numbers, which weights replace, are quick
            model = torch_student.make_model(config, weights)
        model.config.use_cache = False
        self.plain = model.to(self._device).train()
        self.compiled = torch.compile(self.plain)
        self._update = torch.optim.AdamW(
            self.plain.parameters(),
            lr=LEARNING_RATE,
            weight_decay=0.0,
            fused=self._device.type == "cuda",
        )
        self._inputs = self._tokens(batch[constants.ENCODER_INPUT_TOKENS])
        self._labels = self._tokens(batch[constants.DECODER_TARGET_TOKENS])

    def _tokens(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array.astype(np.int64)).to(self._device)

    def step(self, model: Any) -> float:
        """One step of `plain` or `compiled`, which share their parameters; waits for its loss."""
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast):
            loss = model(input_ids=self._inputs, labels=self._labels).loss
        self._update.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.plain.parameters(), 1.0)
        self._update.step()
        found = float(loss.detach())
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return found


def time_steps(step: Callable[[], float], steps: int) -> float:
    """Seconds a step, over so many."""
    start = time.perf_counter()
    for _ in range(steps):
        step()
    return (time.perf_counter() - start) / steps


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="t5_1_1_large", help="a size of T5 v1.1")
    parser.add_argument("--rows", type=int, default=8, help="rows a step; both must fit")
    parser.add_argument("--inputs", type=int, default=512, help="input tokens a row")
    parser.add_argument("--targets", type=int, default=128, help="target tokens a row")
    parser.add_argument("--dtype", choices=tuple(LARGEST_DIFFERENCE), default="bfloat16")
    parser.add_argument("--rounds", type=int, default=5, help="turns of all three")
    parser.add_argument("--steps", type=int, default=5, help="steps of each in a round")
    parser.add_argument("--remat_policy", choices=REMAT_POLICIES, default="minimal", help="ours")
    parser.add_argument("--softmax_in_dtype", action="store_true", help="ours, not in float32")
    parser.add_argument("--eager_only", action="store_true", help="without torch.compile")
    return parser.parse_args()


def main() -> int:
    """Compares losses, then times; returns the exit status."""
    options = read_arguments()
    config = named_config(
        options.size,
        dtype=options.dtype,
        dropout_rate=0.0,
        remat_policy=options.remat_policy,
        scan_layers=True,
        float32_attention_logits=not options.softmax_in_dtype,
    )
    batch = make_batch(config, options.rows, options.inputs, options.targets)
    start = time.perf_counter()
    ours = Ours(config, batch)
    theirs = Theirs(config, ours.parameters(), batch)
    print(f"both made in {time.perf_counter() - start:.1f} s", file=sys.stderr)

    # ---------------------------------- the same work? --------------------------
    losses = [(ours.step(), theirs.step(theirs.plain)) for _ in range(2)]
    differences = [abs(one - other) / abs(other) for one, other in losses]
    if max(differences) > LARGEST_DIFFERENCE[options.dtype]:
        print(f"losses of ours and of transformers differ: {losses}", file=sys.stderr)
        return 1

    # ---------------------------------- time ------------------------------------
    steps: dict[str, Callable[[], float]] = {
        "ours": ours.step,
        "torch_eager": lambda: theirs.step(theirs.plain),
    }
    if not options.eager_only:
        steps["torch_compiled"] = lambda: theirs.step(theirs.compiled)
    for name, step in steps.items():
        first, then = time_steps(step, 2), time_steps(step, 2)  # compiles, and settles
        print(f"{name}: {first:.1f} s a step at first, then {then:.4f}", file=sys.stderr)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(options.rounds):
        for name, step in steps.items():
            seconds[name].append(time_steps(step, options.steps))

    # ---------------------------------- report ----------------------------------
    _, chip = chips.devices_at_hand()
    work = flops.train_step_flops(config, options.rows, options.inputs, options.targets)
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    found = {
        **vars(options),
        "device": jax.devices()[0].device_kind,
        "versions": {"jax": jax.__version__, "torch": torch.__version__},
        "losses": losses,
        "model_flops": work,
        "peak_bytes": {
            "ours": (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use"),
            "torch": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
        },
        "seconds": {name: [min(each), medians[name], max(each)] for name, each in seconds.items()},
        "faster_than": {name: medians[name] / medians["ours"] for name in medians},
        "mfu": {
            name: work / (chip.tflops * 1e12 * each) if chip else None
            for name, each in medians.items()
        },
    }
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
