"""convert, asked of transformers itself: what it saves is read, what is written it loads.

Run with `pytest -m parity -s tests/convert/test_convert_transformers.py` to see the full size's
numbers.
"""

from __future__ import annotations

import json
import logging
import pathlib
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from distill_sbs import constants
from distill_sbs.convert.huggingface import tokenizer as huggingface_tokenizer
from distill_sbs.convert.open import recognise_form
from distill_sbs.convert.write import convert_checkpoint

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

pytestmark = pytest.mark.parity

ROOT = pathlib.Path(__file__).parent.parent.parent

TINY = {
    "vocab_size": 384,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 24,
    "num_layers": 2,
    "num_heads": 2,
    "decoder_start_token_id": 0,
    "dropout_rate": 0.0,
}
BASE = {
    "vocab_size": 32128,
    "d_model": 768,
    "d_kv": 64,
    "d_ff": 2048,
    "num_layers": 12,
    "num_heads": 12,
    "decoder_start_token_id": 0,
}
GATED = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}

# What sets the published families apart for a reader; FLAN-T5 is a v1.1 with other weights.
FAMILIES: dict[str, dict[str, Any]] = {
    "t5-1.0": {"feed_forward_proj": "relu"},
    "t5-v1.1": GATED,
    "flan-t5": {**GATED, "n_positions": 512, "num_layers": 3, "num_decoder_layers": 3},
    "byt5": {**GATED, "num_layers": 3, "num_decoder_layers": 1},
    "mt5": {**GATED, "model_type": "mt5"},
    # AutoTokenizer knows no umT5 of bytes.
    "umt5": {**GATED, "model_type": "umt5", "vocab_size": 640},
}


def random_model(values: dict[str, Any]) -> Any:
    """A T5 whose every weight is random, and scaled so that its outputs differ."""
    kind = values.get("model_type", "t5").upper()
    settings = {name: value for name, value in values.items() if name != "model_type"}
    config = getattr(transformers, f"{kind}Config")(**settings)
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config).eval()
    if values["feed_forward_proj"] != "relu":
        # transformers 5 ties v1.1's head too, unless a checkpoint has one of its own.
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.shared.weight))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_norm = "layer_norm" in name
            spread = 0.3 if is_norm or "shared" in name or "lm_head" in name else 1.0
            if name.endswith((".q.weight", ".k.weight", ".v.weight", ".o.weight", "wo.weight")):
                spread = parameter.shape[1] ** -0.5
            elif ".wi" in name:
                spread = parameter.shape[1] ** -0.5
            parameter.normal_(1.0 if is_norm else 0.0, spread, generator=generator)
    return model


def save(model: Any, folder: pathlib.Path, files: str) -> None:
    """As transformers saves it, or as it did when weights were torch's files."""
    shard = "20KB" if "shards" in files else "50GB"
    model.save_pretrained(folder, max_shard_size=shard)
    assert (folder / "model.safetensors").exists() == ("shards" not in files)
    if "bin" in files:
        places = {}
        for number, file in enumerate(sorted(folder.glob("*.safetensors"))):
            from safetensors.torch import load_file

            state = load_file(file)
            name = "pytorch_model" + (f"-{number}.bin" if "shards" in files else ".bin")
            torch.save(state, folder / name)
            places.update(dict.fromkeys(state, name))
            file.unlink()
        if "shards" in files:
            (folder / "model.safetensors.index.json").unlink()
            index = folder / "pytorch_model.bin.index.json"
            index.write_text(json.dumps({"weight_map": places}))


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """What transformers logs at WARNING or above, but for what it says of every v1.1.

    Its release 5 takes each T5 for a tied one, reads the head all the same, and tells the user to
    set tie_word_embeddings=false, which the files say already; the published ones, too.
    """
    lines: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "different values, so we will NOT tie them" not in record.getMessage():
                lines.append(record.getMessage())

    handler = Handler(logging.WARNING)
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)


def load(folder: pathlib.Path) -> tuple[Any, Any]:
    """The model and the tokenizer; a warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, found = transformers.AutoModelForSeq2SeqLM.from_pretrained(
            folder, output_loading_info=True
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert not any(found.values()), found  # missing, unexpected, mismatched; messages
    return model.eval(), tokenizer


def assert_same_state(found: Any, expected: Any) -> int:
    """The same tensors, compared as bits; how many."""
    theirs, ours = expected.state_dict(), found.state_dict()
    assert theirs.keys() == ours.keys()
    for name, tensor in theirs.items():
        bits = [each.numpy().view(np.int32) for each in (ours[name], tensor)]
        np.testing.assert_array_equal(*bits, err_msg=name, strict=True)
    return len(theirs)


def generated(model: Any, tokenizer: Any, texts: list[str], tokens: int) -> list[str]:
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    outputs = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
    return tokenizer.batch_decode(outputs, skip_special_tokens=True)


@pytest.mark.parametrize(
    ("family", "files"),
    [
        ("t5-1.0", "safetensors"),
        ("t5-1.0", "bin"),
        ("t5-v1.1", "shards of bin"),
        ("flan-t5", "shards of safetensors"),
        ("byt5", "safetensors"),
        ("mt5", "safetensors"),
        ("umt5", "safetensors"),
        ("umt5", "shards of safetensors in bfloat16"),
    ],
)
def test_there_and_back(family: str, files: str, tmp_path: pathlib.Path, logged: list[str]) -> None:
    model = random_model({**TINY, **FAMILIES[family]})
    given, native, back = (tmp_path / name for name in ("given", "native", "back"))
    if "bfloat16" in files:
        model.to(torch.bfloat16)
    save(model, given, files)
    model.float()
    stacked = family in ("t5-v1.1", "byt5", "umt5")
    convert_checkpoint(
        str(given),
        str(native),
        "native",
        form="hf",
        vocabulary_file="embedded" if family == "umt5" else "bytes",
        scan_layers=stacked,
    )
    convert_checkpoint(str(native), str(back), "hf")
    found, tokenizer = load(back)
    assert_same_state(found, model)
    assert found.config.model_type == ("umt5" if family == "umt5" else "t5")
    if family != "umt5":  # of which transformers 5 scales every one, whatever it says
        assert found.config.scale_decoder_outputs == (family == "t5-1.0")
    inputs = tokenizer(["predict: Which?", "explain: Why so?"], padding=True, return_tensors="pt")
    with torch.no_grad():
        ours, theirs = (
            each(**inputs, labels=torch.tensor([[9, 3, 1], [4, 77, 1]])).logits
            for each in (found, model)
        )
    assert torch.equal(ours, theirs) and ours.std() > 0.1
    ours, theirs = (each.generate(**inputs, max_new_tokens=8) for each in (found, model))
    assert torch.equal(ours, theirs)
    assert logged == []


# ---------------------------------- tokenizers -------------------------------

UNKNOWN_ID = 2

TEXTS = [
    "predict: Anna has 12 apples. She buys 7 more. How many apples does Anna have now?",
    "  two  blanks ",
    "héllo wörld ☃ 日本 12.5?x",
    "a\nb\tc",
    "12.,:?ab ﬁne ①",
]


def assert_same_tokens(vocabulary_file: str, folder: pathlib.Path, texts: list[str]) -> None:
    """AutoTokenizer's ids and text are those that a student is trained and scored with."""
    from distill_sbs.data import vocabulary

    described = vocabulary.describe(vocabulary_file)
    loaded = vocabulary.load(vocabulary_file)
    rows = described["size"] + 200
    files = huggingface_tokenizer.make_tokenizer_files(described, rows, 512)
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / "config.json").write_text('{"model_type": "t5"}')
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for text in texts:
        expected = [*vocabulary.encode_text(loaded, text), constants.EOS_ID]
        assert tokenizer(text)["input_ids"] == expected, text
        if UNKNOWN_ID in expected:
            continue  # which skip_special_tokens leaves out and SentencePiece writes as ⁇
        decoded = tokenizer.decode(expected, skip_special_tokens=True)
        assert decoded == loaded.decode(expected), text


@pytest.mark.parametrize("vocabulary_file", ["bytes", "embedded"])
def test_tokens_are_ours(vocabulary_file: str, tmp_path: pathlib.Path) -> None:
    assert_same_tokens(vocabulary_file, tmp_path / "tokenizer", TEXTS)


def questions(source_dir: pathlib.Path, count: int) -> list[str]:
    with open(source_dir / "cqa" / "cqa_test.json", encoding="utf-8") as lines:
        rows = [json.loads(line) for line, _ in zip(lines, range(count), strict=False)]
    return [
        f"predict: {row['question']}\nAnswer Choices:\n" + "\n".join(row["choices"]) for row in rows
    ]


def t5_vocabulary(source_dir: pathlib.Path) -> pathlib.Path:
    file = source_dir.parent / "vocab" / "spiece.model"
    if not file.exists():
        pytest.skip(f"T5's vocabulary is not at {file}")
    return file


@pytest.mark.realdata
def test_tokens_of_t5_are_ours(source_dir: pathlib.Path, tmp_path: pathlib.Path) -> None:
    file = t5_vocabulary(source_dir)
    assert_same_tokens(str(file), tmp_path / "tokenizer", [*TEXTS, *questions(source_dir, 200)])


# ---------------------------------- full size --------------------------------


def peak_megabytes(*arguments: str) -> int:
    """Runs the command as a user does; the peak memory that it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "distill_sbs.convert", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    match = re.search(r"peak memory[ │]+([\d,]+) Mi?B", done.stdout)
    assert match, done.stdout
    return int(match[1].replace(",", ""))


@pytest.mark.slow
@pytest.mark.realdata
def test_base_at_full_size(
    source_dir: pathlib.Path, tmp_path: pathlib.Path, logged: list[str]
) -> None:
    model = random_model({**BASE, **GATED})
    given, native, back = (tmp_path / name for name in ("given", "native", "back"))
    save(model, given, "safetensors")
    shutil.copy(t5_vocabulary(source_dir), given / "spiece.model")
    del model
    # The values are 990 MB; the process itself takes some 350, the largest tensor 99.
    arguments = ("--from=hf", "--to=native", f"--input={given}", f"--output={native}")
    assert peak_megabytes(*arguments) < 900
    arguments = ("--from=native", "--to=hf", f"--input={native}", f"--output={back}")
    assert peak_megabytes(*arguments) < 900
    assert recognise_form(str(back)) == "hf"

    theirs, their_tokenizer = load(given)
    found, tokenizer = load(back)
    tensors = assert_same_state(found, theirs)
    print(f"{tensors} tensors are identical to the bit")
    texts = questions(source_dir, 4)
    answers = generated(found, tokenizer, texts, 16)
    assert answers == generated(theirs, their_tokenizer, texts, 16)
    assert len(set(answers)) > 1
    assert logged == []
