"""The entry point: what it writes and says; no runs, one, hostile ones; the page in a browser."""

from __future__ import annotations

import csv
import hashlib
import pathlib
import re
from collections.abc import Iterator
from html.parser import HTMLParser

import pytest
from browser import Browser, find_browser
from PIL import Image
from report_runs import paper_results, write_results, write_run

from distill_sbs import report as entry_point
from distill_sbs.reporting import markdown, spreadsheet

HOSTILE = '<img src=x onerror="document.title=1">|`*_[a](http://b)\x1b[31m\u202e=1+1\n# x'


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing is tested elsewhere; here it would take the time."""
    monkeypatch.setattr("distill_sbs.reporting.document.draw_figures", lambda _: ([], []))


def run_report(*arguments: object) -> int:
    return entry_point.main(["report", *map(str, arguments)])


def read_tree(folder: pathlib.Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# ---------------------------------- what is said ------------------------------


def test_one_run(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "runs", 0.5)
    assert run_report(tmp_path / "runs", f"--output={tmp_path / 'out'}") == 0
    printed = capsys.readouterr()
    assert "1 run finished, 0 not. Accuracies are on test." in printed.out
    assert "│ distilling step-by-step (template) │  50.0 │" in printed.out
    assert f"written to {tmp_path}/out/report.html" in printed.out
    assert printed.err == ""
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "accuracy.csv",
        "least_data.csv",
        "report.html",
        "report.md",
        "runs.csv",
    ]


def test_flags_may_stand_before_or_after(tmp_path: pathlib.Path, no_figures: None) -> None:
    write_run(tmp_path / "runs", 0.5)
    assert run_report(f"--output={tmp_path / 'a'}", tmp_path / "runs") == 0
    assert run_report(f"--runs_dir={tmp_path / 'runs'}", f"--output={tmp_path / 'b'}") == 0
    assert read_tree(tmp_path / "a") == read_tree(tmp_path / "b")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no RUNS_DIR is given: report RUNS_DIR --output=FOLDER"),
        (["RUNS", "RUNS"], "belongs to no flag"),
        (["RUNS"], "holds no run: neither results.json nor config.gin nor metrics.jsonl"),
        (["RUNS", "--split=train"], "--help lists the flags"),
        (["--runs_dri=RUNS"], "did you mean --runs_dir?"),
    ],
)
def test_an_empty_folder_and_wrong_words(
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    (tmp_path / "runs").mkdir()
    given = [each.replace("RUNS", str(tmp_path / "runs")) for each in arguments]
    assert run_report(*given, f"--output={tmp_path / 'out'}") == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("error: ") and message in printed.err
    assert not (tmp_path / "out").exists()


def test_no_output_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_report("runs") == 2
    assert "--output" in capsys.readouterr().err


def test_nothing_but_broken_results(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(25):
        (tmp_path / "runs" / str(number)).mkdir(parents=True)
        (tmp_path / "runs" / str(number) / "results.json").write_text("{")
    assert run_report(tmp_path / "runs", f"--output={tmp_path / 'out'}") == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("warning: passed over: 0/results.json: broken JSON")
    assert lines[-2] == "warning: 5 more were passed over; the report names them"
    assert lines[-1].endswith("none of its runs could be read, as said above; nothing was written")
    assert len(lines) == 22 and not (tmp_path / "out").exists()


def test_what_is_left_out_of_the_means_is_said(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], no_figures: None
) -> None:
    write_run(tmp_path / "runs" / "good", 0.5)
    write_run(tmp_path / "runs" / "other", 0.25)
    results = {"mixture": "a_finetune", "data_fraction": 1, "test": {}}
    write_results(tmp_path / "runs" / "unmeasured", results)
    assert run_report(tmp_path / "runs", f"--output={tmp_path / 'out'}") == 0
    assert capsys.readouterr().err.splitlines() == [
        "warning: unmeasured: no accuracy on test",
        "warning: other: a second run of seed 0 like good, which counts",
    ]


def test_broken_files_stand_in_the_report(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], no_figures: None
) -> None:
    write_run(tmp_path / "runs" / "good", 0.5)
    write_results(tmp_path / "runs" / "bad", {"mixture": "a_finetune", "data_fraction": -1})
    assert run_report(tmp_path / "runs", f"--output={tmp_path / 'out'}") == 0
    message = "bad/results.json: data_fraction is -1; expected a finite number above 0 and up to 1"
    assert capsys.readouterr().err == f"warning: passed over: {message}\n"
    assert f"<li>{message}</li>" in (tmp_path / "out" / "report.html").read_text()
    assert (
        "1 run finished, 0 not, 1 file passed over" in (tmp_path / "out" / "report.md").read_text()
    )


# ---------------------------------- where it is written -----------------------


def test_a_report_replaces_an_earlier_one_as_a_whole(tmp_path: pathlib.Path) -> None:
    runs, output = tmp_path / "runs", tmp_path / "runs" / "report"
    write_run(runs / "a", 0.5)
    write_run(runs / "b", 0.6, data_fraction=0.5)
    assert run_report(runs, f"--output={output}") == 0
    before = read_tree(output)
    assert "figures/data_fraction_1.png" in before and "figures/data_fraction_1.svg" in before
    assert run_report(runs, f"--output={output}") == 0
    assert read_tree(output) == before
    (runs / "b" / "results.json").unlink()
    assert run_report(runs, f"--output={output}") == 0
    assert "figures/data_fraction_1.png" not in read_tree(output)


def test_a_folder_with_other_things_is_refused(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], no_figures: None
) -> None:
    write_run(tmp_path / "runs", 0.5)
    before = read_tree(tmp_path)
    for output in (tmp_path / "runs", tmp_path):
        assert run_report(tmp_path / "runs", f"--output={output}") == 2
        assert "holds what is not of a report" in capsys.readouterr().err
    assert run_report(tmp_path / "runs", f"--output={tmp_path / 'runs' / 'config.gin'}") == 2
    assert read_tree(tmp_path) == before
    (tmp_path / "out" / "figures").mkdir(parents=True)
    (tmp_path / "out" / "figures" / "holiday.jpg").write_text("x")
    (tmp_path / "out" / "report.html").write_text("x")
    assert run_report(tmp_path / "runs", f"--output={tmp_path / 'out'}") == 2
    assert (tmp_path / "out" / "figures" / "holiday.jpg").exists()


# ---------------------------------- hostile data ------------------------------


class Tags(HTMLParser):
    """Every tag and attribute of a page, and its texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def hostile_report(tmp_path: pathlib.Path) -> pathlib.Path:
    base = {"data_fraction": 1.0, "test": {"accuracy": 0.5}}
    names = {"dataset": HOSTILE, "method": HOSTILE, "teacher": HOSTILE, "model": HOSTILE}
    result = {**base, **names, "command": f"</pre><script>1</script>```\n{HOSTILE}"}
    write_results(tmp_path / "runs" / "<b>=cmd", result)
    write_results(tmp_path / "runs" / "c", {**base, "mixture": "=1+1|cmd_finetune", "source": "@x"})
    (tmp_path / "runs" / "<script>&").mkdir()
    (tmp_path / "runs" / "<script>&" / "results.json").write_bytes(b'{"\xff')
    assert run_report(tmp_path / "runs", f"--output={tmp_path / 'out'}") == 0
    return tmp_path / "out"


def test_data_stays_data_in_html(tmp_path: pathlib.Path, no_figures: None) -> None:
    page = Tags((hostile_report(tmp_path) / "report.html").read_text(encoding="utf-8"))
    assert page.tags.count("script") == 1 and "img" not in page.tags and "b" not in page.tags
    assert not any(name.startswith("on") for name, _ in page.attributes)
    shown = '<img src=x onerror="document.title=1">|`*_[a](http://b)\\x1b[31m\\u202e=1+1 # x'
    assert shown in page.texts
    assert any("</pre><script>1</script>```" in text for text in page.texts)
    assert any(text.startswith("<script>&/results.json: not UTF-8") for text in page.texts)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", "".join(page.texts))


def test_data_stays_data_in_markdown(tmp_path: pathlib.Path, no_figures: None) -> None:
    text = (hostile_report(tmp_path) / "report.md").read_text(encoding="utf-8")
    outside = "".join(re.split(r"^(`{3,})sh\n.*?^\1$", text, flags=re.MULTILINE | re.DOTALL)[::2])
    assert "<img" not in outside and "<script" not in outside and "\x1b" not in text
    assert "````sh\n" in text  # a fence longer than those of the command inside it
    for line in text.splitlines():
        if line.startswith("| ") and "img" in line:
            assert len(re.findall(r"(?<!\\)\|", line)) == len(
                re.findall(r"(?<!\\)\|", line_above(text, line))
            )


def line_above(text: str, line: str) -> str:
    """The heading of the table that a line stands in."""
    lines = text.splitlines()
    place = lines.index(line)
    while lines[place - 1].startswith("|"):
        place -= 1
    return lines[place]


def test_no_cell_of_csv_is_a_formula(tmp_path: pathlib.Path, no_figures: None) -> None:
    output = hostile_report(tmp_path)
    tables = sorted(output.glob("*.csv"))
    assert len(tables) >= 3
    seen = set()
    for path in tables:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))
        assert len({len(row) for row in rows}) == 1
        for cell in (cell for row in rows for cell in row):
            seen.add(cell)
            is_number = re.fullmatch(r"-?[\d.e+-]+", cell)
            assert is_number or not cell.lstrip().startswith(("=", "+", "-", "@")), cell
    assert "'=1+1|cmd" in seen and "# @x" in seen


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("=1+1", "'=1+1"),
        ("  +1", "'  +1"),
        ("-cmd", "'-cmd"),
        ("@SUM(1)", "'@SUM(1)"),
        ("\t=1", "'\t=1"),
        ("＝1", "'＝1"),
        ('"=1', "'\"=1"),
        ("a=1", "a=1"),
        ("", ""),
    ],
)
def test_formulas_in_csv(text: str, escaped: str) -> None:
    assert spreadsheet.escape(text) == escaped


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("# a", "\\# a"),
        ("12. a", "12\\. a"),
        ("3.5", "3.5"),
        ("- a", "\\- a"),
        ("a|b", "a\\|b"),
        ("<b>&amp;", "&lt;b&gt;&amp;amp;"),
        ("[a](b)", "\\[a\\](b)"),
        ("`*_~$\\", "\\`\\*\\_\\~\\$\\\\"),
        ("https://a.b www.a.b", "https:\\//a.b www\\.a.b"),
    ],
)
def test_markup_in_markdown(text: str, escaped: str) -> None:
    assert markdown.escape(text) == escaped


# ---------------------------------- in a browser ------------------------------


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """The page of the paper's tables, one run of ours and a hostile one, in a real browser."""
    program = find_browser()
    if program is None:
        pytest.skip("no browser is installed: apt-get install chromium")
    folder = tmp_path_factory.mktemp("page")
    paper = [each for each in paper_results() if each["dataset"] == "esnli"]
    write_results(folder / "runs" / "paper", paper)
    write_run(folder / "runs" / "a", 0.25)
    hostile = {"data_fraction": 1.0, "test": {"accuracy": 0.125}, "method": "finetune"}
    write_results(folder / "runs" / "h", {**hostile, "dataset": HOSTILE})
    assert run_report(folder / "runs", f"--output={folder / 'out'}") == 0
    with Browser(program) as browser:
        browser.open(folder / "out" / "report.html")
        yield browser


def column(page: Browser, table: str, number: int) -> list[str]:
    found = page.run(
        f"Array.from(document.querySelector('#{table} tbody').rows, "
        f"row => row.cells[{number}].textContent)"
    )
    assert isinstance(found, list)
    return [str(each) for each in found]


def click(page: Browser, table: str, number: int) -> None:
    page.run(f"document.querySelectorAll('#{table} th button')[{number}].click()")


def test_the_page_needs_nothing_else(page: Browser) -> None:
    assert page.complaints() == []
    own, *others = page.requests()
    assert own.startswith("file:///") and all(url.startswith("data:image/") for url in others)
    assert page.run("document.title") == "Report on runs"


def test_its_figures_are_shown(page: Browser) -> None:
    images = "Array.from(document.images)"
    assert page.run(f"{images}.length") == 2
    assert page.run(f"{images}.every(each => each.complete && each.naturalWidth > 300)") is True
    assert page.run(f"{images}.every(each => each.alt.length > 10)") is True


def test_its_tables_are_sorted_by_a_click(page: Browser) -> None:
    click(page, "accuracy", 5)
    rising = [float(each) for each in column(page, "accuracy", 5)]
    assert len(rising) == 9 and rising == sorted(rising)
    click(page, "accuracy", 5)
    assert [float(each) for each in column(page, "accuracy", 5)] == rising[::-1]
    marks = page.run("document.querySelectorAll('#accuracy th')[5].getAttribute('aria-sort')")
    assert marks == "descending"
    # Parameters are sorted as numbers, not as they are shown; what is unknown stands last.
    click(page, "accuracy", 10)
    shown = column(page, "accuracy", 10)
    assert shown == ["952 k", *["220 M"] * 7, "–"]


def test_every_row_has_its_command(page: Browser) -> None:
    commands = page.run(
        "Array.from(document.querySelectorAll('#runs tbody pre'), each => each.textContent)"
    )
    assert isinstance(commands, list)
    assert sum("distill_sbs.train --gin_file=" in str(each) for each in commands) == 1
    assert sum("arXiv 2305.02301" in str(each) for each in commands) == 7
    assert page.run("document.querySelector('#runs details').open") is False


def test_its_contents_lead_to_every_part(page: Browser) -> None:
    links = "Array.from(document.querySelectorAll('nav a'))"
    wanted = "Array.from(document.querySelectorAll('h2'), each => each.textContent)"
    assert page.run(f"{links}.map(each => each.textContent)") == page.run(wanted)
    target = "document.querySelector(each.getAttribute('href')).textContent"
    assert page.run(f"{links}.every(each => {target} === each.textContent)") is True


def test_a_path_is_one_text(page: Browser) -> None:
    assert set(column(page, "runs", 0)) == {"a", "h", *(f"paper#{n}" for n in range(1, 9))}
    assert "t5_1_1_tiny (952 k)" in column(page, "accuracy", 1)


@pytest.mark.parametrize("width", [1280, 400])
def test_a_picture_of_the_page(page: Browser, tmp_path: pathlib.Path, width: int) -> None:
    page.resize(width)
    page.take_picture(tmp_path / "page.png")
    with Image.open(tmp_path / "page.png") as image:
        assert image.format == "PNG" and image.width <= width
    # What is wider scrolls in its own box, and the page does not.
    assert page.run("document.documentElement.scrollWidth <= innerWidth") is True
    boxes = "Array.from(document.querySelectorAll('.scroll, figure'))"
    assert page.run(f"{boxes}.every(each => getComputedStyle(each).overflowX === 'auto')") is True
    page.resize(1200)
