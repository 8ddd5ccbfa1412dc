"""A selection: the training examples that a run is to learn from, by id, in a JSON file.

Enters: `SELECTION`, a file that `curate` or anybody wrote. Leaves: a `Selection`, which
`tasks.preprocessors` looks examples up in.

    {"examples": {"cqa": ["1afa02df", …]}}

is enough; `curate` writes beside it how the choice was made, and a hash of the ids.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence

from etils import epath

from distill_sbs import files, json_lines
from distill_sbs.errors import UserError
from distill_sbs.json_lines import JsonObject, JsonValue

EXAMPLES, HASH, VERSION = "examples", "sha256", "format_version"
FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Selection:
    """Ids of training examples.

    Attributes:
      examples: dataset → its ids, sorted.
      place: the file, for messages.
    """

    examples: Mapping[str, tuple[str, ...]]
    place: str = "SELECTION"

    @property
    def sha256(self) -> str:
        """Of what is chosen, whatever file it stands in: 64 hexadecimal digits."""
        chosen = {name: list(ids) for name, ids in sorted(self.examples.items())}
        return hashlib.sha256(json.dumps(chosen).encode("utf-8", "surrogatepass")).hexdigest()

    def ids_of(self, dataset: str) -> tuple[str, ...]:
        """The ids of a dataset.

        Raises:
          UserError: it chooses nothing of that dataset.
        """
        if dataset not in self.examples:
            raise UserError(
                f"SELECTION={self.place!r} chooses nothing of {dataset}, only of "
                f"{', '.join(self.examples)}; choose of all datasets of the mixture together: "
                f"python -m distill_sbs.curate --dataset={','.join([*self.examples, dataset])} …"
            )
        return self.examples[dataset]


def read_selection(path: str) -> Selection:
    """Reads a selection, local or gs://.

    Raises:
      UserError: no such file, or no selection in it: no ids, ids that are no texts or stand twice,
        or others than its hash says.
    """
    place = f"SELECTION={path!r}"
    if not epath.Path(path).exists():
        raise UserError(
            f"{place}: no such file; make one: python -m distill_sbs.curate --dataset=… "
            f"--teacher=… --examples=… --output={path}"
        )
    if epath.Path(path).is_dir():
        raise UserError(f"{place} is a folder, expected a file that curate wrote")
    content = json_lines.read_json(path)
    examples = _read_examples(content, place)
    selection = Selection(examples, path)
    told = content.get(HASH) if isinstance(content, dict) else None
    if told is not None and told != selection.sha256:
        raise UserError(
            f"{place}: its ids are not those of which it says {HASH} {told!r:.20}; it was changed "
            f'by hand, or is not whole: take the member "{HASH}" out if it is what you want'
        )
    return selection


def _read_examples(content: JsonValue, place: str) -> dict[str, tuple[str, ...]]:
    expected = f'expected {{"{EXAMPLES}": {{"DATASET": ["ID", …]}}}}'
    if not isinstance(content, dict) or not isinstance(content.get(EXAMPLES), dict):
        raise UserError(f"{place} is no selection; {expected}, as curate writes it")
    if (version := content.get(VERSION, FORMAT_VERSION)) != FORMAT_VERSION:
        raise UserError(
            f"{place} has format version {json_lines.show_value(version)}, expected "
            f"{FORMAT_VERSION}; use the version of distill_sbs that wrote it"
        )
    chosen = content[EXAMPLES]
    assert isinstance(chosen, dict)
    examples = {}
    for dataset, ids in chosen.items():
        if not isinstance(ids, list) or not ids:
            shown = json_lines.show_value(ids)
            raise UserError(f"{place}: of {dataset} it has {shown}; {expected}")
        texts = [each for each in ids if isinstance(each, str)]
        if len(texts) < len(ids):
            other = next(each for each in ids if not isinstance(each, str))
            shown = json_lines.show_value(other)
            raise UserError(f"{place}: {shown} among the ids of {dataset}; ids are texts")
        if len(set(texts)) < len(texts):
            twice = collections.Counter(texts).most_common(1)[0][0]
            raise UserError(f"{place}: the id {twice!r} of {dataset} stands twice")
        examples[dataset] = tuple(sorted(texts))
    if not examples:
        raise UserError(f"{place} chooses nothing; {expected}")
    return dict(sorted(examples.items()))


def write_selection(
    path: str, examples: Mapping[str, Sequence[str]], about: JsonObject
) -> Selection:
    """Writes a selection, whole or not at all; the same choice gives the same bytes.

    Args:
      path: the file.
      examples: dataset → ids.
      about: what else it says, such as how the choice was made.
    """
    sorted_ids = {name: tuple(sorted(ids)) for name, ids in sorted(examples.items())}
    selection = Selection(sorted_ids, path)
    content: JsonObject = {
        VERSION: FORMAT_VERSION,
        **about,
        HASH: selection.sha256,
        EXAMPLES: {name: list(ids) for name, ids in sorted_ids.items()},
    }
    files.write_file(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return selection


def check_output(path: str) -> None:
    """Refuses to replace a file that is no selection.

    Raises:
      UserError: something else stands there.
      OSError: it cannot be written.
    """
    files.check_writable(path)
    if "://" in path or not epath.Path(path).is_file() or not epath.Path(path).read_bytes():
        return
    try:
        read_selection(path)
    except UserError:
        raise UserError(
            f"--output={path} holds something that is no selection and would be lost; choose "
            "another file"
        ) from None
