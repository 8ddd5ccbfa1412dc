"""SIGTERM and Ctrl-C in training: a step is finished and saved, and the run stops.

Enters: signals. Leaves: an answer to the loop, the same in every process, once a step; after a
second Ctrl-C the end of the process.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType

from distill_sbs.cli import terminal
from distill_sbs.distributed import lifeline as lifelines

# How long after Ctrl-C it is said that a step is finished first, if that takes long.
_PATIENCE_SECONDS = 2.0


class StopRequest:
    """Notes SIGTERM, which a preempted machine gets, and Ctrl-C, for the loop to act on.

    A step is finished and saved first, and with it an evaluation that is being made. Ctrl-C once
    more ends the process at once, whatever it does. With several processes all of them answer the
    same to the same step, whichever got the signal. Outside the main thread, where Python lets
    nobody handle signals, none is noted.
    """

    def __init__(self) -> None:
        import jax

        self._several = jax.process_count() > 1
        self._noted: signal.Signals | None = None
        self._before: dict[
            signal.Signals, Callable[[int, FrameType | None], object] | int | None
        ] = {}
        if threading.current_thread() is not threading.main_thread():
            return
        # With several processes SIGTERM belongs to JAX's preemption service.
        for number in (signal.SIGINT,) if self._several else (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) == signal.SIG_IGN:  # `nohup`, or `… &` in a script
                continue
            self._before[number] = signal.signal(number, self._note)
        self._watch_keyboard()

    def _note(self, number: int, _: FrameType | None) -> None:
        self._noted = self._noted or signal.Signals(number)
        if self._several:
            os.kill(os.getpid(), signal.SIGTERM)  # tells the others, too

    def _watch_keyboard(self) -> None:
        """A thread hears of signals at once; Python's handlers wait while XLA compiles."""
        self._reader, writer = socket.socketpair()
        self._writer = writer
        writer.setblocking(False)
        self._wakeup_before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._hear, args=(self._reader,), daemon=True).start()

    @staticmethod
    def _hear(reader: socket.socket) -> None:
        interrupts = 0
        patience: float | None = None
        while True:
            try:
                reader.settimeout(patience)
                data = reader.recv(64)
            except TimeoutError:
                patience = None
                terminal.say("Ctrl-C: this step is saved first; once more ends at once", True)
                continue
            except OSError:
                return
            if not data:
                return
            interrupts += data.count(signal.SIGINT)
            if interrupts > 1:
                lifelines.stop_process(
                    "interrupted: nothing more was saved; the same command continues from the "
                    "last checkpoint",
                    lifelines.INTERRUPTED_EXIT_STATUS,
                )
            if signal.SIGINT in data:
                patience = _PATIENCE_SECONDS

    @property
    def signal_name(self) -> str:
        """What stopped the run, as a user calls it."""
        return "Ctrl-C" if self._noted == signal.SIGINT else "SIGTERM"

    @property
    def exit_status(self) -> int:
        """What a scheduler knows the signal by: 130 after Ctrl-C, 143 after SIGTERM."""
        return 128 + (self._noted or signal.SIGTERM)

    def before_end_of(self, step: int) -> bool:
        """Whether to save and stop after `step`; asked once a step, by all processes."""
        if not self._several:
            return self._noted is not None
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(step)

    def restore(self) -> None:
        """From now on the signals do what they did before; SIGTERM ends one of several."""
        if self._before:
            signal.set_wakeup_fd(self._wakeup_before)
            for each in (self._writer, self._reader):
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
                each.close()
        for number, before in self._before.items():
            signal.signal(number, before)
        if self._several and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self._before = {}
