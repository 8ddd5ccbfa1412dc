"""A bandit that is uncertain where small networks disagree.

Enters: contexts, mixtures and rewards. Leaves: the candidate of the highest mean + κ · deviation
over five networks, each of its own bootstrap sample (arXiv 2605.11290, and its released code, but
for the scales of what goes in and out: there the tokens that are left stand as a raw count beside
log-probabilities, and rewards as they come).
"""

from __future__ import annotations

import numpy as np

from distill_sbs.allocating.context import Context, draw_candidate

MEMBERS = 5
WIDTH = 64
STEPS = 200
BATCH_SIZE = 64
LEARNING_RATE = 1e-3
_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-8
_LEAST_SCALE = 1e-12


class EnsembleBandit:
    """Upper confidence bounds of an ensemble of multilayer perceptrons.

    All members are computed at once: the first axis of every array is theirs, M.
    """

    def __init__(self, seed: int, kappa: float, warmup: int) -> None:
        self.kappa = kappa
        self._seed = seed
        self._warmup = warmup
        self._inputs: list[np.ndarray] = []
        self._rewards: list[float] = []
        self._parameters: list[np.ndarray] = []
        self._moments: list[tuple[np.ndarray, np.ndarray]] = []
        self._steps = 0

    def select(self, context: Context, candidates: np.ndarray, interval: int) -> np.ndarray:
        """See `policies.Policy`."""
        if interval < self._warmup or not self._rewards:
            return draw_candidate(candidates, self._seed, interval)
        mean, deviation = self.predict(context, candidates)
        return np.asarray(candidates[int(np.argmax(mean + self.kappa * deviation))])

    def predict(self, context: Context, candidates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation (n - 1) over the members, of rewards in standard units, [A] each."""
        inputs = np.array([_join(context, mixture) for mixture in candidates])
        outputs, _ = self._forward(np.broadcast_to(inputs, (MEMBERS, *inputs.shape)))
        return outputs.mean(axis=0), outputs.std(axis=0, ddof=1)

    def update(self, context: Context, mixture: np.ndarray, reward: float) -> None:
        """Notes a reward, and trains every member some more on its own sample of all so far."""
        self._inputs.append(_join(context, mixture))
        self._rewards.append(reward)
        count = len(self._rewards)
        draws = np.random.default_rng([self._seed, count, 1])
        if not self._parameters:
            self._initialise(len(self._inputs[0]))
        rewards = np.array(self._rewards)
        scale = max(float(rewards.std()), _LEAST_SCALE) if count > 1 else 1.0
        targets = (rewards - rewards.mean()) / scale
        chosen = draws.integers(count, size=(MEMBERS, count))  # the bootstrap samples
        inputs, targets = np.array(self._inputs)[chosen], targets[chosen]  # [M, N, F], [M, N]
        batch_size = min(BATCH_SIZE, count)
        members = np.arange(MEMBERS)[:, None]
        for _ in range(STEPS):
            batch = draws.integers(count, size=(MEMBERS, batch_size))
            self._step(inputs[members, batch], targets[members, batch])

    def _initialise(self, features: int) -> None:
        draws = np.random.default_rng([self._seed, 2])
        sizes = [features, WIDTH, WIDTH, 1]
        for fan_in, fan_out in zip(sizes[:-1], sizes[1:], strict=True):
            bound = fan_in**-0.5
            self._parameters.append(draws.uniform(-bound, bound, (MEMBERS, fan_in, fan_out)))
            self._parameters.append(draws.uniform(-bound, bound, (MEMBERS, 1, fan_out)))
        self._moments = [(np.zeros_like(each), np.zeros_like(each)) for each in self._parameters]

    def _forward(self, inputs: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        """Outputs [M, N] of inputs [M, N, F], and what each layer was given."""
        given = [inputs]
        for layer in range(0, len(self._parameters), 2):
            weights, bias = self._parameters[layer : layer + 2]
            hidden = given[-1] @ weights + bias
            is_last = layer + 2 == len(self._parameters)
            given.append(hidden if is_last else np.maximum(hidden, 0.0))
        return given[-1][..., 0], given[:-1]

    def _step(self, inputs: np.ndarray, targets: np.ndarray) -> None:
        """One step of Adam on the mean squared error of each member."""
        outputs, given = self._forward(inputs)
        gradient = (2.0 / targets.shape[1] * (outputs - targets))[..., None]  # [M, N, 1]
        gradients: list[np.ndarray] = []
        for layer in range(len(self._parameters) - 2, -1, -2):
            into = given[layer // 2]
            gradients[:0] = [
                into.transpose(0, 2, 1) @ gradient,
                gradient.sum(axis=1, keepdims=True),
            ]
            if layer:
                gradient = (gradient @ self._parameters[layer].transpose(0, 2, 1)) * (into > 0)
        self._steps += 1
        for parameter, each, (first, second) in zip(
            self._parameters, gradients, self._moments, strict=True
        ):
            first += (1 - _BETA_1) * (each - first)
            second += (1 - _BETA_2) * (each**2 - second)
            rate = LEARNING_RATE / (1 - _BETA_1**self._steps)
            parameter -= rate * first / (np.sqrt(second / (1 - _BETA_2**self._steps)) + _EPSILON)


def _join(context: Context, mixture: np.ndarray) -> np.ndarray:
    """[r, saturation, remaining, w], all between 0 and 1, [3K + 1]."""
    return np.concatenate([context.requirement, context.saturation, [context.remaining], mixture])
