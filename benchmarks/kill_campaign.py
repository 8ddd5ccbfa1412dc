r"""`train`, killed again and again at random moments, against a run that was left alone.

    python benchmarks/kill_campaign.py                            # 20 kills, over two runs
    python benchmarks/kill_campaign.py --kills=100 --seed=1

Enters: how many kills, and how many of them inside a save and inside the final test. Leaves: a
table of the kills, and what was compared; status 1 if anything differs from the run that was left
alone. The run is the shipped quickstart, shrunk (`tests/helpers/quickstart_runs.py`), on two
simulated devices; compiled programs are kept between starts.

A kill is SIGKILL to the process. A random one comes at a random step or, one in six, while the
program starts; one inside a save while the step's temporary folder stands (the process is stopped
first, to be sure of that), which must still be there when it is dead; one inside the test after
the last step was saved, and `results.json` must not be there when the process is dead. After each
the same command is given again. Compared to the bit: the parameters of the last step,
`results.json`, and `metrics.jsonl` but for `examples_per_second`, which is a time.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import os
import pathlib
import random
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
sys.path += [str(ROOT), str(ROOT / "tests" / "helpers")]
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np  # noqa: E402
import quickstart_runs  # noqa: E402  (beside the tests)

from distill_sbs.checkpoint import steps  # noqa: E402
from distill_sbs.cli import progress, quiet_tensorflow, terminal  # noqa: E402

TRAIN_STEPS = 40
# A line a step, so that kills can be spread over steps.
BINDINGS = ("LOG_PERIOD=1",)
OF_A_CLOCK = ("examples_per_second",)
START_SHARE = 1 / 6
RANDOM, IN_A_SAVE, IN_THE_TEST = "random", "in a save", "in the test"


@dataclasses.dataclass(frozen=True)
class Kill:
    """One kill that hit as it was meant to.

    Attributes:
      run: number of the run, from 1.
      moment: RANDOM, IN_A_SAVE or IN_THE_TEST.
      logged: the last step that the process had logged, 0 before one.
      saved: the newest step on disk when the process was dead, 0 before one.
      seconds: since the process was started.
    """

    run: int
    moment: str
    logged: int
    saved: int
    seconds: float


class Trainer:
    """One process of `train`, and what it has printed so far."""

    def __init__(self, runs: quickstart_runs.QuickstartRuns, model_dir: pathlib.Path) -> None:
        self.model_dir = model_dir
        self.started = time.monotonic()
        self.lines: list[str] = []
        self.logged = 0
        self.process = runs.start(model_dir, *BINDINGS)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if found := re.match(r"step (\d+)/", line):
                self.logged = int(found[1])

    def wait_until(self, is_so: Callable[[], bool]) -> bool:
        """Waits for something, or for the end of the process; whether it came."""
        while self.process.poll() is None:
            if is_so():
                return True
            time.sleep(0.002)
        return False

    def is_saving(self) -> bool:
        """Whether a step's temporary folder stands."""
        return any((self.model_dir / "checkpoints").glob("*.orbax-checkpoint-tmp*"))

    def is_testing(self) -> bool:
        """Whether all steps are saved; what is left then is the test."""
        goes_on = any(f"from step {TRAIN_STEPS}" in line for line in list(self.lines))
        return goes_on or (
            self.logged == TRAIN_STEPS and (self.model_dir / f"checkpoints/{TRAIN_STEPS}").exists()
        )

    def is_done(self) -> bool:
        """Whether its results are written."""
        return (self.model_dir / "results.json").exists()

    def newest(self) -> int:
        """The newest step on disk, 0 if there is none."""
        return max(steps.list_steps(str(self.model_dir)), default=0)

    def end(self) -> int:
        """Waits for its end; the exit status."""
        status = self.process.wait()
        self._reader.join()
        if status > 0:
            raise SystemExit(f"train ended with status {status}:\n{''.join(self.lines)[-3000:]}")
        return status


class Campaign:
    """All that is known while kills go on.

    Args:
      folder: an empty one.
      seed: of the moments.
    """

    def __init__(self, folder: pathlib.Path, seed: int) -> None:
        self.runs = quickstart_runs.QuickstartRuns(folder / "shared")
        self.runs.environment["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
        self.folder = folder
        self.reference = folder / "reference"
        self.kills: list[Kill] = []
        self._draw = random.Random(seed)
        self._start_seconds = self._save_seconds = self._test_seconds = 0.0

    def run_reference(self) -> None:
        """The run that is left alone; how long its start, a save and the test take is noted."""
        trainer = Trainer(self.runs, self.reference)
        trainer.wait_until(lambda: trainer.logged > 0)
        self._start_seconds = time.monotonic() - trainer.started
        trainer.wait_until(trainer.is_saving)
        begun = time.monotonic()
        trainer.wait_until(lambda: not trainer.is_saving())
        self._save_seconds = time.monotonic() - begun
        trainer.wait_until(trainer.is_testing)
        begun = time.monotonic()
        trainer.wait_until(trainer.is_done)
        self._test_seconds = time.monotonic() - begun
        trainer.end()

    def run_killed(self, number: int, moments: list[str]) -> pathlib.Path:
        """One run to its end; takes from `moments` those at which it was killed on the way."""
        model_dir = self.folder / f"run_{number}"
        while True:
            trainer = Trainer(self.runs, model_dir)
            # Once its results are written a run is left to end: there is no test to kill it in.
            if moments and not trainer.is_done() and self._kill(trainer, moments[0], len(moments)):
                seconds = time.monotonic() - trainer.started
                kill = Kill(number, moments.pop(0), trainer.logged, trainer.newest(), seconds)
                self.kills.append(kill)
                terminal.say(f"{len(self.kills)}: {kill}", stderr=True)
            if trainer.end() == 0:
                return model_dir

    def _kill(self, trainer: Trainer, moment: str, left: int) -> bool:
        """Kills the process at such a moment; whether it was one."""
        draw = self._draw
        if moment == RANDOM and draw.random() < START_SHARE:
            until = trainer.started + draw.uniform(0, self._start_seconds)
            came = trainer.wait_until(lambda: time.monotonic() >= until)
        elif moment == RANDOM:
            begun = trainer.newest()
            goal = begun + draw.uniform(1, max(1, 2 * (TRAIN_STEPS - begun) / (left + 1)))
            came = trainer.wait_until(lambda: trainer.logged >= int(goal))
            time.sleep(draw.uniform(0, self._save_seconds))
        elif moment == IN_A_SAVE:
            came = self._stop_in_a_save(trainer)
        else:
            came = trainer.wait_until(trainer.is_testing)
            time.sleep(draw.uniform(0, self._test_seconds / 2))
            trainer.process.send_signal(signal.SIGSTOP)
            if trainer.is_done():
                trainer.process.send_signal(signal.SIGCONT)
                return False
        if not came or trainer.process.poll() is not None:
            return False
        trainer.process.kill()
        trainer.process.wait()
        return {
            RANDOM: lambda: True,
            IN_A_SAVE: trainer.is_saving,
            IN_THE_TEST: lambda: not trainer.is_done(),
        }[moment]()

    def _stop_in_a_save(self, trainer: Trainer) -> bool:
        """Stops the process while it saves, at the first save that is not over before; whether."""
        while trainer.wait_until(trainer.is_saving):
            time.sleep(self._draw.uniform(0, self._save_seconds / 2))
            trainer.process.send_signal(signal.SIGSTOP)
            if trainer.is_saving():
                return True
            trainer.process.send_signal(signal.SIGCONT)
        return False


def plan_moments(kills: int, in_saves: int, in_tests: int, runs: int, seed: int) -> list[list[str]]:
    """The moments of each run, those in the test last: nothing comes after it."""
    draw = random.Random(seed)
    before = [IN_A_SAVE] * in_saves + [RANDOM] * (kills - in_saves - in_tests)
    draw.shuffle(before)
    tests = [IN_THE_TEST] * in_tests
    return [before[run::runs] + tests[run::runs] for run in range(runs)]


def read_metrics(model_dir: pathlib.Path) -> list[dict[str, Any]]:
    """`metrics.jsonl` without what is a time."""
    lines = (model_dir / "metrics.jsonl").read_text("utf-8").splitlines()
    values = [json.loads(line) for line in lines]
    return [{key: each[key] for key in each if key not in OF_A_CLOCK} for each in values]


def find_differences(one: pathlib.Path, other: pathlib.Path) -> list[str]:
    """What differs between two runs that have ended; empty if nothing does."""
    found = []
    pairs = zip(*map(quickstart_runs.read_parameters, (one, other)), strict=True)
    if not all(np.array_equal(first, second) for first, second in pairs):
        found.append("parameters")
    if read_metrics(one) != read_metrics(other):
        found.append("metrics.jsonl")
    if (one / "results.json").read_bytes() != (other / "results.json").read_bytes():
        found.append("results.json")
    if (other / "damaged").exists():
        found.append("a step was damaged")
    return found


def run_campaign(
    folder: pathlib.Path, kills: int, in_saves: int, in_tests: int, runs: int, seed: int
) -> tuple[Campaign, dict[int, list[str]]]:
    """Runs it; returns what happened, and by each run what differs."""
    campaign = Campaign(folder, seed)
    with progress.show_progress("starts", kills + runs + 1) as advance:
        campaign.run_reference()
        advance(1)
        differences = {}
        left = plan_moments(kills, in_saves, in_tests, runs, seed)
        while left:
            moments, number = left.pop(0), len(differences) + 1
            done = len(campaign.kills)
            model_dir = campaign.run_killed(number, moments)
            differences[number] = find_differences(campaign.reference, model_dir)
            advance(len(campaign.kills) - done + 1)
            if moments:  # the run ended before it could be killed so often
                left.append(moments)
    return campaign, differences


def print_tables(campaign: Campaign, differences: dict[int, list[str]]) -> None:
    """Every kill, and what was compared."""
    columns = ("kill", "run", "moment", "logged", "newest saved", "s after start")
    table = terminal.make_table(*columns, right_from=3)
    for number, kill in enumerate(campaign.kills, start=1):
        terminal.add_row(
            table,
            str(number),
            str(kill.run),
            kill.moment,
            f"step {kill.logged}",
            f"step {kill.saved}",
            f"{kill.seconds:.1f}",
        )
    console = terminal.make_console()
    console.print(table)
    counts = collections.Counter(kill.moment for kill in campaign.kills)
    told = ", ".join(f"{counts[moment]} {moment}" for moment in (RANDOM, IN_A_SAVE, IN_THE_TEST))
    values = sum(each.size for each in quickstart_runs.read_parameters(campaign.reference))
    lines = len(read_metrics(campaign.reference))
    terminal.say(f"{len(campaign.kills)} kills: {told}")
    terminal.say(
        f"compared to the bit with the run left alone: {values:,} parameters, {lines} lines of "
        f"metrics.jsonl (but for {', '.join(OF_A_CLOCK)}), results.json"
    )
    for run, found in differences.items():
        terminal.say(f"run {run}: {', '.join(found) + ' differ' if found else 'equal'}")


def main() -> int:
    """Runs the campaign and prints its tables; status 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20, help="in all")
    parser.add_argument("--in_saves", type=int, default=3, help="of them inside a save")
    parser.add_argument("--in_tests", type=int, default=3, help="of them inside the final test")
    parser.add_argument("--runs", type=int, default=2, help="that the kills are dealt out to")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    if options.in_saves + options.in_tests > options.kills or options.runs < 1:
        parser.error("--kills counts those inside saves and tests too; --runs is 1 or more")
    quiet_tensorflow.import_tensorflow()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        campaign, differences = run_campaign(
            pathlib.Path(folder),
            options.kills,
            options.in_saves,
            options.in_tests,
            options.runs,
            options.seed,
        )
        print_tables(campaign, differences)
    terminal.say(f"seed {options.seed}, {time.monotonic() - started:.0f} s")
    return 1 if any(differences.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
