"""Linter, formatter, type checker, and who may import whom (docs/architecture.md)."""

from __future__ import annotations

import ast
import functools
import itertools
import os
import pathlib
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
import types
from collections.abc import Iterator

import pytest
import yaml

ROOT = pathlib.Path(__file__).parent.parent.parent
PACKAGE = ROOT / "distill_sbs"
MODULES = sorted(PACKAGE.rglob("*.py"))

# The one module whose imports are gin's: the parser of its files.
READS_GIN = {"distill_sbs.cli.gin_files"}
# What runs where TensorFlow is not installed, but for the one module that writes TensorBoard's
# events.
MODEL_SIDE = (
    "distill_sbs.model",
    "distill_sbs.distributed",
    "distill_sbs.training",
    "distill_sbs.contrasting",
    "distill_sbs.checkpoint",
    "distill_sbs.inference",
    "distill_sbs.precompiling",
    "distill_sbs.convert",
)
NEEDS_TENSORFLOW = {"distill_sbs.training.run_log"}
TENSORFLOW_SIDE = {"tensorflow", "tensorflow_datasets", "tensorflow_text", "seqio", "t5x", "clu"}
JAX_SIDE = {"jax", "jaxlib", "flax", "optax", "orbax", "t5x"}
# A sweep is made of runs of `train`: it asks it what is wrong with a run, its worker calls it.
# An allocation is a run whose data are chosen as it goes, and is checked as a run is.
MADE_OF_TRAIN = {"distill_sbs.sweep", "distill_sbs.sweeping.worker", "distill_sbs.allocate"}
# What may need these, where it is not obvious, imports them by name when it needs them.
IMPORTED_BY_NAME = {"distill_sbs.cli.quiet_tensorflow": "tensorflow"}


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


def test_any_is_rare() -> None:
    """`Any` stands where a library or a file of any form forces it, and its aliases are few.

    mypy checks nothing about a value of that type, so `--strict` alone does not keep them out. Who
    needs one more says why beside it, and raises the number; who can do with one less lowers it.
    """
    uses, aliases = [], []
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Name) and node.id == "Any":
                uses.append(f"{path.relative_to(ROOT)}:{node.lineno}")
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                if ast.unparse(node.value) in ("Any", "typing.Any"):
                    aliases += map(ast.unparse, targets)
            assert not (isinstance(node, ast.Attribute) and ast.unparse(node) == "typing.Any"), path
    assert len(uses) <= 31, "\n".join(uses)
    assert aliases == ["PyTree"]  # JAX has no type for trees


# What an export and a server need, and not everybody has.
LIBRARIES_OF_EXTRAS = ("ctranslate2", "onnx", "onnxruntime", "starlette", "torch", "uvicorn")


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
        tree = ast.parse(path.read_text(encoding="utf-8"))
        # Importing the package runs its own lines; what `__getattr__` imports later is no part.
        nodes = tree.body if path == PACKAGE / "__init__.py" else executed_nodes(tree)
        for node in nodes:
            if isinstance(node, ast.Import):
                names.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}:{node.lineno}: relative import"
                assert node.module is not None
                names.add(node.module)
                names.update(f"{node.module}.{alias.name}" for alias in node.names)
        if by_name := IMPORTED_BY_NAME.get(module_name(path)):
            names.add(by_name)
        found[module_name(path)] = frozenset(names)
    return found


@functools.cache
def entry_points() -> frozenset[str]:
    """Modules of the package that are programs: `python -m …` runs them.

    Library modules that also print something when they are run, of the data, are none.
    """
    found = {
        module_name(path)
        for path in MODULES
        if '\nif __name__ == "__main__":' in path.read_text(encoding="utf-8")
    }
    found = {name for name in found if not belongs(name, "distill_sbs.data")}
    found -= {"distill_sbs.resources", "distill_sbs.__main__"}
    assert {"distill_sbs.train", "distill_sbs.convert.__main__"} <= found
    return frozenset(found)


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


def model_side() -> list[str]:
    return [
        name
        for name in imports()
        if any(belongs(name, part) for part in MODEL_SIDE)
        and name not in entry_points() | NEEDS_TENSORFLOW
    ]


def test_model_side_never_reaches_tensorflow_or_gin() -> None:
    assert {"distill_sbs.model.network", "distill_sbs.inference.student"} <= set(model_side())
    assert chains(model_side(), TENSORFLOW_SIDE | {"gin"}) == []


def test_the_exception_is_one() -> None:
    for module in NEEDS_TENSORFLOW:
        assert chains([module], TENSORFLOW_SIDE) != [], f"{module} needs no TensorFlow any more"


def test_data_side_never_reaches_jax() -> None:
    modules = [name for name in imports() if belongs(name, "distill_sbs.data")]
    assert "distill_sbs.data.registration" in modules
    assert chains(modules, JAX_SIDE) == []


def test_reports_need_neither_side() -> None:
    modules = [name for name in imports() if belongs(name, "distill_sbs.reporting")]
    assert "distill_sbs.reporting.findings" in modules
    assert chains([*modules, "distill_sbs.report"], JAX_SIDE | TENSORFLOW_SIDE) == []


def test_teacher_reaches_no_jax_and_tensorflow_over_its_inputs_alone() -> None:
    modules = [name for name in imports() if belongs(name, "distill_sbs.teacher")]
    assert chains(modules, JAX_SIDE | {"gin"}) == []
    over_inputs = "distill_sbs.teacher.inputs -> "
    found = chains(modules, TENSORFLOW_SIDE)
    assert found != []
    assert [chain for chain in found if over_inputs not in chain] == []


def test_curation_reaches_no_jax_and_tensorflow_over_its_pool_alone() -> None:
    modules = [name for name in imports() if belongs(name, "distill_sbs.curating")]
    assert chains([*modules, "distill_sbs.curate"], JAX_SIDE) == []
    found = chains(modules, TENSORFLOW_SIDE)
    assert found != []
    assert [chain for chain in found if "distill_sbs.curating.pool -> " not in chain] == []


def test_infer_reaches_no_tensorflow() -> None:
    assert chains(["distill_sbs.infer"], TENSORFLOW_SIDE) == []


def test_serving_needs_neither_side() -> None:
    modules = [name for name in imports() if belongs(name, "distill_sbs.serving")]
    assert "distill_sbs.serving.application" in modules
    banned = JAX_SIDE | TENSORFLOW_SIDE | {"torch", "transformers"}
    assert chains([*modules, "distill_sbs.serve"], banned) == []
    assert chains(modules, {"gin"}) == []


def test_only_the_t5x_engine_imports_t5x() -> None:
    users = {
        name
        for name, names in imports().items()
        if any(belongs(imported, "t5x") for imported in names)
    }
    assert {name for name in users if not belongs(name, "distill_sbs.t5x_engine")} == set()


def test_only_the_reader_of_gin_files_and_the_t5x_engine_import_gin() -> None:
    users = {
        name
        for name, names in imports().items()
        if any(belongs(imported, "gin") for imported in names)
    }
    assert {name for name in users if not belongs(name, "distill_sbs.t5x_engine")} == READS_GIN


def test_nothing_imports_an_entry_point() -> None:
    public = {"distill_sbs"}  # its names `train`, `prepare`, `extract`, for type checkers alone
    for name, names in imports().items():
        if name not in public:
            allowed = {"distill_sbs.train"} if name in MADE_OF_TRAIN else set()
            assert not entry_points() & names - allowed, f"{name} imports an entry point"


def test_allocating_needs_neither_side() -> None:
    modules = [name for name in imports() if belongs(name, "distill_sbs.allocating")]
    assert "distill_sbs.allocating.bookkeeping" in modules
    assert chains(modules, JAX_SIDE | TENSORFLOW_SIDE | {"gin"}) == []


def test_planning_a_sweep_needs_no_jax() -> None:
    modules = [name for name in imports() if belongs(name, "distill_sbs.sweeping")]
    assert {"distill_sbs.sweeping.plan", "distill_sbs.sweeping.worker"} <= set(modules)
    assert chains([name for name in modules if name not in entry_points()], JAX_SIDE) == []


def test_only_entry_points_join_the_sides() -> None:
    """What reaches SeqIO and JAX both is a program, or the engine of T5X, which has both."""
    both = {
        name
        for name in imports()
        if name not in entry_points() and {"seqio", "jax"} <= set(reached(name))
    }
    assert {name for name in both if not belongs(name, "distill_sbs.t5x_engine")} == set()


def test_imports_go_in_no_circle() -> None:
    """Imports inside functions among them: a circle is two modules that are one."""
    graph = {
        name: {each for each in names if each in imports()} for name, names in imports().items()
    }
    done: set[str] = set()
    circles: list[list[str]] = []

    def walk(module: str, path: list[str]) -> None:
        if module in path:
            circles.append([*path[path.index(module) :], module])
        elif module not in done:
            for imported in sorted(graph[module] - {module.rpartition(".")[0], "distill_sbs"}):
                walk(imported, [*path, module])
            done.add(module)

    for module in sorted(graph):
        walk(module, [])
    assert circles == []


@pytest.mark.slow
def test_model_side_imports_without_tensorflow() -> None:
    modules = [*model_side(), "distill_sbs.infer"]
    program = (
        "import importlib, sys\n"
        f"for name in {sorted(TENSORFLOW_SIDE)!r}: sys.modules[name] = None\n"
        f"for name in {modules!r}:\n"
        "    try:\n"
        "        importlib.import_module(name)\n"
        "    except ModuleNotFoundError as error:\n"
        f"        if error.name not in {LIBRARIES_OF_EXTRAS!r}: raise\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


# ---------------------------------- habits -----------------------------------


def test_files_stay_readable() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for folder in ("distill_sbs", "tasks", "tests", "benchmarks", "docs")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 500
    }
    assert long == {}, "past 500 lines it is two files"


# What bends a word: evaluate and evaluation, prepare and preparation, parameter and parameters.
BENDING = {"", "s", "es", "e", "ed", "er", "or", "ing", "ion", "ation", "ment"}
# Public paths, which stay; and the engine of T5X, whose modules are called as T5X's.
NAMED_ALIKE = {("registered", "registration"), ("train", "trainer")}


def differ_by_a_suffix(first: str, second: str) -> bool:
    common = os.path.commonprefix([first, second])
    rests = {first.removeprefix(common), second.removeprefix(common)}
    return len(common) >= 4 and first != second and rests <= BENDING


def test_no_two_modules_differ_by_a_suffix() -> None:
    for pair in ("evaluate evaluation", "extract extraction", "prepare preparation"):
        assert differ_by_a_suffix(*pair.split())
    assert not differ_by_a_suffix("extract", "extra_options")
    names = sorted({path.stem for path in MODULES} - {"__init__", "__main__"})
    alike = {
        pair for pair in itertools.combinations(names, 2) if differ_by_a_suffix(*pair)
    } - NAMED_ALIKE
    assert alike == set()


def test_no_eval_and_no_utils() -> None:
    for path in [*MODULES, *(ROOT / "tasks").glob("*.py")]:
        assert path.name != "utils.py", path
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec"), f"{path}:{node.lineno}"


def test_gin_folder_does_not_shadow_gin_config() -> None:
    assert list((ROOT / "gin").rglob("__init__.py")) == []


PROGRAMS = sorted([*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "tests" / "helpers").glob("*.py")])


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.name)
def test_what_programs_take_from_the_package_is_there(program: pathlib.Path) -> None:
    """A renamed function is found here, not after an hour of the benchmark that still calls it."""
    tree = ast.parse(program.read_text(encoding="utf-8"))
    modules: dict[str, list[types.ModuleType]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and belongs(node.module or "", "distill_sbs"):
            for alias in node.names:
                value = pkgutil.resolve_name(f"{node.module}.{alias.name}")  # or AttributeError
                if isinstance(value, types.ModuleType):
                    modules.setdefault(alias.asname or alias.name, []).append(value)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            # Functions may import two modules of one name.
            of_the_name = modules.get(node.value.id)
            known = not of_the_name or any(hasattr(module, node.attr) for module in of_the_name)
            assert known, f"line {node.lineno}: no {node.attr} in {node.value.id}"
