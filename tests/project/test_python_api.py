"""`import distill_sbs`: what it gives, what it does not import, the README's lines run for real."""

from __future__ import annotations

import ast
import importlib
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest
from teacher_server import problems, running, write_answers, write_inputs

import distill_sbs
from distill_sbs.errors import UserError
from distill_sbs.teacher import options

ROOT = pathlib.Path(__file__).parent.parent.parent
LIGHT = ("DatasetSpec", "ExtractConfig", "JsonlReader", "TrainConfig", "UserError")
CALLED = ("extract", "prepare", "train")


def run(program: str, folder: pathlib.Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )


# ---------------------------------- names ------------------------------------


@pytest.mark.parametrize("names", [(), LIGHT, CALLED], ids=["import", "descriptions", "functions"])
def test_import_needs_neither_tensorflow_nor_jax(
    names: tuple[str, ...], tmp_path: pathlib.Path
) -> None:
    program = (
        "import sys, distill_sbs\n"
        f"for name in {names!r}: getattr(distill_sbs, name)\n"
        "print(sorted({'tensorflow', 'jax', 'seqio', 'flax', 'orbax'} & set(sys.modules)))"
    )
    done = run(program, tmp_path)
    assert done.stdout == "[]\n", done.stdout + done.stderr


def test_every_name_is_listed_found_and_known_to_type_checkers() -> None:
    tree = ast.parse((ROOT / "distill_sbs" / "__init__.py").read_text())
    (typed,) = (
        node
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    seen_by_checkers = {
        alias.asname: each.module
        for each in typed.body
        if isinstance(each, ast.ImportFrom)
        for alias in each.names
    }
    assert {"__version__", *seen_by_checkers} == set(distill_sbs.__all__)
    assert dir(distill_sbs) == sorted(distill_sbs.__all__)
    for name, home in seen_by_checkers.items():
        assert home is not None
        module = importlib.import_module(home)
        expected = module if name in CALLED else getattr(module, name)
        assert getattr(distill_sbs, name) is expected, name


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="module 'distill_sbs' has no attribute 'Teacher'"):
        _ = distill_sbs.Teacher  # type: ignore[attr-defined]
    with pytest.raises(ImportError, match="cannot import name 'Teacher'"):
        exec("from distill_sbs import Teacher")


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLED)
@pytest.mark.parametrize("first", ["import distill_sbs.{0}", "from distill_sbs import {0}", "pass"])
def test_functions_are_there_in_every_order_of_imports(
    name: str, first: str, tmp_path: pathlib.Path
) -> None:
    program = (
        f"{first.format(name)}\n"
        f"import distill_sbs\n"
        f"try: distill_sbs.{name}(nonsense=1)\n"
        f"except TypeError as error: print(error)\n"
        f"import distill_sbs.{name} as module\n"
        f"print(callable(module.{name}), callable(module.main))"
    )
    done = run(program, tmp_path)
    assert done.stdout == (
        f"{name}() got an unexpected keyword argument 'nonsense'\nTrue True\n"
    ), done.stderr


# ---------------------------------- the README -------------------------------


@pytest.mark.slow
def test_readme_lines_train_a_student_that_answers(tmp_path: pathlib.Path) -> None:
    found = re.search(
        r"<!-- python: api -->\n```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL
    )
    assert found
    program = found[1]
    for written, tiny in {
        "train_steps=2000": "train_steps=2, max_decode_tokens=3",
        "batch_size=64": "batch_size=8, student_overrides=dict(vocab_size=384, emb_dim=16,"
        " num_encoder_layers=1, num_decoder_layers=1)",
    }.items():
        assert program.count(written) == 1
        program = program.replace(written, tiny)
    rows = (
        {
            "id": str(number),
            "input": f"Case {number}: I was charged twice.",
            "label": "billing",
            "rationale": "A charge is about money.",
        }
        for number in range(40)
    )
    (tmp_path / "tickets.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = run(program, tmp_path, DISTILL_SBS_DATA_DIR=str(tmp_path / "data"))
    assert done.returncode == 0, done.stderr
    answers = re.search(r"(?m)^(\[.*\]) (\[.*\])$", done.stdout)
    assert answers, done.stdout
    for texts in answers.groups():
        (text,) = ast.literal_eval(texts)
        assert isinstance(text, str)
    results = json.loads((tmp_path / "runs" / "tickets" / "results.json").read_text())
    assert results["mixture"] == "tickets_dss_gpt" and results["train_steps"] == 2


# ---------------------------------- extract, prepare -------------------------


@pytest.mark.slow
def test_extract_gives_its_figures(tmp_path: pathlib.Path, monkeypatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-test")
    write_inputs(tmp_path / "in.jsonl", problems(20))
    answers = write_answers(tmp_path / "answers.jsonl", problems(20), hopeless=(3,))
    with running(answers) as server:
        config = distill_sbs.ExtractConfig(
            task="wordproblems",
            input=str(tmp_path / "in.jsonl"),
            output=str(tmp_path / "out.jsonl"),
            base_url=server.url,
            model="scripted",
        )
        result = distill_sbs.extract(config)
    assert (result.output, result.stopped, result.exit_status) == (config.output, None, 0)
    assert (result.examples, result.parsed, result.failed) == (20, 19, 1)
    right = sum(
        each.teacher_outputs["template"].label == each.label
        for number, each in enumerate(problems(20))
        if number != 3
    )
    assert result.accuracy == right / 20


@pytest.mark.parametrize(
    "given, message",
    [
        ({"samples": 0}, "--samples=0: expected a whole number of at least 1"),
        ({"samples": "8"}, "--samples='8': expected a whole number of at least 1"),
        ({"samples": True}, "--samples=True: expected a whole number"),
        ({"temperature": float("nan")}, "--temperature=nan: expected a number of at least 0"),
        ({"temperature": -1}, "--temperature=-1: expected a number of at least 0"),
        ({"keep": "good"}, "--keep='good': expected all or parsed or agreeing"),
        ({"model": 7}, "--model=7: expected a str"),
        ({"task_file": "a.py"}, "--task_file='a.py': expected a tuple"),
        ({"extra_body": {"model": "b"}}, "--extra_body sets 'model'"),
        ({"extra_body": "{}"}, "--extra_body='{}': expected a Mapping"),
        ({"input": "a", "dataset": "cqa"}, "both name inputs"),
        ({"max_cost": 1.0}, "--max_cost needs"),
        ({"teacher": "GPT-4"}, "--teacher=GPT-4: expected lower-case letters"),
        ({"samples": 2, "temperature": 0}, "--samples=2 at --temperature=0"),
    ],
)
def test_wrong_options_are_refused(given: dict, message: str) -> None:
    with pytest.raises(UserError) as caught:
        options.ExtractConfig(**given)
    assert message in str(caught.value)


def test_prepare_gives_what_info_json_says(tmp_path: pathlib.Path) -> None:
    info = distill_sbs.prepare("wordproblems", data_dir=str(tmp_path), splits=["test"])
    assert info == json.loads((tmp_path / "wordproblems" / "info.json").read_text())
    assert info["splits"]["test"]["examples"] == 400
    outputs = tmp_path / "out.jsonl"
    outputs.write_text("")
    for given, message in (
        ({"splits": "test"}, "splits='test': expected a list of texts, such as ['test']"),
        ({"teacher_outputs": [str(outputs)]}, "--teacher_outputs needs --teacher=NAME"),
        ({"source_dir": str(tmp_path / "none")}, "does not exist"),
    ):
        with pytest.raises(UserError) as caught:
            distill_sbs.prepare("wordproblems", data_dir=str(tmp_path), **given)
        assert message in str(caught.value)
