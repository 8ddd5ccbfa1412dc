"""published: the layout of datasets.zip, made up in small, and known figures of the real one."""

from __future__ import annotations

import functools
import json
import pathlib

import numpy as np
import pytest
from etils import epath

from distill_sbs.data import metrics
from distill_sbs.data.dataset import SourceError, TeacherOutput
from distill_sbs.data.readers import palm_outputs, published

NLI_ROW = {"uid": "u1", "premise": "A man sleeps.", "hypothesis": "He is awake.", "label": 2}
CQA_ROW = {
    "id": "c1",
    "question": "Where?",
    "choices": ["a zoo", "a park", "home", "sea", "sky"],
    "answer": "home",
}
CQA_OUTPUT = "It is home. So the answer is (c) home."
ASDIV = """<?xml version="1.0" encoding="UTF-8" ?>
<Machine-Reading-Corpus-File><ProblemSet>
<Problem ID="n1"><Body>Seven red apples.</Body><Question>How many? </Question>
<Answer>9 (apples)</Answer><Formula>7+2=9</Formula></Problem>
<Problem ID="n2"><Body>53 cards.</Body><Question>How many each?</Question>
<Answer>13 (cards)</Answer><Formula>53/4=13 r1</Formula></Problem>
</ProblemSet></Machine-Reading-Corpus-File>"""


def write_lines(path: pathlib.Path, rows: list) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [line if isinstance(line, str) else json.dumps(line) for line in rows]
    path.write_text("\n".join(lines) + "\n")


def write_outputs(folder: pathlib.Path, split: str, chunks: dict[int, object]) -> None:
    (folder / "llm").mkdir(parents=True, exist_ok=True)
    for number, texts in chunks.items():
        (folder / "llm" / f"{split}_CoT_{number}.json").write_text(json.dumps(texts))


def read(reader, folder: pathlib.Path, split: str):
    raw_split = reader(epath.Path(folder), split)
    examples = list(raw_split.examples())
    assert len(examples) == raw_split.size
    assert list(raw_split.examples()) == examples  # can be called again
    return examples


def cqa_row(number: int) -> dict:
    return {**CQA_ROW, "id": f"c{number}", "question": f"Question {number}?"}


def test_cqa_text_and_output(tmp_path: pathlib.Path) -> None:
    write_lines(tmp_path / "cqa" / "cqa_test.json", [CQA_ROW])
    write_outputs(tmp_path / "cqa", "test", {0: [CQA_OUTPUT]})
    (example,) = read(published.read_cqa, tmp_path, "test")
    assert example.input == (
        "Where?\nAnswer Choices:\n(a) a zoo\n(b) a park\n(c) home\n(d) sea\n(e) sky"
    )
    assert (example.id, example.label) == ("c1", "home")
    assert example.teacher_outputs == {"palm": TeacherOutput("home", "It is home.")}


def test_chunks_go_in_the_order_of_their_numbers(tmp_path: pathlib.Path) -> None:
    write_lines(tmp_path / "cqa" / "cqa_test.json", [cqa_row(number) for number in range(11)])
    chunks = {number: [f"Reason {number}. So the answer is (a) x."] for number in range(11)}
    write_outputs(tmp_path / "cqa", "test", chunks)
    examples = read(published.read_cqa, tmp_path, "test")
    assert [example.teacher_outputs["palm"].rationale for example in examples] == [
        f"Reason {number}." for number in range(11)
    ]


def test_held_out_tenth(tmp_path: pathlib.Path) -> None:
    # numpy.random.default_rng(0).permutation(11) begins with 4, 6; ⌈1.1⌉ = 2 are held out.
    permuted = np.random.default_rng(0).permutation(11).tolist()
    write_lines(tmp_path / "cqa" / "cqa_train.json", [cqa_row(number) for number in range(11)])
    write_outputs(tmp_path / "cqa", "train", {0: [CQA_OUTPUT] * 11})
    validation = [example.id for example in read(published.read_cqa, tmp_path, "validation")]
    train = [example.id for example in read(published.read_cqa, tmp_path, "train")]
    assert validation == [f"c{number}" for number in permuted[:2]]
    assert train == [f"c{number}" for number in permuted[2:]]


def test_ids_that_repeat_give_way_to_positions(tmp_path: pathlib.Path) -> None:
    write_lines(tmp_path / "cqa" / "cqa_test.json", [CQA_ROW, CQA_ROW])
    write_outputs(tmp_path / "cqa", "test", {0: [CQA_OUTPUT] * 2})
    ids = [example.id for example in read(published.read_cqa, tmp_path, "test")]
    assert ids == ["cqa-test-0", "cqa-test-1"]


def test_nli_joins_with_the_end_token(tmp_path: pathlib.Path) -> None:
    for reader, dataset in ((published.read_esnli, "esnli"), (published.read_anli1, "anli1")):
        write_lines(tmp_path / dataset / f"{dataset}_valid.json", [NLI_ROW])
        write_outputs(tmp_path / dataset, "valid", {0: ["No."]})
        (example,) = read(reader, tmp_path, "validation")
        assert example.input == "A man sleeps.</s>He is awake."
        assert example.label == "contradiction"
        assert example.id == {"esnli": "esnli-valid-0", "anli1": "u1"}[dataset]
        assert example.teacher_outputs == {"palm": palm_outputs.UNPARSED}


@pytest.mark.parametrize(
    ("rows", "chunks", "message"),
    [
        ([NLI_ROW, "{"], {0: ["", ""]}, "esnli_test.json, line 2: broken JSON"),
        ([{**NLI_ROW, "label": 3}], {0: [""]}, "line 1: unknown label 3; the labels are 0 .entail"),
        ([{**NLI_ROW, "label": -1}], {0: [""]}, "unknown label -1"),
        ([{**NLI_ROW, "label": None}], {0: [""]}, "unknown label None"),
        ([{"label": 0, "premise": "x"}], {0: [""]}, 'no "hypothesis"'),
        ([NLI_ROW] * 3, {0: ["", ""]}, "holds 3 rows, but .* hold 2 teacher outputs"),
        ([NLI_ROW], {}, "test_CoT_0.json is missing"),
        ([NLI_ROW] * 2, {0: [""], 2: [""]}, "test_CoT_1.json is missing though test_CoT_2.json"),
        ([NLI_ROW], {0: {"a": 1}}, "test_CoT_0.json: expected a JSON list of texts"),
        ([NLI_ROW], {0: [None]}, "expected a JSON list of texts"),
        ([], {0: []}, "holds no rows"),
    ],
)
def test_bad_sources(tmp_path: pathlib.Path, rows, chunks, message: str) -> None:
    write_lines(tmp_path / "esnli" / "esnli_test.json", rows)
    write_outputs(tmp_path / "esnli", "test", chunks)
    with pytest.raises(SourceError, match=message):
        published.read_esnli(epath.Path(tmp_path), "test")


def test_broken_output_file_names_the_line(tmp_path: pathlib.Path) -> None:
    write_lines(tmp_path / "esnli" / "esnli_test.json", [NLI_ROW])
    write_outputs(tmp_path / "esnli", "test", {0: []})
    (tmp_path / "esnli" / "llm" / "test_CoT_0.json").write_text('["a",\n "b" "c"]')
    with pytest.raises(SourceError, match="test_CoT_0.json, line 2: broken JSON"):
        published.read_esnli(epath.Path(tmp_path), "test")


def test_missing_inputs(tmp_path: pathlib.Path) -> None:
    with pytest.raises(SourceError, match="anli1_train.json is missing"):
        published.read_anli1(epath.Path(tmp_path), "train")


def test_asdiv(tmp_path: pathlib.Path) -> None:
    (tmp_path / "asdiv").mkdir()
    (tmp_path / "asdiv" / "ASDiv.xml").write_text(ASDIV)
    first, second = read(published.read_asdiv, tmp_path, "train")
    assert (first.id, first.input) == ("n1", "Seven red apples.\nHow many?")
    assert (first.label, second.label) == ("7+2", None)
    assert first.teacher_outputs == {}

    write_outputs(tmp_path / "asdiv", "train", {0: ["Add. The answer is (7 + 2).", "?"]})
    first, second = read(published.read_asdiv, tmp_path, "train")
    assert first.teacher_outputs == {"palm": TeacherOutput("(7 + 2)", "Add.")}
    assert second.teacher_outputs == {"palm": palm_outputs.UNPARSED}


def test_bad_asdiv(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "asdiv"
    folder.mkdir()
    with pytest.raises(SourceError, match="ASDiv.xml is missing"):
        published.read_asdiv(epath.Path(tmp_path), "train")
    (folder / "ASDiv.xml").write_text("<a>\n<b>")
    with pytest.raises(SourceError, match="ASDiv.xml, line 2: broken XML"):
        published.read_asdiv(epath.Path(tmp_path), "train")
    (folder / "ASDiv.xml").write_text(ASDIV)
    write_outputs(folder, "train", {0: ["one"]})
    with pytest.raises(SourceError, match="holds 2 rows, but .* hold 1 teacher outputs"):
        published.read_asdiv(epath.Path(tmp_path), "train")
    with pytest.raises(SourceError, match="asdiv has no test split"):
        published.read_asdiv(epath.Path(tmp_path), "test")


# ---------------------------- the real files -----------------------------------

READERS = {
    "cqa": (published.read_cqa, metrics.answers_match),
    "svamp": (published.read_svamp, metrics.equations_match),
    "esnli": (published.read_esnli, metrics.answers_match),
    "anli1": (published.read_anli1, metrics.answers_match),
}


@functools.cache
def read_real(dataset: str, source_dir: pathlib.Path, split: str):
    """Read once for all tests of the real files."""
    return read(READERS[dataset][0], source_dir, split)


def figures(source_dir: pathlib.Path, dataset: str, *splits: str) -> tuple[int, int, float]:
    """(examples, unparsed, teacher accuracy in percent) of the splits taken together."""
    is_correct = READERS[dataset][1]
    size = unparsed = right = 0
    for split in splits:
        for example in read_real(dataset, source_dir, split):
            output = example.teacher_outputs["palm"]
            assert (output.label is None) == (output.rationale is None)
            size += 1
            unparsed += output.label is None
            right += output.label is not None and is_correct(example.label, output.label)
    return size, unparsed, 100 * right / size


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("dataset", "splits", "size", "unparsed", "accuracy"),
    [
        ("cqa", ["train"], 8766, 3, 74.31),  # a published training log prints 0.7431
        ("cqa", ["validation"], 975, 0, 73.85),
        ("cqa", ["train", "validation"], 9741, 3, 74.26),
        ("cqa", ["test"], 1221, 0, 77.23),
        ("svamp", ["train"], 720, 12, 72.92),
        ("svamp", ["validation"], 80, 1, 78.75),
        ("svamp", ["train", "validation"], 800, 13, 73.50),
        ("svamp", ["test"], 200, 2, 74.00),
        ("esnli", ["validation"], 9842, 4, 73.17),
        ("esnli", ["test"], 9824, 0, 72.99),
        ("anli1", ["validation"], 1000, 9, 66.80),
        ("anli1", ["test"], 1000, 10, 65.60),
    ],
)
def test_facts(source_dir, dataset, splits, size, unparsed, accuracy) -> None:
    found = figures(source_dir, dataset, *splits)
    assert (found[0], found[1], round(found[2], 2)) == (size, unparsed, accuracy)


@pytest.mark.realdata
def test_facts_of_the_first_esnli_training_pairs(source_dir) -> None:
    path = source_dir / "esnli" / "llm"
    texts = [*json.loads((path / "train_CoT_0.json").read_text())]
    texts += json.loads((path / "train_CoT_1.json").read_text())
    parsed = [palm_outputs.parse_esnli(text) for text in texts[:10_000]]
    assert sum(output.label is None for output in parsed) == 170
    labels = {output.label for output in parsed} - {None}
    assert labels == set(palm_outputs.NLI_LABELS)


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("dataset", "splits", "mean_words"),
    [
        ("cqa", ["train", "validation"], 24.3),
        ("cqa", ["test"], 24.4),
        ("svamp", ["train", "validation"], 28.4),
        ("svamp", ["test"], 28.8),
        ("esnli", ["validation"], 10.5),
        ("esnli", ["test"], 10.5),
        ("anli1", ["validation"], 19.6),
        ("anli1", ["test"], 19.9),
    ],
)
def test_mean_words_of_the_rationales_we_keep(source_dir, dataset, splits, mean_words) -> None:
    """Figures counted on the published test files before this code was written."""
    rationales = [
        example.teacher_outputs["palm"].rationale
        for split in splits
        for example in read_real(dataset, source_dir, split)
    ]
    words = [len(rationale.split()) for rationale in rationales if rationale is not None]
    assert round(float(np.mean(words)), 1) == mean_words


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("dataset", "files", "next_block", "marker", "mean_words"),
    [
        ("cqa", 10, "Q:", "So the answer is", 24.3),
        ("svamp", 2, "Q:", "The answer is", 28.1),
        ("esnli", 2, None, "Answer:", 10.4),
    ],
)
def test_mean_words_as_facts_counts_them(
    source_dir, dataset, files, next_block, marker, mean_words
) -> None:
    """The figures are of what the published code extracts from the whole original training set.

    Its rationale may stand where the label is unparsable (we keep neither), and where there is no
    rationale it is the blank text, of no words. ANLI's 19.3 is of a training set not at hand.
    """
    words = []
    for number in range(files):
        path = source_dir / dataset / "llm" / f"train_CoT_{number}.json"
        for text in json.loads(path.read_text()):
            if next_block is None:
                rationale = text.split(marker)[0]
            else:
                parts = palm_outputs.split_rationale(text, next_block, marker)
                rationale = parts[0] if parts else ""
            words.append(len(rationale.split()))
    assert round(float(np.mean(words)), 1) == mean_words


@pytest.mark.realdata
def test_svamp_split_is_the_published_permutation(source_dir) -> None:
    """The first 800 and last 200 of `numpy.random.RandomState(0).permutation(1000)`."""
    problems = json.loads((source_dir / "svamp" / "SVAMP.json").read_text())
    order = np.random.RandomState(0).permutation(1000)
    inputs = [f"{problems[i]['Body']}\n{problems[i]['Question']}" for i in order]
    assert [example.input for example in read_real("svamp", source_dir, "test")] == inputs[800:]
    held_out = published.held_out_positions(800)
    train = [example.input for example in read_real("svamp", source_dir, "train")]
    assert train == [inputs[position] for position in held_out["train"]]


@pytest.mark.realdata
def test_asdiv_facts(source_dir) -> None:
    examples = read(published.read_asdiv, source_dir, "train")
    labels = [example.label for example in examples if example.label is not None]
    assert (len(examples), len(labels)) == (2305, 1530)
    assert not any(np.isnan(metrics.equation_value(label)) for label in labels)


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "split"), [("cqa", "test"), ("svamp", "test"), ("esnli", "valid")]
)
def test_inputs_alone_are_those_of_the_records(
    source_dir: pathlib.Path, name: str, split: str
) -> None:
    """`extract` asks about a raw inputs file; its answers are joined by the records' ids."""
    layout = published.LAYOUTS[name]
    folder = epath.Path(source_dir)
    alone = layout.read_inputs(folder / name / f"{name}_{split}.json")
    ours = {"valid": "validation"}.get(split, split)
    whole = layout(folder, ours)
    assert alone.size == whole.size
    for without, example in zip(alone.examples(), whole.examples(), strict=True):
        assert (without.id, without.input, without.label) == (
            example.id,
            example.input,
            example.label,
        )
        assert without.teacher_outputs == {}
