"""HuggingFace's folders as our parameters, and our parameters as such a folder.

Enters: a folder, or a hub id, with `config.json` and weights (`huggingface.weights` says in which
files); or a `ParameterSource` of any form.
Leaves: a `ParameterSource`; or a folder that `AutoModelForSeq2SeqLM.from_pretrained` and
`AutoTokenizer.from_pretrained` load. Neither needs transformers or torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping

import ml_dtypes
import numpy as np

from distill_sbs.checkpoint.description import check_starts
from distill_sbs.convert.huggingface import names, settings, t5gemma, tokenizer, weights
from distill_sbs.convert.source import Index, ParameterSource, check_computation, check_vocabulary
from distill_sbs.data import sentencepiece_model
from distill_sbs.data.sentencepiece_model import VocabularyDescription, check_absent_ids
from distill_sbs.dtypes import FLOAT_TYPES
from distill_sbs.errors import UserError
from distill_sbs.model.config import T5Config, T5GemmaConfig
from distill_sbs.model.parameters import list_by_stack

CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"
# In it, where the decoder's start tells the task: the start token by task.
STARTS_KEY = "task_decoder_start_token_ids"
# And what `generate` of transformers never says.
SUPPRESS_KEY = "suppress_tokens"

# HuggingFace's own limit on a file, before its release 5.
SHARD_BYTES = 5 * 10**9

# Where no run of ours says otherwise: T5's pretraining length, and our MAX_DECODE_TOKENS.
_INPUT_TOKENS, _OUTPUT_TOKENS = 512, 64

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_EMBEDDING_PATH, _HEAD_PATH = "token_embedder/embedding", "decoder/logits_dense/kernel"
_COMPARED_BYTES = 2**26


class HuggingFaceSource(ParameterSource):
    """A T5 of HuggingFace: 1.0, v1.1, FLAN, ByT5, mT5, umT5; or the text of a T5Gemma 2.

    Args:
      location: a local folder, or the id of a repository on the HuggingFace hub, of which the
        needed files are downloaded.

    Raises:
      UserError: no such folder or repository; no T5; a file missing or damaged; no output head
        where the configuration does not say that it is the embedding.
    """

    def __init__(self, location: str) -> None:
        self.location = location
        self.folder = _find_folder(location)
        try:
            said = settings.read_settings(weights.read_json(self.folder / CONFIG_FILE))
        except UserError:
            raise
        except ValueError as error:
            raise UserError(f"{location}: {error}") from None
        file = self.folder / GENERATION_FILE
        generation = weights.read_json(file) if file.is_file() else {}
        rows = said.config.vocab_size
        if STARTS_KEY in generation:  # an export of ours, of a student that shares its encoder
            with _name_key(file, STARTS_KEY):
                self.decoder_starts = check_starts(generation[STARTS_KEY], rows)
        if generation.get(SUPPRESS_KEY) is not None:
            with _name_key(file, SUPPRESS_KEY):
                self.absent_ids = check_absent_ids(generation[SUPPRESS_KEY], rows)
        self._weights = weights.open_weights(self.folder)
        self._layout = names.find_layout(said.config)
        if isinstance(said.config, T5GemmaConfig):
            self._weights = weights.RenamedWeights(self._weights, t5gemma.rename_stored)
            self.warnings = t5gemma.warn_of_images(self.location, self._weights.shapes)
        self._check_layers(said.config)
        embedding = self._find_embedding(said)
        self.config = self._decide_head(said, embedding)
        self._tensors = {each.path: each for each in names.list_tensors(self.config)}
        self._stored = {path: tensor.name for path, tensor in self._tensors.items()}
        self._stored[_EMBEDDING_PATH] = embedding
        if _HEAD_PATH in self._stored and names.HEAD not in self._weights.shapes and said.says_tied:
            # transformers 5 leaves out a head that is equal to the embedding.
            self._stored[_HEAD_PATH] = embedding

    def _check_layers(self, config: T5Config) -> None:
        """As many layers as the configuration says, before anything is listed for each of them."""
        for side, field, expected in (
            ("encoder", "num_layers", config.num_encoder_layers),
            ("decoder", "num_decoder_layers", config.num_decoder_layers),
        ):
            start = self._layout.layer.format(side=side, number="N")
            pattern = re.compile(re.escape(start).replace("N", r"(\d{1,9})"))
            matches = (pattern.match(name) for name in self._weights.shapes)
            found = {int(match[1]) for match in matches if match}
            missing = next((each for each in range(expected) if each not in found), None)
            if missing is not None:
                name = self._layout.layer.format(side=side, number=missing)
                raise UserError(
                    f"{self.location} has no tensor {name}*, but {len(found)} "
                    f"layers of the {side}; expected {expected}, for {CONFIG_FILE} says {field}="
                    f"{expected}. Is it a part of a checkpoint?"
                )

    def _find_embedding(self, said: settings.Settings) -> str:
        """The tensor that is the embedding: the shared one, a copy of it, or a tied head."""
        layout = self._layout
        candidates = [layout.embedding, *layout.copies]
        if said.says_tied and layout.head:
            candidates.append(layout.head)
        return next((name for name in candidates if name in self._weights.shapes), layout.embedding)

    def _decide_head(self, said: settings.Settings, embedding: str) -> T5Config:
        """The configuration, with an output head of the model's own where there is one.

        T5 1.0, which scales its logits, has none; where there is one and nothing but the default of
        `config.json` speaks of 1.0, it is taken for a v1.1.
        """
        found = self._weights.shapes
        if self._layout.head is None:
            return said.config
        if names.HEAD not in found:
            if not said.says_tied:
                raise UserError(
                    f"{self.location} has no tensor {names.HEAD}; expected one of shape "
                    f"{(said.config.vocab_size, said.config.emb_dim)}, for {CONFIG_FILE} does not "
                    "say that it is the embedding (tie_word_embeddings). Is it a part of a "
                    "checkpoint?"
                )
            return said.config
        if not said.config.logits_via_embedding or embedding not in found:
            return said.config
        if self._equal(names.HEAD, embedding):
            return said.config
        if said.says_scaled:
            raise UserError(
                f"{self.location}: {names.HEAD} differs from {embedding}, expected equal ones, for "
                f"{CONFIG_FILE} says scale_decoder_outputs=true, as of T5 1.0; if it is a v1.1, "
                "set that to false"
            )
        self.warnings = (
            f"{self.location}: {CONFIG_FILE} does not say tie_word_embeddings=false, but "
            f"{names.HEAD} differs from {embedding}: taken for a v1.1, whose logits are not "
            "scaled. transformers 5 would scale them by d_model ** -0.5",
        )
        return dataclasses.replace(said.config, logits_via_embedding=False)

    def _equal(self, name: str, other: str) -> bool:
        shape = self._weights.shapes[name]
        if shape != self._weights.shapes[other]:
            return False
        rows = max(_COMPARED_BYTES // (4 * max(math.prod(shape[1:]), 1)), 1)
        parts = [(slice(start, start + rows),) for start in range(0, shape[0], rows)]
        return all(
            np.array_equal(self._weights.read(name, part), self._weights.read(other, part))
            for part in parts
        )

    @functools.cached_property
    def vocabulary(self) -> VocabularyDescription | None:  # type: ignore[override]
        """See `ParameterSource`; None where the folder has no tokenizer.

        Raises:
          UserError: its `tokenizer.json`, the only one, amounts to no SentencePiece model.
        """
        file = tokenizer.find_vocabulary_file(self.folder, self.config.vocab_size)
        if file is None:
            return None
        return sentencepiece_model.describe(file)

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """See `ParameterSource`."""
        found: dict[str, tuple[int, ...]] = {}
        layout = self._layout
        known = {*layout.copies, *layout.unused, *self._stored.values()}
        if self.config.logits_via_embedding and layout.head:
            known.add(layout.head)
        for path in self._tensors:
            name = self._stored[path]
            if name in self._weights.shapes:
                found[path] = self.stored_as(path, self._weights.shapes[name])[1]
        for name, stored in self._weights.shapes.items():
            if name not in known and not name.startswith(layout.left_out):
                found[name] = stored
        return found

    def stored_as(self, path: str, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
        """See `ParameterSource`: HuggingFace's name, and the shape transposed where it does so."""
        if path not in self._tensors:
            return path, shape
        return self._stored[path], shape[::-1] if self._tensors[path].transposed else shape

    def check(self, config: T5Config) -> None:
        """See `ParameterSource`; compares what else `config.json` states, and embedding copies.

        Raises:
          UserError: also where a tensor is of a type that float32 does not hold.
        """
        super().check(config)
        check_computation(self, config)
        for path in self._tensors:
            self._weights.check_type(self._stored[path])
        embedding = self._stored[_EMBEDDING_PATH]
        for name in self._layout.copies:
            if name in self._weights.shapes and not self._equal(name, embedding):
                raise UserError(
                    f"{self.location}: tensor {name} of shape {self._weights.shapes[name]} differs "
                    f"from {embedding} of shape {self._weights.shapes[embedding]}, expected a copy "
                    "of it; a T5 has one embedding"
                )

    def _read(self, path: str, index: Index | None) -> np.ndarray:
        transposed = path in self._tensors and self._tensors[path].transposed
        if transposed and index is not None:
            index = index[::-1]
        value = self._weights.read(self._stored.get(path, path), index)
        return np.ascontiguousarray(value.T) if transposed else value


@contextlib.contextmanager
def _name_key(file: pathlib.Path, key: str) -> Iterator[None]:
    """What a check inside refuses is refused by file and key."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"{file}: {key}: {error}") from None


def _find_folder(location: str) -> pathlib.Path:
    if "://" in location:
        raise UserError(
            f"{location}: checkpoints of HuggingFace are read from a local disk or its hub; copy "
            "the folder here first"
        )
    folder = pathlib.Path(location)
    if folder.is_dir():
        if not (folder / CONFIG_FILE).exists():
            raise UserError(
                f"{location} has no {CONFIG_FILE}; expected a folder of HuggingFace with "
                f"{CONFIG_FILE} and {weights.SAFETENSORS}"
            )
        return folder
    if folder.exists() or not _HUB_ID.fullmatch(location):
        raise UserError(f"{location}: no such folder; expected one with {CONFIG_FILE} and weights")
    return _download(location)


def _download(repository: str) -> pathlib.Path:
    """The files of a repository on the hub that are needed, in the hub's own cache."""
    import huggingface_hub

    small = ["*.json", *tokenizer.SENTENCEPIECE_FILES]
    try:
        files = huggingface_hub.snapshot_download
        folder = files(repository, allow_patterns=[*small, "model*.safetensors"])
        if not list(pathlib.Path(folder).glob("model*.safetensors")):
            folder = files(repository, allow_patterns=[*small, "pytorch_model*.bin"])
    except Exception as error:  # of many kinds: no network, no such repository, no access
        cause = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise UserError(
            f"{repository}: no such folder here, and HuggingFace's hub did not give it ({cause}); "
            f"give a folder with {CONFIG_FILE} and {weights.SAFETENSORS}"
        ) from None
    return pathlib.Path(folder)


# ---------------------------------- writing ----------------------------------


def write_huggingface(
    source: ParameterSource,
    output: str,
    *,
    vocabulary: VocabularyDescription | None = None,
    with_tokenizer: bool = True,
    dtype: str = "float32",
    shard_bytes: int = SHARD_BYTES,
    license: str | None = None,
    advance: Callable[[int], None] | None = None,
) -> None:
    """Writes a folder that HuggingFace's transformers loads, one tensor at a time.

    Args:
      source: of the parameters; checked.
      output: a local folder that does not exist, or is empty.
      vocabulary: described as `data.sentencepiece_model.describe` does; default: the source's.
      with_tokenizer: whether tokenizer files are written.
      dtype: of `dtypes.FLOAT_TYPES`; what is not float32 is rounded to the nearest.
      shard_bytes: files are no larger than this, unless one tensor is.
      license: for the model card (`huggingface.card`).
      advance: called with the values written since the last call.

    Raises:
      UserError: no vocabulary is known, or it is of a kind that HuggingFace does not have; the
        model is, too; a value overflows `dtype`.
    """
    advance = advance or (lambda _: None)
    config = source.config
    try:
        values = settings.make_settings(config)
    except ValueError as error:
        raise UserError(f"{source.location}: {error}") from None
    said = source.description
    generation: dict[str, object] = {
        "decoder_start_token_id": values["decoder_start_token_id"],
        "eos_token_id": values["eos_token_id"],
        "pad_token_id": values["pad_token_id"],
        # transformers' own default, 20 tokens, cuts rationales.
        "max_new_tokens": said.longest_output("rationale") if said else _OUTPUT_TOKENS,
    }
    if said and said.shares_encoder:
        generation["decoder_start_token_id"] = said.decoder_starts["label"]
        generation[STARTS_KEY] = dict(said.decoder_starts)
    if source.absent_ids:
        # Their rows are as they were before training, which never said that they are wrong.
        generation[SUPPRESS_KEY] = list(source.absent_ids)
    files: dict[str, bytes] = {}
    if with_tokenizer:
        vocabulary = vocabulary or source.vocabulary
        if vocabulary is None:
            raise UserError(
                f"{source.location} carries no vocabulary; give --vocabulary_file (a SentencePiece "
                "model, 'bytes' or 'embedded'), or leave the tokenizer out with --notokenizer"
            )
        check_vocabulary(source, vocabulary)
        input_tokens = said.task_feature_lengths["inputs"] if said else _INPUT_TOKENS
        files = tokenizer.make_tokenizer_files(vocabulary, config.vocab_size, input_tokens)
    folder = pathlib.Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    _write_weights(source, folder, dtype, shard_bytes, advance)
    _write_json(folder / GENERATION_FILE, generation)
    _write_json(folder / CONFIG_FILE, values | {"dtype": dtype})
    from distill_sbs.convert.huggingface import card

    text = card.write_card(source, license)
    (folder / card.CARD_FILE).write_text(text, encoding="utf-8", errors="backslashreplace")


def _write_weights(
    source: ParameterSource,
    folder: pathlib.Path,
    dtype: str,
    shard_bytes: int,
    advance: Callable[[int], None],
) -> None:
    tensors = {each.path: each for each in names.list_tensors(source.config)}
    ordered = [tensors[parameter.path] for parameter in list_by_stack(source.config)]
    by_name = {tensor.name: tensor for tensor in ordered}
    stored = FLOAT_TYPES[dtype]

    others: Mapping[str, tuple[int, ...]] = {}
    if isinstance(source.config, T5GemmaConfig):
        others = t5gemma.image_tensors(source.config)

    def read_value(name: str) -> np.ndarray:
        if name in others:
            return np.zeros(others[name], stored.dtype)
        tensor = by_name[name]
        exact = source.read(tensor.path)
        array = _round(exact.T if tensor.transposed else exact, stored.dtype, name)
        advance(array.size)
        return array

    shape_of = {each.name: each.huggingface_shape for each in ordered} | dict(others)
    sizes = {name: math.prod(shape) * stored.dtype.itemsize for name, shape in shape_of.items()}
    file_of: dict[str, str] = {}
    for file, tensor_names in weights.divide_into_files(sizes, shard_bytes):
        shapes = [(name, shape_of[name]) for name in tensor_names]
        weights.write_file(folder / file, shapes, stored, read_value)
        file_of.update(dict.fromkeys(tensor_names, file))
    if len(set(file_of.values())) > 1:
        total = {"total_size": sum(sizes.values())}
        index = {"metadata": total, "weight_map": dict(sorted(file_of.items()))}
        _write_json(folder / f"{weights.SAFETENSORS}.index.json", index)


def _round(value: np.ndarray, dtype: np.dtype, name: str) -> np.ndarray:
    if dtype == np.float32:
        return value
    with np.errstate(over="ignore"):
        rounded = value.astype(dtype)
    limit = float(ml_dtypes.finfo(dtype).max)
    if not np.isfinite(rounded).all() and np.isfinite(value).all():
        raise UserError(
            f"tensor {name} has values up to {float(np.abs(value).max()):.3g}, expected at most "
            f"{limit:.3g} for --dtype={dtype.name}; use bfloat16 or float32"
        )
    return rounded


def _write_json(file: pathlib.Path, values: Mapping[str, object]) -> None:
    file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
