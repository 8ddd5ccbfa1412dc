"""A checkpoint of one form, written as one of another: whole, or not at all.

Enters: where a checkpoint lies, and what form it shall have. Leaves: a folder of that form, to the
bit the same values; after a failure or an interruption what was there before. One tensor of one
layer is in memory at a time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import os
import pathlib
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NamedTuple, TypeAlias

import numpy as np
from etils import epath

from distill_sbs import files
from distill_sbs.cli import signals, terminal
from distill_sbs.cli.progress import show_values
from distill_sbs.config import DROPOUT_OPTIONS
from distill_sbs.convert.open import HUGGINGFACE, NATIVE, T5X, open_source
from distill_sbs.convert.source import ParameterSource, check_vocabulary
from distill_sbs.convert.trimming import RestoredSource, check_can_trim, trim_source
from distill_sbs.data import sentencepiece_model
from distill_sbs.data.sentencepiece_model import VocabularyDescription
from distill_sbs.errors import UserError, describe_disk_error
from distill_sbs.model.config import T5Config, T5GemmaConfig, named_config
from distill_sbs.model.parameters import list_parameters
from distill_sbs.serving.served_folder import CTRANSLATE2, FLOAT32, ONNX
from distill_sbs.serving.served_folder import FORMS as SERVED_FORMS

FORM_NAMES = {
    HUGGINGFACE: "HuggingFace",
    T5X: "T5X",
    NATIVE: "distill_sbs",
    CTRANSLATE2: "CTranslate2",
    ONNX: "ONNX",
}

# Of a student's configuration, what no checkpoint is about.
_FREE_FIELDS = (
    *DROPOUT_OPTIONS,
    "dtype",
    "float32_attention_logits",
    "scan_layers",
    "remat_policy",
    "attention",
)


class ConversionResult(NamedTuple):
    """What was written.

    Attributes:
      tensors: how many, layers one by one.
      parameters: values in all of them.
      vocabulary_ids: of the embedding, V.
      bytes: of the output's files; None on gs://.
      seconds: that it took.
    """

    tensors: int
    parameters: int
    vocabulary_ids: int
    bytes: int | None
    seconds: float


ChooseKept: TypeAlias = Callable[[VocabularyDescription, int], np.ndarray]


class Interrupted(Exception):
    """A signal asked to stop, between two tensors; its only argument is the signal's number."""


def convert_checkpoint(
    location: str,
    output: str,
    to: str,
    *,
    form: str | None = None,
    vocabulary_file: str | None = None,
    student: str | None = None,
    dtype: str = "float32",
    with_tokenizer: bool = True,
    scan_layers: bool | None = None,
    license: str | None = None,
    quantization: str = FLOAT32,
    overwrite: bool = False,
    choose_kept: ChooseKept | None = None,
    restore_vocabulary: str | None = None,
) -> ConversionResult:
    """Converts; every argument is the flag of its name (`location` is `--input`, `form` `--from`).

    Args:
      location: `--input`.
      output: `--output`.
      to: `--to`.
      form: `--from`.
      vocabulary_file: `--vocabulary_file`.
      student: `--student`.
      dtype: `--dtype`.
      with_tokenizer: `--tokenizer`.
      scan_layers: `--scan_layers`.
      license: `--license`.
      overwrite: `--overwrite`.
      choose_kept: of `--trim_vocabulary`: from the whole vocabulary and the rows of the embedding
        to the ids that are kept, int32 [N], ascending.
      restore_vocabulary: `--restore_vocabulary`.

    Raises:
      UserError: something given cannot work, or the disk is full or read-only; `output` is as it
        was before.
      Interrupted: Ctrl-C or SIGTERM came; so it is then.
    """
    started = time.monotonic()
    if to in SERVED_FORMS:
        from distill_sbs.convert.for_serving import check_libraries

        check_libraries(to, output)
    check_output(output, location, overwrite)
    vocabulary = sentencepiece_model.describe(vocabulary_file) if vocabulary_file else None
    source = open_source(location, form)
    source.check(_expect(student, source.config) if student else source.config)
    if choose_kept is not None:
        whole = check_can_trim(source, vocabulary or source.vocabulary)
        check_vocabulary(source, whole)
        source = trim_source(source, whole, choose_kept(whole, source.config.vocab_size))
        vocabulary = source.vocabulary
    if restore_vocabulary is not None:
        source = RestoredSource(source, open_source(restore_vocabulary))
    _check_exportable(source, to)
    if source.absent_ids and to in (NATIVE, T5X):
        terminal.say(
            f"warning: {source.location} must not say {len(source.absent_ids):,} ids "
            f"(suppress_tokens), which {FORM_NAMES[to]} keeps no list of; unless it is trained "
            "further with the whole vocabulary, it could say them",
            stderr=True,
        )
    sizes = [math.prod(parameter.shape) for parameter in list_parameters(source.config)]
    with (
        _Interruptions().listen() as interruptions,
        show_values(f"writing for {FORM_NAMES[to]}", sum(sizes)) as advance,
    ):

        def advance_or_stop(count: int) -> None:
            advance(count)
            interruptions.check()

        try:
            with _keep_parents(output), files.replace_folder(output) as folder:
                _write(
                    source,
                    str(folder),
                    to,
                    vocabulary=vocabulary,
                    dtype=dtype,
                    with_tokenizer=with_tokenizer,
                    scan_layers=scan_layers,
                    license=license,
                    quantization=quantization,
                    advance=advance_or_stop,
                )
        except UserError:
            raise
        except Exception as error:  # of many kinds, from the libraries that write
            cause = describe_disk_error(error) or (str(error) if isinstance(error, OSError) else "")
            if not cause:
                raise
            raise UserError(
                f"--output={output} cannot be written ({cause}); it is as it was before"
            ) from None
    seconds = time.monotonic() - started
    ids = source.config.vocab_size
    return ConversionResult(len(sizes), sum(sizes), ids, _measure(output), seconds)


def _write(
    source: ParameterSource,
    folder: str,
    to: str,
    *,
    vocabulary: VocabularyDescription | None,
    dtype: str,
    with_tokenizer: bool,
    scan_layers: bool | None,
    license: str | None,
    quantization: str,
    advance: Callable[[int], None],
) -> None:
    """Writes into an empty folder."""
    # Imported here: each brings its own libraries, and one is needed.
    if to == HUGGINGFACE:
        from distill_sbs.convert.huggingface.files import write_huggingface

        write_huggingface(
            source,
            folder,
            vocabulary=vocabulary,
            with_tokenizer=with_tokenizer,
            dtype=dtype,
            license=license,
            advance=advance,
        )
    elif to in SERVED_FORMS:
        from distill_sbs.convert.for_serving import write_for_serving

        write_for_serving(
            source,
            folder,
            to,
            vocabulary=vocabulary,
            quantization=quantization,
            license=license,
            advance=advance,
        )
    elif to == T5X:
        from distill_sbs.convert.t5x.files import write_t5x

        scanned = source.config.scan_layers if scan_layers is None else scan_layers
        write_t5x(source, folder, scan_layers=scanned, advance=advance)
    else:
        from distill_sbs.convert.native import write_native

        write_native(
            source, folder, vocabulary=vocabulary, scan_layers=scan_layers, advance=advance
        )


def _check_exportable(source: ParameterSource, to: str) -> None:
    """Refuses a student that a form cannot hold: trimmed ones, and others where it is served.

    Raises:
      UserError: so it is.
    """
    vocabulary = source.vocabulary
    if to != NATIVE and vocabulary is not None and sentencepiece_model.is_trimmed(vocabulary):
        raise UserError(
            f"{source.location} has a trimmed vocabulary of {vocabulary['size']:,} ids, which "
            f"{FORM_NAMES[to]} has no form for; name the checkpoint that it was trimmed from, whose"
            " rows it gets back: --restore_vocabulary=CHECKPOINT"
        )
    if to not in SERVED_FORMS:
        return
    if isinstance(source.config, T5GemmaConfig):
        raise UserError(
            f"--to={to}: {source.location} is a T5Gemma 2, which {FORM_NAMES[to]} is not written "
            "for here; export it with --to=hf"
        )
    said = source.description
    if source.decoder_starts is not None or (said is not None and said.shares_encoder):
        raise UserError(
            f"--to={to}: {source.location} shares its encoder: the decoder's first token tells "
            "label from rationale, which a server does not choose; export it with --to=hf, or train"
            " with SHARED_ENCODER = False"
        )


def check_output(output: str, source: str, overwrite: bool) -> None:
    """Checks that a folder may be written, before anything is read.

    Raises:
      UserError: it is there already and `overwrite` is not set; it is what is read; a file is in
        the way.
    """
    folder = epath.Path(output)
    if "://" not in output:
        ours, theirs = os.path.realpath(output), os.path.realpath(source)
        if os.path.exists(theirs) and os.path.commonpath([ours, theirs]) in (ours, theirs):
            raise UserError(
                f"--output={output} and --input={source} lie in one another; choose another folder"
            )
    try:
        if folder.exists():
            if not folder.is_dir():
                raise UserError(f"--output={output} is a file; choose a folder that does not exist")
            if not overwrite and any(folder.iterdir()):
                raise UserError(
                    f"--output={output} exists already; choose another folder, or replace it with "
                    "--overwrite"
                )
    except OSError as error:
        cause = describe_disk_error(error) or str(error)
        raise UserError(f"--output={output} cannot be looked at ({cause})") from None


@contextlib.contextmanager
def _keep_parents(output: str) -> Iterator[None]:
    """After a failure, the folders above `output` that were made for it are gone again."""
    missing: list[pathlib.Path] = []
    if "://" not in output:
        parents = pathlib.Path(os.path.abspath(output)).parents
        missing = list(itertools.takewhile(lambda parent: not parent.exists(), parents))
    try:
        yield
    except BaseException:
        for parent in missing:
            with contextlib.suppress(OSError):  # not made, or in use by now
                parent.rmdir()
        raise


class _Interruptions:
    """Notes Ctrl-C and SIGTERM, for the writers, which have threads, to stop in between tensors."""

    def __init__(self) -> None:
        self._number: int | None = None

    @contextlib.contextmanager
    def listen(self) -> Iterator[_Interruptions]:
        """Inside they are noted."""
        with signals.keep_handlers((signal.SIGINT, signal.SIGTERM)) as numbers:
            for number in numbers:
                signal.signal(number, self._note)
            yield self

    def _note(self, number: int, _: FrameType | None) -> None:
        self._number = number

    def check(self) -> None:
        """Raises `Interrupted`, with the signal's number, where one came."""
        if self._number is not None:
            raise Interrupted(self._number)


def _expect(student: str, found: T5Config) -> T5Config:
    """The configuration of a named size, with those fields of `found` that no file is about."""
    try:
        config = named_config(student)
    except ValueError as error:
        raise UserError(f"--student={student!r}: {error}") from None
    return dataclasses.replace(config, **{name: getattr(found, name) for name in _FREE_FIELDS})


def _measure(output: str) -> int | None:
    """Bytes of all files of a local folder."""
    if "://" in output:
        return None
    paths = [os.path.join(folder, name) for folder, _, names in os.walk(output) for name in names]
    return sum(os.path.getsize(path) for path in paths)
