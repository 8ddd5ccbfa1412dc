"""`python -m distill_sbs.serve`: a student answers over HTTP.

    python -m distill_sbs.convert --to=ctranslate2 --input=runs/quickstart --output=served
    python -m distill_sbs.serve --model=served

Enters: a folder of `convert --to=ctranslate2` or `--to=onnx`, and nothing else. Leaves: answers to
requests; a page at `/`. It needs neither JAX nor TensorFlow nor torch.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence

from distill_sbs.cli import command_line, interrupts, terminal
from distill_sbs.cli.run_main import run_main
from distill_sbs.errors import UserError
from distill_sbs.serving import options
from distill_sbs.serving.options import DESCRIPTION, ServeConfig

_LIBRARIES = ("prometheus_client", "starlette", "uvicorn")


def serve(config: ServeConfig) -> int:
    """Answers until SIGTERM or Ctrl-C comes.

    Returns:
      128 + the signal's number.

    Raises:
      UserError: no such folder, a library is missing, or the address cannot be listened on.
      DamagedError: a file of the folder is not as it was written.
    """
    missing = [name for name in _LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"serve needs {', '.join(missing)}, not installed; install it: pip install "
            "'distill_sbs[serve]'"
        )
    # Imported here: the command line has been checked by now.
    from distill_sbs.serving import listening
    from distill_sbs.serving.answering import Answerer
    from distill_sbs.serving.application import Application

    listener = listening.open_socket(config.host, config.port)
    with listener:
        answerer = Answerer(config.model, config.threads)
        for task in answerer.student.prefixes:
            answerer.answer(["?"], task)  # a network that cannot decode is found now
        student = answerer.student
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        announcement = (
            f"{student.name} ({student.form}, {student.quantization}) answers at "
            f"http://{shown}:{port}; Ctrl-C ends it"
        )
        application = Application(answerer, config, lambda: terminal.say(announcement))
        number = listening.serve(application, config, listener)
    interrupts.change_message("all is answered")
    terminal.say(f"ended: {application.requests:,} requests answered")
    return 128 + number


def main(argv: Sequence[str] | None = None) -> int:
    """Serves what the command line asks for; returns the exit status."""
    return run_main(lambda: _work(sys.argv if argv is None else argv), "nothing was answered")


def _work(argv: Sequence[str]) -> int | None:
    values = command_line.parse_flags(argv, options.define, DESCRIPTION)
    return serve(options.read(values))


if __name__ == "__main__":
    sys.exit(main())
