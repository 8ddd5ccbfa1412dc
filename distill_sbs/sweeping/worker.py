"""A process that trains one run after the other, so that small runs do not pay a start-up each.

    python -m distill_sbs.sweeping.worker FILE_DESCRIPTOR [CORE,…]

Enters: lines of JSON on standard input, `{"arguments": [flags of train], "log": path}`. Leaves:
what `python -m distill_sbs.train` leaves, its output in the log, and on the file descriptor one
line of JSON a run, `{"status": exit status}`.

Each run is parsed and trained by the code of `python -m distill_sbs.train`, and computes the same
bits; what is kept from run to run is imported modules. After a run that failed, or was stopped, the
process ends: whoever started it starts another. When standard input closes, because the sweep is
done or was killed, the process ends too: a run under way saves first, as at SIGTERM.
"""

from __future__ import annotations

import gc
import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Sequence

from distill_sbs.cli import command_line, python_messages
from distill_sbs.cli.freed_memory import keep_freed_memory
from distill_sbs.config import TrainConfig
from distill_sbs.distributed import processes
from distill_sbs.train import DESCRIPTION
from distill_sbs.train import main as train

Requests = queue.SimpleQueue[str | None]


def main(argv: Sequence[str]) -> int:
    """Trains what standard input asks for; returns the status of the last run."""
    replies = int(argv[1])
    keep_freed_memory()
    if len(argv) > 2 and hasattr(os, "sched_setaffinity"):
        # Before XLA and TensorFlow count the cores that they may use.
        os.sched_setaffinity(0, [int(core) for core in argv[2].split(",")])
    os.set_inheritable(replies, False)
    requests: Requests = queue.SimpleQueue()
    asked = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    threading.Thread(target=_read_requests, args=(asked, requests), daemon=True).start()
    status = 0
    while status == 0 and (line := requests.get()) is not None:
        request = json.loads(line)
        _redirect_output(request["log"])
        status = _train(request["arguments"])
        _forget()
        os.write(replies, json.dumps({"status": status}).encode() + b"\n")
    return status


def _read_requests(asked: int, requests: Requests) -> None:
    """Hands lines on; at their end, whatever ended the sweep, asks this process to save and end."""
    with os.fdopen(asked, encoding="utf-8") as lines:
        for line in lines:
            requests.put(line)
    requests.put(None)
    os.kill(os.getpid(), signal.SIGTERM)


def _redirect_output(path: str) -> None:
    """Standard output and error go to the end of a file from now on."""
    sys.stdout.flush()
    sys.stderr.flush()
    log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


def _train(arguments: Sequence[str]) -> int:
    """Trains as `python -m distill_sbs.train` does; returns its exit status."""
    try:
        command_line.run(
            train,
            TrainConfig,
            "runs/train.gin",
            DESCRIPTION,
            processes.define_flags,
            argv=["train", *arguments],
        )
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
    except Exception as error:
        python_messages.show_exception(type(error), error, error.__traceback__)
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _forget() -> None:
    """Lets go of the compiled programs and the arrays of the run that has ended."""
    if "jax" in sys.modules:
        import jax

        jax.clear_caches()
    gc.collect()


if __name__ == "__main__":
    sys.exit(main(sys.argv))
