"""terminal, progress: data stays data, whatever stands in it."""

from __future__ import annotations

import ast
import io
import json
import os
import pathlib
import pty
import re
import subprocess
import sys

import pytest
from rich.text import Text

from distill_sbs.cli import progress, terminal

ROOT = pathlib.Path(__file__).parent.parent.parent
PACKAGE = ROOT / "distill_sbs"

# A title set, a screen cleared, a link, C1's CSI, a bell, a carriage return over the line before,
# direction turned, and rich's markup: known, unknown, closing, emoji.
HOSTILE = (
    "\x1b]0;owned\x07 \x1b[2J \x1b]8;;http://x\x1b\\link \x9b31m \rover \x7f \u202etxt\u2066 "
    "[red]red[/red] [/x] [bold :smile: \\[a]"
)
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def assert_shown(shown: str) -> None:
    """Nothing that a terminal obeys, and every character of the markup."""
    assert OBEYED.search(shown) is None
    for part in ("\\x1b]0;owned\\x07", "\\x9b31m", "[red]red[/red]", "[/x]", ":smile:", "\\[a]"):
        assert part in shown


def test_controls_are_shown_as_escapes() -> None:
    assert terminal.clean("a\x1b[1mb\x9bc\r\u202e\ud83d") == r"a\x1b[1mb\x9bc\r\u202e\ud83d"
    assert terminal.clean("tab\tline\nñ 你 😀") == "tab\tline\nñ 你 😀"


def test_lines(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.say(HOSTILE)
    terminal.say(HOSTILE, stderr=True)
    shown = capsys.readouterr()
    assert_shown(shown.out)
    assert_shown(shown.err)


def test_tables(capsys: pytest.CaptureFixture[str]) -> None:
    table = terminal.make_table(HOSTILE, "number", title=HOSTILE, right_from=1)
    terminal.add_row(table, HOSTILE, "1")
    terminal.make_console(width=400).print(table)
    shown = capsys.readouterr().out
    assert_shown(shown)
    assert shown.count("[red]red[/red]") == 3
    assert len({len(line) for line in shown.splitlines()[1:]}) == 1  # the frame is straight


def test_whatever_a_console_prints(capsys: pytest.CaptureFixture[str]) -> None:
    console = terminal.make_console(width=400)
    console.print(HOSTILE)
    assert_shown(capsys.readouterr().out)
    console.print(Text(HOSTILE))  # rich takes some controls out by itself
    assert OBEYED.search(capsys.readouterr().out) is None


def on_a_terminal(program: str) -> str:
    """What a program writes to a terminal as its standard error."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stderr=theirs,
        cwd=ROOT,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "200"},
    ) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                content = os.read(ours, 4096)
            except OSError:  # Linux says so at its end
                break
            if not content:
                break
            shown += content
    os.close(ours)
    assert process.returncode == 0, shown.decode()
    return shown.decode()


@pytest.mark.parametrize(
    "block",
    [
        "with progress.show_progress(HOSTILE, 3) as advance: advance(1)",
        "with progress.show_values(HOSTILE, 3) as advance: advance(1)",
        "with terminal.show_status(HOSTILE): pass",
    ],
)
def test_bars_on_a_terminal(block: str) -> None:
    hostile = "\x1b]0;owned\x07 \x9b2J \u202e [red]red[/red] [/x]"
    program = f"from distill_sbs.cli import progress, terminal\nHOSTILE = {hostile!r}\n{block}"
    shown = on_a_terminal(program)
    assert r"\x1b]0;owned\x07" in shown and "[red]red[/red]" in shown
    for sequence in ("\x1b]", "\x1b[2J", "\x9b", "\x07", "\u202e"):
        assert sequence not in shown


def test_bars_are_silent_off_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.show_progress("reading", 3) as advance, terminal.show_status("waiting"):
        advance(3)
    assert capsys.readouterr() == ("", "")


def test_json_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"path": HOSTILE, "accuracy": 0.5}
    terminal.say_json(value, indent=2)
    shown = capsys.readouterr().out
    assert OBEYED.search(shown) is None
    assert json.loads(shown) == value


def test_a_terminal_without_unicode(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    terminal.say("accuracy – 你")
    assert written.getvalue() == b"accuracy \\u2013 \\u4f60\n"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_closed_stream(stream: str, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(sys, stream, None)
    terminal.say("words", stderr=stream == "stderr")
    terminal.make_console(stderr=stream == "stderr").print("words")
    assert capsys.readouterr() == ("", "")


# ---------------------------------- one place ----------------------------------

# What writes to the terminal past rich's consoles and without them.
WRITERS = re.compile(
    r"rich\..*\b(Console|Table|Status)|rich\.print|print|.*\.from_markup|p?print\.p?print"
    r"|sys\.(__)?std(out|err)(__)?\.write(lines)?|traceback\.print_\w+|warnings\.warn"
)


def calls(path: pathlib.Path) -> list[tuple[str, int]]:
    """Names that a module calls, in full where it imported them, with lines."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    full: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = {alias.asname or alias.name.split(".")[0]: alias.name for alias in node.names}
            full.update(names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                full[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            first = name.split(".")[0]
            found.append((name.replace(first, full.get(first, first), 1), node.lineno))
    return found


def test_nothing_else_makes_consoles_or_tables_or_prints() -> None:
    own = [
        f"{path.relative_to(PACKAGE)}:{line} {name}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path != PACKAGE / "cli" / "terminal.py"
        for name, line in calls(path)
        if WRITERS.fullmatch(name)
    ]
    assert own == [], "cli/terminal.py prints, and makes consoles and tables, for everybody"


@pytest.mark.slow
def test_no_bar_reads_markup_in_data() -> None:
    own = [
        f"{path.relative_to(PACKAGE)}:{line} {name}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path != PACKAGE / "cli" / "progress.py"
        for name, line in calls(path)
        if re.fullmatch(r"rich\.progress\.(Progress|TextColumn|track)", name)
    ]
    assert own == [], "cli/progress.py makes the bars"
