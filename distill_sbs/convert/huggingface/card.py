"""A model card beside an exported student: what it is, what it was trained on, how good it is.

Enters: a `ParameterSource`, and what its run found. Leaves: the text of `README.md`, in the format
of HuggingFace: a YAML header that the hub reads, and a page that people read.
"""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Mapping
from importlib import metadata

import huggingface_hub

from distill_sbs import constants, json_lines
from distill_sbs.checkpoint.description import RunDescription
from distill_sbs.convert.source import ParameterSource, name_kind
from distill_sbs.errors import SourceError
from distill_sbs.model.config import T5GEMMA, T5GemmaConfig
from distill_sbs.model.parameters import list_parameters

CARD_FILE = "README.md"
_OTHER_LICENSE = "other"
_MOST_CHARACTERS = 200  # of a value that a checkpoint says of itself

_SHOWN_SERVER = """## Use

```sh
python -m distill_sbs.serve --model=THIS_FOLDER
curl -H 'Content-Type: application/json' -d '{"input": "…"}' http://127.0.0.1:8000/explain
```

Accuracies are those of the run, by its own decoding."""


def write_card(
    source: ParameterSource, license: str | None = None, served_as: tuple[str, str] | None = None
) -> str:
    """The text of a card.

    Args:
      source: what was exported.
      license: of the data and so of the student, as its owner gives it; None: not stated.
      served_as: form and quantization of an export for `serve`; None: HuggingFace's form.
    """
    said, found = source.description, _read_results(source)
    name = name_student(source)
    is_t5gemma = isinstance(source.config, T5GemmaConfig)
    header = huggingface_hub.ModelCardData(
        license=license or _OTHER_LICENSE,
        library_name=served_as[0] if served_as else "transformers",
        pipeline_tag="text2text-generation",
        tags=["distilling-step-by-step", "arxiv:2305.02301", T5GEMMA if is_t5gemma else "t5"],
        model_name=name,
        eval_results=_eval_results(said, found),
    )
    parts = [f"---\n{header.to_yaml().strip()}\n---", f"# {name}", _introduce(said, source)]
    facts = _facts(said, found, source)
    if served_as:
        facts.insert(-1, ("form", " of ".join(served_as)))
    rows = [f"| {what} | {value} |" for what, value in facts]
    parts.append("\n".join(["| | |", "| --- | --- |", *rows]))
    parts.append(_SHOWN_SERVER if served_as else _show_use(said))
    parts.append(
        "## Licence\n\n"
        + (
            f"As its owner gives it: {_cell(license)}."
            if license
            else "Not stated. A student learns from its data and its teacher: their terms hold; "
            "`convert --license=…` states yours here."
        )
    )
    if said is not None and said.options:
        options = "\n".join(f"{macro} = {value!r}" for macro, value in said.options.items())
        parts.append(
            "## How it was trained\n\n`python -m distill_sbs.train --gin_file=student.gin`, where "
            f"`student.gin` is\n\n```\n{_fence(options)}\n```"
        )
    return "\n\n".join(parts) + "\n"


def _read_results(source: ParameterSource) -> Mapping[str, object]:
    """`results.json` of the run, if this is the step that it tells of."""
    if source.description is None or "://" in source.location:
        return {}
    step = pathlib.Path(source.location)
    path = step.parent.parent / constants.RESULTS_FILE
    try:
        found = json_lines.read_json(path) if path.is_file() else None
    except (SourceError, OSError):
        return {}
    if not isinstance(found, dict) or str(found.get("best_step")) != step.name:
        return {}
    return found


def _accuracy(found: Mapping[str, object], split: str) -> float | None:
    of_split = found.get(split)
    value = of_split.get("accuracy") if isinstance(of_split, dict) else None
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1:
        return None
    return float(value)


def _eval_results(
    said: RunDescription | None, found: Mapping[str, object]
) -> list[huggingface_hub.EvalResult] | None:
    mixture = said.mixture if said else None
    results = [
        huggingface_hub.EvalResult(
            task_type="text2text-generation",
            dataset_type=_cell(mixture),
            dataset_name=_cell(mixture),
            dataset_split=split,
            metric_type="accuracy",
            metric_value=round(value, 4),
        )
        for split in ("validation", "test")
        if mixture and (value := _accuracy(found, split)) is not None
    ]
    return results or None


def name_student(source: ParameterSource) -> str:
    """What an export is called, on one line."""
    said = source.description
    if said is not None and said.mixture:
        return _cell(f"{said.options.get('STUDENT', 't5')} on {said.mixture}")
    return _cell(pathlib.PurePosixPath(source.location).name or "t5")


def _introduce(said: RunDescription | None, source: ParameterSource) -> str:
    made_by = "[distill_sbs](https://arxiv.org/abs/2305.02301)"
    kind = name_kind(source.config)
    if said is None or not said.mixture:
        return f"A {kind}, converted by {made_by} from `{_cell(source.location)}`."
    return (
        f"A small {kind}, trained by *Distilling step-by-step* (arXiv 2305.02301) on labels and, "
        f"as a second task, on a teacher's rationales, with {made_by}. It answers with a label "
        "alone, or explains."
    )


def _facts(
    said: RunDescription | None, found: Mapping[str, object], source: ParameterSource
) -> list[tuple[str, str]]:
    from distill_sbs import __version__

    count = sum(math.prod(each.shape) for each in list_parameters(source.config))
    rows = [("parameters", f"{count:,}")]
    if said is not None and said.mixture:
        options = said.options
        rows += [
            ("trained on (data, method, teacher)", f"`{_cell(said.mixture)}`"),
            ("share of the training examples", _cell(options.get("DATA_FRACTION", "unknown"))),
            ("rationale rate λ", _cell(options.get("RATIONALE_RATE", "unknown"))),
            ("selection", "chosen examples" if said.selection else "none"),
            ("started from", _cell(options.get("INITIAL_CHECKPOINT_PATH") or "random parameters")),
            ("step", f"{pathlib.PurePosixPath(source.location).name} of "
             + _cell(options.get("TRAIN_STEPS", "unknown"))),
        ]  # fmt: skip
        lengths = said.task_feature_lengths
        rows.append(("longest input, in tokens", _cell(lengths.get(constants.INPUTS))))
    for split in ("validation", "test"):
        if (value := _accuracy(found, split)) is not None:
            rows.append((f"accuracy on {split}", f"{value:.2%}"))
    rows.append(("written by", f"distill_sbs {__version__} ({_show_versions()})"))
    return rows


def _show_versions() -> str:
    """What the student is computed with here."""
    return ", ".join(
        f"{name} {metadata.version(name)}" for name in ("jax", "flax", "orbax-checkpoint")
    )


def _show_use(said: RunDescription | None) -> str:
    prefix = said.prefixes.get("label", "") if said else ""
    shares_encoder = said is not None and said.shares_encoder
    shown_prefix = "" if shares_encoder else f"{_fence(json.dumps(prefix))} + "
    lines = [
        "## Use",
        "",
        "```python",
        "from transformers import AutoModelForSeq2SeqLM, AutoTokenizer",
        "",
        'tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")',
        'student = AutoModelForSeq2SeqLM.from_pretrained("THIS_FOLDER")',
        f'tokens = tokenizer({shown_prefix}text, return_tensors="pt")',
        "print(tokenizer.decode(student.generate(**tokens)[0], skip_special_tokens=True))",
        "```",
    ]
    if said and said.shares_encoder:
        start = said.decoder_starts["rationale"]
        lines += [
            "",
            "No prefix stands before an input. The decoder's start token tells what to write: a "
            f"label from {said.decoder_starts['label']}, as above, a rationale from {start}, with "
            f"`student.generate(**tokens, decoder_start_token_id={start})`.",
        ]
    elif said:
        shown = ", ".join(f"`{_cell(json.dumps(each))}`" for each in said.prefixes.values())
        names = ", ".join(_cell(name) for name in said.prefixes)
        lines += ["", f"What stands before an input: {shown} ({names})."]
    return "\n".join(lines)


def _cell(value: object) -> str:
    """A value that came from elsewhere, as one line of a table."""
    text = " ".join(str(value).split())
    for mark in "|`<>[]":
        text = text.replace(mark, "" if mark in "`" else f"\\{mark}")
    return text if len(text) <= _MOST_CHARACTERS else text[: _MOST_CHARACTERS - 1] + "…"


def _fence(text: str) -> str:
    """A text inside a fenced block, out of which it cannot get."""
    return text.replace("```", "'''")
