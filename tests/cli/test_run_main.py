"""run_main, interrupts: how an entry point ends, with real signals, pipes and disks."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable

import pytest

from distill_sbs.cli import interrupts
from distill_sbs.cli.run_main import run_main
from distill_sbs.errors import UserError

ROOT = pathlib.Path(__file__).parent.parent.parent


def fail(error: BaseException) -> Callable[[], int]:
    def work() -> int:
        raise error

    return work


@pytest.mark.parametrize(
    ("work", "status", "said"),
    [
        (lambda: None, 0, ""),
        (lambda: 3, 3, ""),
        (
            fail(UserError("LABEL=\x1b[2J is wrong; [red]")),
            2,
            "error: LABEL=\\x1b[2J is wrong; [red]",
        ),
        (fail(KeyboardInterrupt()), 130, "interrupted: nothing was written"),
        (
            fail(OSError(28, "No space left on device", "/a")),
            2,
            "error: /a: No space left on device; make room on that disk",
        ),
    ],
)
def test_statuses(work, status: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(work, "nothing was written") == status
    assert capsys.readouterr().err == (f"{said}\n" if said else "")


@pytest.mark.parametrize("error", [KeyError("a"), BrokenPipeError(32, "of a socket")])
def test_errors_of_ours_keep_their_traceback(error: Exception) -> None:
    with pytest.raises(type(error)):
        run_main(fail(error))


# ---------------------------------- programs -----------------------------------


@pytest.fixture
def program(tmp_path: pathlib.Path) -> Callable[..., subprocess.Popen]:
    """Starts `python -m distill_sbs.trial`, an entry point of ours whose work is the given code."""

    def start(code: str, **options) -> subprocess.Popen:
        (tmp_path / "trial.py").write_text(
            "import os, signal, subprocess, sys, threading, time\n"
            "from distill_sbs.cli import command_line, interrupts, quiet_tensorflow\n"
            "interrupts._GRACE_SECONDS = 1.0\n"
            "from distill_sbs.cli.run_main import run_main\n"
            f"def work():\n{textwrap.indent(textwrap.dedent(code), '    ')}\n"
            "sys.exit(run_main(work, 'nothing was written'))\n"
        )
        # Python runs this at its start: one module more in the package, outside its folder.
        (tmp_path / "sitecustomize.py").write_text(
            "import importlib.util, sys\n"
            "class Finder:\n"
            "    def find_spec(self, name, path=None, target=None):\n"
            "        if name == 'distill_sbs.trial':\n"
            f"            file = {str(tmp_path / 'trial.py')!r}\n"
            "            return importlib.util.spec_from_file_location(name, file)\n"
            "sys.meta_path.insert(0, Finder())\n"
        )
        return subprocess.Popen(
            [sys.executable, "-m", "distill_sbs.trial"],
            **{
                "text": True,
                "stdout": subprocess.PIPE,
                "stderr": subprocess.PIPE,
                "env": {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
                **options,
            },
        )

    return start


def interrupt(process: subprocess.Popen) -> str:
    """Presses Ctrl-C once the work says that it is ready; returns what it says in the end."""
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    return said


ONE_LINE = "interrupted: nothing was written\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    "code",
    [
        "print('ready', flush=True); time.sleep(60)",
        # Half-written files are removed.
        """
        from distill_sbs import files
        with files.open_replacement('out') as file:
            file.write('half')
            print('ready', flush=True)
            time.sleep(60)
        """,
        # A library makes something else of it.
        """
        try:
            print('ready', flush=True); time.sleep(60)
        except KeyboardInterrupt:
            raise ImportError('initialization failed')
        """,
        # Raised in a callback, where it is reported and forgotten.
        """
        import weakref
        class Thing: pass
        def callback(_):
            print('ready', flush=True); time.sleep(60)
        thing = Thing()
        reference = weakref.ref(thing, callback)
        del thing
        time.sleep(60)
        """,
        # Forgotten on purpose.
        """
        try:
            print('ready', flush=True); time.sleep(60)
        except BaseException:
            time.sleep(60)
        """,
        # In C, which Python cannot interrupt.
        """
        import ctypes
        print('ready', flush=True)
        libc = ctypes.CDLL(None)
        for _ in range(60): libc.usleep(60_000_000)
        """,
        # Threads, and functions at exit, that would fail.
        """
        import atexit
        atexit.register(lambda: 1 / 0)
        threading.Thread(target=lambda: time.sleep(60)).start()
        print('ready', flush=True); time.sleep(60)
        """,
        # While a module is imported, from which an exception may not come.
        """
        open('out', 'w').close()
        import pathlib, importlib.util
        loading = pathlib.Path('out').with_name('loading.py')
        loading.write_text('print("ready", flush=True); import time, os\\n'
                           'try: time.sleep(60)\\nfinally: os.abort()')
        os.unlink('out')
        sys.path.insert(0, str(loading.parent))
        import loading
        """,
        # Standard error is elsewhere, as while TensorFlow is imported.
        """
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        print('ready', flush=True); time.sleep(60)
        """,
    ],
    ids="sleep file converted callback forgotten compiled leaving imported redirected".split(),
)
def test_ctrl_c_is_one_line(program, code: str, tmp_path: pathlib.Path) -> None:
    process = program(code.replace("'out'", repr(str(tmp_path / "out"))))
    assert interrupt(process) == ONE_LINE
    assert not list(tmp_path.glob("*out*")) and not list(tmp_path.glob(".partial*"))


def test_ctrl_c_says_what_is_written_by_then(program) -> None:
    process = program(
        """
        interrupts.change_message('[red]\\x1b[2J is written')
        print('ready', flush=True); time.sleep(60)
        """
    )
    assert interrupt(process) == "interrupted: [red]\\x1b[2J is written\n"


def test_a_message_lasts_as_long_as_its_work(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> int:
        interrupts.change_message("out is written")
        raise KeyboardInterrupt

    assert run_main(work, "nothing was written") == 130
    assert run_main(fail(KeyboardInterrupt()), "nothing was written") == 130
    said = capsys.readouterr().err
    assert said == "interrupted: out is written\ninterrupted: nothing was written\n"


def test_ctrl_c_twice_ends_at_once(program) -> None:
    process = program(
        """
        try:
            print('ready', flush=True); time.sleep(60)
        finally:
            print('ready', flush=True); time.sleep(60)
        """
    )
    assert process.stdout is not None
    for _ in range(2):
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[1] == ONE_LINE
    assert process.returncode == 130


def test_ctrl_c_where_it_is_ignored_is_ignored(program) -> None:
    code = "os.kill(os.getpid(), signal.SIGINT); print('done')"
    ignore = lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)  # noqa: E731
    process = program(code, preexec_fn=ignore)
    assert process.communicate(timeout=60) == ("done\n", "")
    assert process.returncode == 0


def test_a_handler_of_the_works_own_has_precedence(program) -> None:
    code = """
    came = threading.Event()
    signal.signal(signal.SIGINT, lambda *_: came.set())
    for _ in range(3):
        os.kill(os.getpid(), signal.SIGINT)
        came.wait(); came.clear()
    print('saved')
    """
    process = program(code)
    assert process.communicate(timeout=60) == ("saved\n", "")
    assert process.returncode == 0


def test_nothing_of_this_in_a_program_that_imports_us() -> None:
    code = (
        "import signal, threading; import distill_sbs.cli.run_main\n"
        "assert signal.getsignal(signal.SIGINT) is signal.default_int_handler\n"
        "assert threading.active_count() == 1"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "code",
    ["for _ in range(100_000): print('x' * 100)", "print('x'); time.sleep(1)", "sys.exit(0)"],
)
@pytest.mark.parametrize("merged", [False, True])
def test_a_reader_that_stops_reading(program, code: str, merged: bool) -> None:
    """`… | head`: nothing is said, no status 120."""
    reading, writing = os.pipe()
    os.close(reading)
    process = program(code, stdout=writing, stderr=subprocess.STDOUT if merged else subprocess.PIPE)
    os.close(writing)
    _, said = process.communicate(timeout=60)
    assert not said
    assert process.returncode == (0 if code == "sys.exit(0)" else 141)


def test_an_error_that_nobody_reads(program) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    code = "from distill_sbs.errors import UserError; raise UserError('wrong')"
    process = program(code, stderr=writing)
    os.close(writing)
    assert process.communicate(timeout=60)[0] == ""
    assert process.returncode == 2
