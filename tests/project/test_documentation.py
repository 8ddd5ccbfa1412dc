"""README, docs/ and docstrings against the repository: paths, commands, gin files, the site."""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest

import distill_sbs
from distill_sbs import config
from distill_sbs.teacher.options import ExtractConfig

ROOT = pathlib.Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += sorted(DOCS.glob("*.md"))
SOURCES = [
    path
    for folder in ("distill_sbs", "tasks", "benchmarks", "docs", "tests")
    for path in sorted((ROOT / folder).rglob("*.py"))
]
GIN_FILES = sorted((ROOT / "gin").rglob("*.gin"))
# What a path of the repository begins with.
TOP = {path.name for path in ROOT.iterdir() if not path.name.startswith(".git")} | {
    ".ci",
    ".github",
}
# Folders that runs and builds make.
MADE = {"runs", "build", "prepared", "datasets", "data"}
# Where gin/ and tasks/ lie in a wheel.
IN_A_WHEEL = {"distill_sbs/gin", "distill_sbs/tasks"}


def name(path: pathlib.Path) -> str:
    return path.relative_to(ROOT).as_posix()


def docstrings(path: pathlib.Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


def comments(path: pathlib.Path) -> Iterator[str]:
    for line in path.read_text(encoding="utf-8").splitlines():
        yield line.partition("#")[2]


@functools.cache
def texts() -> dict[str, str]:
    """Everything that is there to be read: file -> its words. Parsed once for all tests."""
    found = {name(path): path.read_text(encoding="utf-8") for path in PAGES}
    for path in SOURCES:
        found[name(path)] = "\n".join([*docstrings(path), *comments(path)])
    for path in GIN_FILES:
        found[name(path)] = path.read_text(encoding="utf-8")
    return found


# ---------------------------------- what is named is there -------------------


def named_paths(text: str) -> Iterator[str]:
    """Words that look like a path of the repository: `folder/…`, or a page in capitals."""
    for word in re.findall(r"[\w./{},*-]+", text):
        word = word.rstrip(".,").removeprefix("./")
        first, slash, _ = word.partition("/")
        if (slash and first in TOP - MADE) or re.fullmatch(r"[A-Z]+\.md", word):
            yield word


def expand(pattern: str) -> list[str]:
    """`a/{b,c}.gin` as bash expands it."""
    found = re.search(r"\{([^{}]*)\}", pattern)
    if not found:
        return [pattern]
    start, end = pattern[: found.start()], pattern[found.end() :]
    return [each for part in found[1].split(",") for each in expand(start + part + end)]


def exists(path: str) -> bool:
    if re.search(r"[A-Z]{2,}(?!\w*\.md)", path.partition("/")[2]):
        return True  # cqa_dss_SIZE.gin: a place to fill in
    return any(True for _ in ROOT.glob(path)) if "*" in path else (ROOT / path).exists()


@pytest.mark.slow
def test_paths_that_are_named_exist() -> None:
    missing = {
        (file, path)
        for file, text in texts().items()
        for written in named_paths(text)
        if "{" not in written or "}" in written
        for path in expand(written)
        if not exists(path) and path not in IN_A_WHEEL
    }
    assert missing == set()


def test_the_search_for_paths_finds_them() -> None:
    text = "see `DESIGN.md`, docs/none.md, ./gin/models/x.gin. and gin/{a,b}.gin; runs/x, 1/2"
    assert list(named_paths(text)) == [
        "DESIGN.md",
        "docs/none.md",
        "gin/models/x.gin",
        "gin/{a,b}.gin",
    ]
    assert expand("gin/{a,b}_{c,d}.gin")[1:3] == ["gin/a_d.gin", "gin/b_c.gin"]
    assert not exists("docs/none.md") and exists("gin/models/*.gin") and not exists("gin/*.none")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: pathlib.Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.is_file(), f"{name(page)}: {target}"
        if anchor:
            heads = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)
            slugs = {
                re.sub(r"[^\w -]", "", head).strip().lower().replace(" ", "-") for head in heads
            }
            assert anchor in slugs, f"{name(page)}: {target}; there are {sorted(slugs)}"


@pytest.mark.slow
def test_commands_that_are_named_exist() -> None:
    missing = {
        (file, module)
        for file, text in texts().items()
        if not file.startswith("tests/")
        for module in re.findall(r"-m (distill_sbs[\w.]*\w)", text)
        if importlib.util.find_spec(module) is None
    }
    assert missing == set()


def test_modules_that_are_named_exist() -> None:
    missing = set()
    for file, text in texts().items():
        for written in re.findall(r"`(distill_sbs\.[\w.]*\w)`", text) + re.findall(
            r"^::: (distill_sbs\.[\w.]*\w)$", text, re.MULTILINE
        ):
            if not any((ROOT / path).exists() for path in module_paths(written)):
                missing.add((file, written))
    assert missing == set()


def module_paths(written: str) -> Iterator[str]:
    """Where `distill_sbs.a.b` may lie, `b` being a module, a folder, or a name in `a`."""
    parts = written.split(".")
    for kept in (parts, parts[:-1], parts[:-2]):
        if len(kept) > 1 or kept is not parts:
            path = "/".join(kept)
            yield from (f"{path}.py", f"{path}/__init__.py")


@functools.cache
def help_of(command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", f"distill_sbs.{command}", "--help"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def flags_of(command: str) -> set[str]:
    return set(re.findall(r"--\[?(?:no\]?)?(\w+)", help_of(command)))


def documented_commands() -> dict[str, set[str]]:
    """Entry point -> the flags that README and docs/ give it in a block of commands."""
    found: dict[str, set[str]] = {}
    for page in PAGES:
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL):
            for line in re.sub(r"\\\n", " ", block).splitlines():
                line = line.partition(" #")[0]
                for command, given in re.findall(r"-m distill_sbs\.(\w+)([^|&;)]*)", line):
                    found.setdefault(command, set()).update(re.findall(r"--(\w+)(?!\.)\b", given))
    return found


@pytest.mark.parametrize("command", sorted(documented_commands()))
def test_help_is_a_screen_and_groups_the_flags_of_long_ones(command: str) -> None:
    lines = help_of(command).splitlines()
    assert len(lines) <= 60
    assert max(map(len, lines)) <= 100
    named = [line.split(":")[0] for line in lines if line.startswith("  --")]
    assert len(named) == len(set(named))
    titles = [line for line in lines if re.fullmatch(r"[A-Z][^:]*:", line)]
    assert len(named) <= 12 or len(titles) >= 2


@pytest.mark.parametrize("command", sorted(documented_commands()))
def test_flags_that_are_documented_exist(command: str) -> None:
    known = flags_of(command) | {"gin", "help"}
    given = documented_commands()[command]
    assert {
        flag for flag in given if flag not in known and flag.removeprefix("no") not in known
    } == (set())


# ---------------------------------- words ------------------------------------


@pytest.mark.parametrize("phrase", [r"see there", r"\bas said", r"DESIGN\b"])
def test_nothing_leads_astray(phrase: str) -> None:
    found = {
        file
        for file, text in texts().items()
        if re.search(phrase, text, re.IGNORECASE if phrase.islower() else 0)
    }
    assert found - {name(pathlib.Path(__file__))} == set()


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=name)
def test_every_page_says_whom_it_serves(page: pathlib.Path) -> None:
    title, first = page.read_text().split("\n\n")[:2]
    assert re.fullmatch(r"# .+", title)
    assert first.startswith("For "), first


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_every_entry_point_is_in_the_readmes_table() -> None:
    entry_points = {
        path.stem
        for path in (ROOT / "distill_sbs").glob("*.py")
        if '__name__ == "__main__"' in path.read_text() and path.stem != "__main__"
    } | {"convert"}
    table = re.findall(r"^\| `(\w+)` \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert sorted(table) == sorted(entry_points)


def test_exit_statuses_are_those_of_run_main() -> None:
    def rows(text: str) -> list[str]:
        return re.findall(r"^\| (\d+) \| .* \|$", text, re.MULTILINE)

    from distill_sbs.cli import run_main

    assert run_main.__doc__
    assert rows((DOCS / "architecture.md").read_text()) == rows(run_main.__doc__) != []


@pytest.mark.slow
def test_the_example_of_contributing_applies_and_passes(tmp_path: pathlib.Path) -> None:
    found = re.search(r"```diff\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    assert found
    if shutil.which("git") is None:
        pytest.skip("git, which applies the example, is not installed")
    for folder in ("distill_sbs", "gin", "tasks", "tests/training", "tests/helpers"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignored)
    for file in ("pyproject.toml", "tests/conftest.py"):
        shutil.copy(ROOT / file, tmp_path / file)

    def run(*command: str) -> str:
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(tmp_path), "GIT_CEILING_DIRECTORIES": "/"},
            input=found[1],
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert len(re.findall(r"^diff --git", found[1], re.MULTILINE)) == 3
    run("git", "apply", "-")
    pytest_run = (
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "tests/training/test_optimizer.py",
    )
    run(sys.executable, *pytest_run, "-k", "adam_b1 or adamw_first_step")
    told = run(sys.executable, "-m", "distill_sbs.train", "--helpfull")
    assert "ADAM_B1: default 0.9. share" in told


# ---------------------------------- the site ---------------------------------


@pytest.mark.slow
def test_site_builds_without_warnings(tmp_path: pathlib.Path) -> None:
    for needed in ("mkdocs", "material", "mkdocstrings_handlers"):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"{needed} is not installed: pip install -e '.[docs]'")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", f"--site-dir={tmp_path / 'site'}"],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stdout + done.stderr
    for page in DOCS.glob("*.md"):
        built = tmp_path / "site" / ("" if page.stem == "index" else page.stem) / "index.html"
        assert built.is_file(), page
    api = (tmp_path / "site" / "api" / "index.html").read_text()
    for public in set(distill_sbs.__all__) - {"__version__"}:
        assert re.search(rf'id="distill_sbs\.[\w.]*\b{public}"', api), public
    assert (tmp_path / "site" / "images" / "overview.svg").is_file()
    settings = (tmp_path / "site" / "settings" / "index.html").read_text()
    for option in config.TrainConfig.options():
        assert f"<code>{option.macro}</code>" in settings, option.macro
    for field in dataclasses.fields(ExtractConfig):
        assert f"<code>--{field.name}</code>" in settings, field.name
