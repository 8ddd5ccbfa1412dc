"""The program of a run: its state's shapes and shardings, and the jitted training step.

Enters: a student's configuration, an optimizer, a mesh. Leaves: what `train` runs, and what
`precompile` compiles without running it.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from distill_sbs.config import ObjectiveConfig
from distill_sbs.distributed import sharding
from distill_sbs.model.config import T5Config
from distill_sbs.model.network import Transformer
from distill_sbs.training.train_step import (
    Batch,
    Metrics,
    Objective,
    TrainState,
    initial_state,
    make_train_step,
)

Made = TypeVar("Made")
_Shapes = tuple[tuple[int, ...], ...]

# Float32 logits alive at once on a device; a larger batch's are computed in chunks.
LOGITS_BYTES_PER_DEVICE = 2**28

_DEFAULT_OBJECTIVE = ObjectiveConfig()


@dataclasses.dataclass(frozen=True)
class TrainingProgram:
    """What a run executes.

    Attributes:
      model: the student.
      mesh: the devices.
      fsdp: whether parameters and optimizer state are split over the data axis.
      state: a `TrainState` of `jax.ShapeDtypeStruct`s that say where they lie.
      shardings: the same tree of shardings alone.
      logits_chunk_tokens: target positions whose logits may be alive at once.
      step: `step(state, batch) -> (state, metrics)`, jitted; the state given is given away. Call or
        lower it inside `sharding.rules(mesh)`.
      make_state: `make_state() -> state` before the first step, jitted, in its place.
      make_state_around: the same without parameters (`{}`), of which no random ones are made.
    """

    model: Transformer
    mesh: Mesh
    fsdp: bool
    state: TrainState
    shardings: TrainState
    logits_chunk_tokens: int
    step: SeededProgram[tuple[TrainState, Metrics]]
    make_state: SeededProgram[TrainState]
    make_state_around: SeededProgram[TrainState]

    def compile_step_ahead(self, batch: Mapping[str, np.ndarray]) -> None:
        """Compiles the step for batches of this one's shape, in the background."""
        by_row = sharding.batch_sharding(self.mesh)
        abstract = sharding.add_shardings(batch, dict.fromkeys(batch, by_row))

        def compile_step() -> jax.stages.Compiled:
            with sharding.rules(self.mesh):
                return self.step.lower(self.state, abstract).compile()

        self.step.expect((self.state, abstract), compile_step)


class SeededProgram(Generic[Made]):
    """A jitted function whose last argument is a seed, given by now.

    The seed is an argument of what is compiled, no constant in it: runs that differ in their seed
    alone are one program, which the second one finds in the cache of compiled programs.
    """

    def __init__(self, function: jax.stages.Wrapped, seed: int) -> None:
        self._function = function
        self._seed = np.uint32(seed)
        self._ahead: dict[_Shapes, concurrent.futures.Future[jax.stages.Compiled]] = {}
        self._background = concurrent.futures.ThreadPoolExecutor(1)

    def __call__(self, *arguments: object) -> Made:
        """Runs it; where it is being compiled for such arguments, as soon as it is."""
        ahead = self._ahead.get(_find_shapes(arguments)) if self._ahead else None
        function = ahead.result() if ahead else self._function
        made: Made = function(*arguments, self._seed)
        return made

    def expect(
        self, arguments: tuple[object, ...], compile_it: Callable[[], jax.stages.Compiled]
    ) -> None:
        """Compiles it in another thread, for arguments of these shapes."""
        self._ahead[_find_shapes(arguments)] = self._background.submit(compile_it)

    def lower(self, *arguments: object) -> jax.stages.Lowered:
        """Lowers it for the compiler."""
        return self._function.lower(*arguments, self._seed)


def _find_shapes(arguments: tuple[object, ...]) -> _Shapes:
    return tuple(leaf.shape for leaf in jax.tree.leaves(arguments))


def build_training_program(
    config: T5Config,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    objective: ObjectiveConfig = _DEFAULT_OBJECTIVE,
    fsdp: bool | None = None,
    seed: int = 0,
    num_microbatches: int = 1,
    use_hardware_rng: bool = False,
) -> TrainingProgram:
    """Builds the program; nothing is allocated or compiled.

    Args:
      config: the student's.
      optimizer: an optax transformation.
      mesh: from `sharding.make_mesh`.
      objective: what is minimised.
      fsdp: see `sharding.choose_fsdp`.
      seed: of dropout.
      num_microbatches, use_hardware_rng: see `train_step.make_train_step`.
    """
    model = Transformer(config)
    state = jax.eval_shape(lambda: initial_state(model, optimizer, seed))
    fsdp = sharding.choose_fsdp(fsdp, mesh, optimizer, state)
    shardings = sharding.state_shardings(mesh, optimizer, state, fsdp)
    chunk_tokens = LOGITS_BYTES_PER_DEVICE * mesh.size // (4 * config.vocab_size)
    how = Objective(
        objective.rationale_rate,
        objective.label_smoothing,
        objective.z_loss,
        chunk_tokens,
        objective.mutual_information_weight,
    )

    def step(state: TrainState, batch: Batch, seed: jax.Array) -> tuple[TrainState, Metrics]:
        one = make_train_step(
            model, optimizer, how, seed, num_microbatches, shardings.params, use_hardware_rng
        )
        return one(state, batch)

    def make_state(seed: jax.Array) -> TrainState:
        return initial_state(model, optimizer, seed)

    def make_state_around(seed: jax.Array) -> TrainState:
        return initial_state(model, optimizer, seed).replace(params={})

    replicated = sharding.replicated(mesh)
    jitted_step = jax.jit(
        step,
        in_shardings=(shardings, sharding.batch_sharding(mesh), replicated),
        out_shardings=(shardings, replicated),
        donate_argnums=0,
    )
    jitted_state = jax.jit(make_state, in_shardings=replicated, out_shardings=shardings)
    jitted_around = jax.jit(
        make_state_around,
        in_shardings=replicated,
        out_shardings=shardings.replace(params={}),
    )
    return TrainingProgram(
        model,
        mesh,
        fsdp,
        sharding.add_shardings(state, shardings),
        shardings,
        chunk_tokens,
        SeededProgram(jitted_step, seed),
        SeededProgram(jitted_state, seed),
        SeededProgram(jitted_around, seed),
    )
