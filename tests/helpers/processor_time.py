"""Which tests take long: the processor time of each, so that `slow` is measured and not guessed.

Enters: tests as they run. Leaves: at the end of a run the tests without the marker `slow` that took
more than `LIMIT_SECONDS`; with `--check-slow`, as CI has it, they are an error.

Processor time, of the test and of the processes that it started and waited for: on a busy machine a
test takes longer by the clock, and is none the slower. What a fixture shared by several tests takes
is not counted against the one that happens to come first.
"""

from __future__ import annotations

import os

import pytest

LIMIT_SECONDS = 20.0


def processor_seconds() -> float:
    """What this process and its finished children have taken of the processors so far."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


class ProcessorTime:
    """The pytest plugin."""

    def __init__(self, check: bool) -> None:
        self._check = check
        self._too_slow: dict[str, float] = {}

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_call(self, item: pytest.Item):
        before = processor_seconds()
        yield
        taken = processor_seconds() - before
        item.user_properties.append(("processor_seconds", taken))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """With xdist this is called in the process that reports, for the tests of all workers."""
        if report.when != "call" or "slow" in report.keywords:
            return
        taken = dict(report.user_properties).get("processor_seconds", 0.0)
        if taken > LIMIT_SECONDS:
            self._too_slow[report.nodeid] = taken

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Names the tests that want the marker."""
        for name, taken in sorted(self._too_slow.items(), key=lambda each: -each[1]):
            terminalreporter.write_line(
                f"{name} took {taken:.0f} s of processor time: make it faster, or mark it slow"
            )

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Fails the run where the check was asked for."""
        if self._check and self._too_slow and session.exitstatus == 0:
            session.exitstatus = 1
