"""What is installed: the wheel, that it works in an empty folder, the README's commands."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A wheel built from a copy of the checkout, so that no build folder is left in it."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("distill_sbs", "gin", "tasks", "tpu_scripts"):  # the last stays out
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    (source / "tests").mkdir()
    (source / "tests" / "__init__.py").write_text("")  # bare find_packages() would ship it
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
        + ["--no-index", "--wheel-dir", str(folder), str(source)],
        check=True,
        timeout=300,
    )
    (built,) = folder.glob("*.whl")
    return built


@pytest.mark.slow
def test_wheel_holds_the_package_and_what_travels_with_it(wheel: pathlib.Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0] for name in names} == {
        "distill_sbs",
        f"distill_sbs-{wheel.name.split('-')[1]}.dist-info",
    }
    for folder in ("distill_sbs", "gin", "tasks"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".gin", ".model", ".typed", ".toml"):
                inside = path.relative_to(ROOT).as_posix()
                assert inside.removeprefix("distill_sbs/") in {
                    name.removeprefix("distill_sbs/") for name in names
                }, f"{inside} is not in the wheel"
    assert not any("test" in name for name in names)
    assert "distill_sbs/gin/experiments/quickstart.gin" in names
    assert "distill_sbs/data/readers/wordproblems.model" in names
    assert "distill_sbs/teacher/prompts/cqa.toml" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def run_from_wheel(
    wheel: pathlib.Path, empty: pathlib.Path, *arguments: str
) -> subprocess.CompletedProcess[str]:
    site = wheel.parent / "site"
    if not site.exists():
        zipfile.ZipFile(wheel).extractall(site)
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=empty,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.slow
def test_installed_package_finds_its_files_in_an_empty_folder(
    wheel: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    program = (
        "import gin, sys\n"
        "from distill_sbs import resources\n"
        "from distill_sbs.cli import command_line\n"
        "from distill_sbs.config import TrainConfig\n"
        "assert gin.parse_config, gin\n"
        "print(resources.root_folder(), resources.embedded_vocabulary())\n"
        "print(sorted(path.stem for path in resources.task_folder().glob('*.py')))\n"
        "for name in ('gin/experiments/quickstart.gin', 'experiments/cqa_dss_base.gin'):\n"
        "  configuration = command_line.parse(\n"
        "      ['program', '--gin_file=' + name, '--gin.MODEL_DIR=\"x\"'],\n"
        "      TrainConfig, 'runs/train.gin')\n"
        "  print(configuration.config.data.mixture_or_task_name)\n"
    )
    done = run_from_wheel(wheel, tmp_path, "-c", program)
    assert done.returncode == 0, done.stderr
    found, tasks, *mixtures = done.stdout.splitlines()
    root = wheel.parent / "site" / "distill_sbs"
    assert found == f"{root} {root / 'data' / 'readers' / 'wordproblems.model'}"
    assert "cqa" in tasks
    assert mixtures == ["wordproblems_dss_template", "cqa_dss_palm"]

    done = run_from_wheel(wheel, tmp_path, "-m", "distill_sbs.resources")
    assert done.stdout == f"{root}\n"

    inputs = wheel.parent / "in.jsonl"
    inputs.write_text('{"id": "1", "input": "How many?"}\n')
    asked = ["--task=svamp", f"--input={inputs}", "--show_prompt=0", "--completion"]
    done = run_from_wheel(wheel, tmp_path, "-m", "distill_sbs.extract", *asked)
    assert done.stdout.endswith("\n\nQ: How many?\nA:\n"), done.stderr
    assert list(tmp_path.iterdir()) == []


def test_checkout_finds_its_files() -> None:
    from distill_sbs import resources

    if resources.root_folder() != ROOT:
        pytest.skip(f"distill_sbs is installed in {resources.root_folder()}, not this checkout")
    assert resources.embedded_vocabulary().is_file()
    assert resources.task_folder() == ROOT / "tasks"


def requirement_lines() -> dict[str, str]:
    """Requirement name -> version bounds, of the package and all its extras."""
    text = (ROOT / "setup.py").read_text()
    jax = re.search(r'^JAX = "(.+)"$', text, re.MULTILINE)
    assert jax
    found = {}
    for line in re.findall(r'^\s+f?"([a-zA-Z].*?)",$', text.replace("{JAX}", jax[1]), re.MULTILINE):
        match = re.match(r"([\w-]+)(\[\w+\])?(>=.+)$", line)
        if match:
            found[match[1].lower()] = match[3]
    return found


def test_every_dependency_is_bounded_and_locked() -> None:
    from packaging.specifiers import SpecifierSet

    lock = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            lock[name.lower().replace("_", "-")] = version
    requirements = requirement_lines()
    assert len(requirements) > 15
    for name, bounds in requirements.items():
        assert re.fullmatch(r">=[\w.]+,<[\w.]+", bounds), f"{name}{bounds}"
        if name in ("setuptools",):
            continue  # pip freeze leaves it out
        assert lock[name.replace("_", "-")] in SpecifierSet(bounds), name


def test_python_and_jax_are_those_that_the_readme_promises() -> None:
    text = (ROOT / "setup.py").read_text()
    assert 'python_requires=">=3.11"' in text
    assert 'JAX = ">=0.10,<0.13"' in text


def test_readme_has_the_commands_that_ci_runs() -> None:
    readme = (ROOT / "README.md").read_text()
    ci = (ROOT / ".ci" / "run").read_text()
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    for name in re.findall(r"readme_command (\w+)\)", ci):
        assert readme.count(f"<!-- command: {name} -->\n```sh\n") == 1
    assert "readme_command tests" in ci
