"""Our own checkpoints as parameters, and parameters of any form as such a checkpoint.

Enters: a MODEL_DIR, its `checkpoints/`, or one step's folder, local or gs://; or a
`ParameterSource` of any form and a vocabulary.
Leaves: a `ParameterSource` that reads only the slices asked for; or a folder like that of one step,
which `infer`, `evaluate` and INITIAL_CHECKPOINT_PATH take. It has no optimizer state, so nothing
continues from it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
import shutil
from collections.abc import Callable, Mapping

import numpy as np
import tensorstore
from flax import traverse_util

from distill_sbs import constants
from distill_sbs.checkpoint import orbax_adapter, steps
from distill_sbs.checkpoint.description import RunDescription
from distill_sbs.convert.source import Index, ParameterSource, check_computation, check_vocabulary
from distill_sbs.data import sentencepiece_model
from distill_sbs.data.sentencepiece_model import VocabularyDescription
from distill_sbs.errors import DamagedError, UserError
from distill_sbs.model.config import MOST_LAYERS, T5Config
from distill_sbs.model.parameters import STACKED, Parameter, list_by_stack, split_layer

# Where no run of ours says otherwise: the paper's lengths (gin/methods/paper.gin), in tokens.
TASK_FEATURE_LENGTHS = {
    constants.INPUTS: 1024,
    constants.TARGETS: 256,
    constants.TASK_IDS: 256,
}
MAX_DECODE_TOKENS = 64

# Decoded chunks that are kept: a chunk may hold all layers, and is decoded whole for any of them.
_KEPT_CHUNKS = 2


class NativeSource(ParameterSource):
    """A checkpoint of distill_sbs, layers stacked or not.

    Args:
      location: as `checkpoint.steps.find_step_folder` takes it.

    Raises:
      DamagedError: a file of it is not as it was written.
      UserError: there is no checkpoint.
    """

    def __init__(self, location: str) -> None:
        folder = steps.find_step_folder(location)
        # Whole files, although tensors are read one by one: a sum is of a file.
        steps.check_step(folder)
        self.location = str(folder)
        self.description: RunDescription = steps.read_description(folder)
        self.vocabulary: VocabularyDescription = self.description.vocabulary
        self.config = self.description.student
        self._stored = orbax_adapter.list_stored(folder)
        for path, stored in self._stored.items():
            if f"/{STACKED}/" in path and not 0 < stored.shape[0] <= MOST_LAYERS:
                raise DamagedError(
                    f"{self.location}: tensor {path} of shape {tuple(stored.shape)}",
                    f"{stored.shape[0]:,} layers, expected at most {MOST_LAYERS}",
                )
        spans = [
            math.prod(stored.storage.chunk_shape) * np.dtype(stored.dtype).itemsize
            for path, stored in self._stored.items()
            if f"/{STACKED}/" in path
        ]
        self._context = orbax_adapter.make_reading_context(_KEPT_CHUNKS * max(spans, default=0))
        self._opened: dict[str, tensorstore.TensorStore] = {}

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """See `ParameterSource`."""
        found: dict[str, tuple[int, ...]] = {}
        for path, stored in self._stored.items():
            stack, marker, rest = path.partition(f"/{STACKED}/")
            if not marker:
                found[path] = tuple(stored.shape)
                continue
            for layer in range(stored.shape[0]):
                found[f"{stack}/layers_{layer}/{rest}"] = tuple(stored.shape[1:])
        return found

    def check(self, config: T5Config) -> None:
        """See `ParameterSource`; compares what else the checkpoint states of its student."""
        own = self.config.vocab_size
        if sentencepiece_model.is_trimmed(self.vocabulary) and config.vocab_size != own:
            raise UserError(
                f"{self.location} has a trimmed vocabulary of {own} ids, expected "
                f"{config.vocab_size}; set STUDENT_OVERRIDES = {{'vocab_size': {own}}}, and "
                f"VOCABULARY_FILE to the {sentencepiece_model.TRIMMED_FILE} that convert wrote"
            )
        super().check(config)
        check_computation(self, config)

    def _read(self, path: str, index: Index | None) -> np.ndarray:
        stored, layer = (path, None) if path in self._stored else split_layer(path)
        if stored not in self._stored:
            raise UserError(f"{self.location} has no tensor {path}")
        shape = tuple(self._stored[stored].shape)
        try:
            if stored not in self._opened:
                self._opened[stored] = orbax_adapter.open_parameter(
                    self._stored[stored], self._context
                )
            array = self._opened[stored]
            if layer is not None:
                array = array[layer]
            value = array[index if index else ...].read().result()
        except (ValueError, OSError, RuntimeError) as error:
            what = f"{self.location}: tensor {stored} of shape {shape}"
            raise DamagedError(what, str(error).split(" [")[0]) from None
        return np.ascontiguousarray(value, np.float32)


# ---------------------------------- writing ----------------------------------


def write_native(
    source: ParameterSource,
    output: str,
    *,
    vocabulary: VocabularyDescription | None = None,
    scan_layers: bool | None = None,
    advance: Callable[[int], None] | None = None,
) -> None:
    """Writes a checkpoint that describes itself, one tensor of one layer at a time.

    Args:
      source: of the parameters; checked.
      output: a folder that does not exist or is empty, local or gs://. It is there, whole, when
        this returns, or not at all.
      vocabulary: described as `data.sentencepiece_model.describe` does; default: the source's.
      scan_layers: whether layers are stored stacked; default: as `source.config` says.
      advance: called with the values written since the last call.

    Raises:
      UserError: no vocabulary is known, or it is larger than the embedding.
    """
    config = source.config
    if scan_layers is not None:
        try:
            config = dataclasses.replace(config, scan_layers=scan_layers)
        except ValueError as error:
            raise UserError(f"--scan_layers: {error}") from None
    description = _describe(source, config, vocabulary or source.vocabulary)
    stacks: dict[str, list[Parameter]] = {}
    for parameter in list_by_stack(config):
        path = split_layer(parameter.path)[0] if config.scan_layers else parameter.path
        stacks.setdefault(path, []).append(parameter)
    arrays: dict[str, orbax_adapter.UnreadArray] = {}
    for path, parts in stacks.items():
        stacked = f"/{STACKED}/" in path
        shape = (len(parts), *parts[0].shape) if stacked else parts[0].shape
        paths = tuple(part.path for part in parts)
        readers = tuple(functools.partial(source.read, path) for path in paths)
        arrays[path] = orbax_adapter.UnreadArray(shape, readers, stacked)
    params = traverse_util.unflatten_dict(arrays, sep="/")
    if "://" not in output and pathlib.Path(output).is_dir():
        pathlib.Path(output).rmdir()  # orbax makes it
    try:
        orbax_adapter.write_step(output, params, description, advance)
        if sentencepiece_model.is_trimmed(description.vocabulary):
            content = sentencepiece_model.write_trimmed(description.vocabulary)
            (steps.absolute(output) / sentencepiece_model.TRIMMED_FILE).write_text(content)
    except BaseException:  # an interruption, too
        _remove_unfinished(output)
        raise


def _remove_unfinished(output: str) -> None:
    """Removes what orbax wrote beside `output`, where it writes before it renames."""
    if "://" not in output:
        for leftover in pathlib.Path(output).parent.glob(f"{pathlib.Path(output).name}.orbax-*"):
            shutil.rmtree(leftover)


def _describe(
    source: ParameterSource, config: T5Config, vocabulary: VocabularyDescription | None
) -> RunDescription:
    """What the checkpoint will say; what a run of ours said of itself is kept."""
    if vocabulary is None:
        raise UserError(
            f"{source.location} carries no vocabulary, and a checkpoint of ours does; give "
            "--vocabulary_file: a SentencePiece model, 'bytes' or 'embedded'"
        )
    check_vocabulary(source, vocabulary)
    if source.description is not None:
        return dataclasses.replace(source.description, student=config, vocabulary=vocabulary)
    made = RunDescription(
        student=config,
        vocabulary=vocabulary,
        mixture=None,
        task_feature_lengths=TASK_FEATURE_LENGTHS,
        max_decode_tokens=MAX_DECODE_TOKENS,
        converted_from=source.location,
    )
    return made if source.decoder_starts is None else made.share_encoder(source.decoder_starts)
