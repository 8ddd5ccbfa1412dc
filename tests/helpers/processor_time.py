"""Which tests take long: the processor time of each, so that `slow` is measured and not guessed.

Enters: tests as they run. Leaves: at the end of a run the tests without the marker `slow` that took
more than `SLOW_SECONDS`, and those with it that took less than a quarter of that, but for files of
which a fixture takes long, or all tests have the marker. With `--check-slow`, as CI has it, a test
without the marker that took more than `ERROR_SECONDS` is an error. Between the two lies the margin:
the test that happens to import torch first, on a machine a third as fast as the one on which the
markers were set, is named and fails for nothing.

Processor time, of the test and of the processes that it started and waited for: on a busy machine a
test takes longer by the clock, and is none the slower. What a fixture shared by several tests takes
is not counted against the one that happens to come first.
"""

from __future__ import annotations

import os

import pytest

SLOW_SECONDS = 2.0
ERROR_SECONDS = 20 * SLOW_SECONDS


def processor_seconds() -> float:
    """What this process and its finished children have taken of the processors so far."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


class ProcessorTime:
    """The pytest plugin."""

    def __init__(self, check: bool) -> None:
        self._check = check
        self._unmarked: dict[str, float] = {}
        self._quick: dict[str, float] = {}
        self._slow_fixtures: set[str] = set()  # files
        self._with_unmarked: set[str] = set()  # files

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_call(self, item: pytest.Item):
        before = processor_seconds()
        yield
        taken = processor_seconds() - before
        item.user_properties.append(("processor_seconds", taken))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """With xdist this is called in the process that reports, for the tests of all workers."""
        file = report.nodeid.partition("::")[0]
        if report.when == "setup" and report.duration > SLOW_SECONDS:
            self._slow_fixtures.add(file)
        taken = dict(report.user_properties).get("processor_seconds")
        if report.when != "call" or taken is None:
            return
        if "slow" not in report.keywords:
            self._with_unmarked.add(file)
            if taken > SLOW_SECONDS:
                self._unmarked[report.nodeid] = taken
        elif report.passed and taken < SLOW_SECONDS / 4 and report.duration < SLOW_SECONDS:
            self._quick[report.nodeid] = taken

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Names the tests that want the marker, and those that might do without it."""
        for name, taken in sorted(self._unmarked.items(), key=lambda each: -each[1]):
            terminalreporter.write_line(
                f"{name} took {taken:.0f} s of processor time: make it faster, or mark it slow"
            )
        for name, taken in sorted(self._quick.items(), key=lambda each: each[1]):
            file = name.partition("::")[0]
            if file in self._slow_fixtures or file not in self._with_unmarked:
                continue
            terminalreporter.write_line(
                f"{name} took {taken:.1f} s of processor time: it need not be marked slow"
            )

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Fails the run where the check was asked for."""
        too_slow = any(taken > ERROR_SECONDS for taken in self._unmarked.values())
        if self._check and too_slow and session.exitstatus == 0:
            session.exitstatus = 1
