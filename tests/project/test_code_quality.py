"""Linter, formatter, type checker, and who may import whom (docs/architecture.md)."""

from __future__ import annotations

import ast
import functools
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest
import yaml

ROOT = pathlib.Path(__file__).parent.parent.parent
PACKAGE = ROOT / "distill_sbs"
MODULES = sorted(PACKAGE.rglob("*.py"))

ENTRY_POINTS = {
    f"distill_sbs.{name}"
    for name in (
        "train evaluate infer precompile prepare extract convert.__main__ sweep report"
    ).split()
}
READS_GIN = ENTRY_POINTS | {"distill_sbs.cli.command_line", "distill_sbs.cli.gin_files"}
# Runs where TensorFlow is not installed.
MODEL_SIDE = (
    "distill_sbs.model",
    "distill_sbs.distributed.sharding",
    "distill_sbs.training.optimizer",
    "distill_sbs.training.train_step",
    "distill_sbs.checkpoint",
    "distill_sbs.distributed.processes",
    "distill_sbs.distributed.lifeline",
)
TENSORFLOW_SIDE = {"tensorflow", "tensorflow_datasets", "tensorflow_text", "seqio", "t5x", "clu"}
JAX_SIDE = {"jax", "jaxlib", "flax", "optax", "orbax", "t5x"}


HOOKS = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]


@pytest.mark.parametrize("hook", HOOKS, ids=[hook["id"] for hook in HOOKS])
def test_tools_find_nothing(hook: dict[str, str]) -> None:
    """What a commit is checked by, over the whole repository, with this environment's programs."""
    program, *arguments = shlex.split(hook["entry"])
    beside = str(pathlib.Path(sys.executable).parent)
    found = sys.executable if program == "python" else shutil.which(program, path=beside)
    assert found, f"{program} is not installed: pip install -c constraints.txt -e '.[test]'"
    if "files" in hook:
        paths = [*(ROOT / "tpu_scripts").iterdir(), *(ROOT / ".ci").iterdir()]
        names = [path.relative_to(ROOT).as_posix() for path in paths]
        arguments += [name for name in names if re.search(hook["files"], name)]
        assert {".ci/run", "tpu_scripts/train.sh", "tpu_scripts/slurm.sbatch"} <= set(arguments)
        assert len(arguments) >= 12
    done = subprocess.run(
        [found, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, f"{hook['entry']}:\n{done.stdout}{done.stderr}"


def test_every_tool_is_a_hook() -> None:
    assert [hook["id"] for hook in HOOKS] == ["ruff-check", "ruff-format", "mypy", "shellcheck"]
    assert {hook["language"] for hook in HOOKS} == {"system"}  # of this environment: pinned
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    assert workflow["jobs"]["ci"]["steps"][-1] == {"run": ".ci/run"}


# ---------------------------------- imports ----------------------------------


def module_name(path: pathlib.Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def belongs(name: str, part: str) -> bool:
    return name == part or name.startswith(part + ".")


def executed_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node below, but for the body of `if TYPE_CHECKING:`, which never runs."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        yield child
        yield from executed_nodes(child)


@functools.cache
def imports() -> dict[str, frozenset[str]]:
    """Module of ours -> every name it imports anywhere in its text, in full."""
    found = {}
    for path in MODULES:
        names: set[str] = set()
        for node in executed_nodes(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}:{node.lineno}: relative import"
                assert node.module is not None
                names.add(node.module)
                names.update(f"{node.module}.{alias.name}" for alias in node.names)
        found[module_name(path)] = frozenset(names)
    return found


def reached(start: str) -> dict[str, str]:
    """Top-level library -> the chain of our modules over which `start` imports it."""
    libraries: dict[str, str] = {}
    seen = {start}
    pending = [(start, start)]
    while pending:
        module, chain = pending.pop(0)
        for name in sorted(imports()[module]):
            if not belongs(name, "distill_sbs"):
                libraries.setdefault(name.split(".")[0], f"{chain} -> {name}")
            elif name in imports() and name not in seen:
                seen.add(name)
                pending.append((name, f"{chain} -> {name}"))
    return libraries


def chains(modules: list[str], banned: set[str]) -> list[str]:
    return [
        chain
        for module in modules
        for library, chain in reached(module).items()
        if library in banned
    ]


def test_model_side_never_reaches_tensorflow_or_gin() -> None:
    modules = [name for name in imports() if any(belongs(name, part) for part in MODEL_SIDE)]
    assert "distill_sbs.model.network" in modules
    assert chains(modules, TENSORFLOW_SIDE | {"gin"}) == []


def test_data_side_never_reaches_jax() -> None:
    modules = [name for name in imports() if belongs(name, "distill_sbs.data")]
    assert "distill_sbs.data.registration" in modules
    assert chains(modules, JAX_SIDE) == []


def test_reports_need_neither_side() -> None:
    modules = [name for name in imports() if belongs(name, "distill_sbs.reporting")]
    assert "distill_sbs.reporting.findings" in modules
    assert chains([*modules, "distill_sbs.report"], JAX_SIDE | TENSORFLOW_SIDE) == []


def test_only_the_t5x_engine_imports_t5x() -> None:
    users = {
        name
        for name, names in imports().items()
        if any(belongs(imported, "t5x") for imported in names)
    }
    assert {name for name in users if not belongs(name, "distill_sbs.t5x_engine")} == set()


def test_library_code_does_not_import_gin() -> None:
    users = {
        name
        for name, names in imports().items()
        if any(belongs(imported, "gin") for imported in names)
    }
    assert {
        name
        for name in users
        if name not in READS_GIN and not belongs(name, "distill_sbs.t5x_engine")
    } == set()


def test_only_entry_points_join_the_sides() -> None:
    """Nothing of the library imports an entry point."""
    for name, names in imports().items():
        if name not in ENTRY_POINTS:
            assert not ENTRY_POINTS & names, f"{name} imports an entry point"


def test_model_side_imports_without_tensorflow() -> None:
    modules = [name for name in imports() if any(belongs(name, part) for part in MODEL_SIDE)]
    program = (
        "import importlib, sys\n"
        f"for name in {sorted(TENSORFLOW_SIDE | {'gin'})!r}: sys.modules[name] = None\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


# ---------------------------------- habits -----------------------------------


def test_files_stay_readable() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for path in [*MODULES, *(ROOT / "tasks").glob("*.py"), *(ROOT / "tests").glob("*.py")]
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 500
    }
    assert long == {}, "past 500 lines it is two files"


def test_no_eval_and_no_utils() -> None:
    for path in [*MODULES, *(ROOT / "tasks").glob("*.py")]:
        assert path.name != "utils.py", path
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec"), f"{path}:{node.lineno}"


def test_gin_folder_does_not_shadow_gin_config() -> None:
    assert list((ROOT / "gin").rglob("__init__.py")) == []
