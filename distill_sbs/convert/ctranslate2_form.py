"""CTranslate2's own converter, on a folder of HuggingFace's.

Enters: a folder that `write_huggingface` wrote. Leaves: `model.bin`, `config.json` and
`shared_vocabulary.json`. It imports torch and transformers; what is written needs neither.
"""

from __future__ import annotations

import collections
import json
import os
import pathlib
import shutil

from ctranslate2.converters import TransformersConverter

from distill_sbs.convert.quiet_libraries import quiet_transformers
from distill_sbs.model.config import T5Config
from distill_sbs.serving.served_folder import CTRANSLATE2, FLOAT32, NETWORK_FILES

_MODEL, _CONFIG, _VOCABULARY = NETWORK_FILES[CTRANSLATE2]


def write_network(huggingface: str, output: str, config: T5Config, quantization: str) -> None:
    """Writes the network's files into `output`.

    Args:
      huggingface: the folder that is converted.
      output: a folder that is there.
      config: the student's.
      quantization: 'float32' or 'int8'.
    """
    quiet_transformers()
    folder = pathlib.Path(output)
    converted = pathlib.Path(huggingface) / "ctranslate2"
    converter = TransformersConverter(huggingface)
    converter.convert(str(converted), quantization=None if quantization == FLOAT32 else "int8")
    values = json.loads((converted / _CONFIG).read_text(encoding="utf-8"))
    values["layer_norm_epsilon"] = config.layer_norm_epsilon  # left out, so another one is taken
    _write_json(folder / _CONFIG, values)
    tokens = json.loads((converted / _VOCABULARY).read_text(encoding="utf-8"))
    _write_json(folder / _VOCABULARY, name_apart(tokens))
    shutil.move(os.fspath(converted / _MODEL), os.fspath(folder / _MODEL))


def name_apart(tokens: list[str]) -> list[str]:
    """The tokens, of which a name that an earlier one has becomes `<unused_ID>`.

    An embedding has more rows than the vocabulary has pieces. The converter calls these rows
    <extra_id_0> and so on, which pieces may be called already; ids are found again by name.
    """
    seen: collections.Counter[str] = collections.Counter()
    named = []
    for number, token in enumerate(tokens):
        seen[token] += 1
        named.append(token if seen[token] == 1 else f"<unused_{number}>")
    return named


def _write_json(path: pathlib.Path, values: object) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
