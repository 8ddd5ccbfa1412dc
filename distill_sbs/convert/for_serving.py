"""A student as a folder that `serve` answers with: CTranslate2's form, or ONNX.

Enters: a `ParameterSource`. Leaves: the network as those libraries have it, made by their own
converters of HuggingFace's form; `student.json` with all else that a server needs (vocabulary,
prefixes, lengths); a model card.
"""

from __future__ import annotations

import importlib.util
import pathlib
import shutil
from collections.abc import Callable

from distill_sbs import constants
from distill_sbs.checkpoint.description import PREFIXES
from distill_sbs.convert.huggingface import card
from distill_sbs.convert.huggingface.files import write_huggingface
from distill_sbs.convert.source import ParameterSource
from distill_sbs.data.sentencepiece_model import VocabularyDescription
from distill_sbs.errors import UserError
from distill_sbs.serving.served_folder import (
    CTRANSLATE2,
    FLOAT32,
    ONNX,
    ServedStudent,
    write_student,
)

# What a form's converter imports.
_LIBRARIES = {
    CTRANSLATE2: ("ctranslate2", "torch", "transformers"),
    ONNX: ("onnx", "onnxruntime", "onnxscript", "torch", "transformers"),
}
# Where no run of ours says otherwise: T5's pretraining length, and our MAX_DECODE_TOKENS.
_INPUT_TOKENS, _OUTPUT_TOKENS = 512, 64
_PARTIAL = ".huggingface"


def check_libraries(form: str, output: str) -> None:
    """Finds out before anything is read whether a form can be written here.

    Raises:
      UserError: its converter is not installed, or does not write to buckets.
    """
    if "://" in output:
        raise UserError(
            f"--output={output}: --to={form} writes to a local disk; copy the folder afterwards"
        )
    missing = [name for name in _LIBRARIES[form] if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"--to={form} needs {', '.join(_LIBRARIES[form])}, of which not installed: "
            f"{', '.join(missing)}; install them: pip install 'distill_sbs[serve]'"
        )


def write_for_serving(
    source: ParameterSource,
    output: str,
    form: str,
    *,
    vocabulary: VocabularyDescription | None = None,
    quantization: str = FLOAT32,
    license: str | None = None,
    advance: Callable[[int], None] | None = None,
) -> None:
    """Writes a folder for `serve`.

    Args:
      source: of the parameters; checked.
      output: a local folder that does not exist, or is empty.
      form: of `serving.served_folder.FORMS`.
      vocabulary: described as `data.sentencepiece_model.describe` does; default: the source's.
      quantization: of `serving.served_folder.QUANTIZATIONS`, how weights are stored and multiplied.
      license: for the model card.
      advance: called with the values written since the last call.

    Raises:
      UserError: no vocabulary is known, or HuggingFace's form does not have the student or it.
    """
    vocabulary = vocabulary or source.vocabulary
    if vocabulary is None:
        raise UserError(
            f"{source.location} carries no vocabulary; give --vocabulary_file (a SentencePiece "
            "model, 'bytes' or 'embedded')"
        )
    folder = pathlib.Path(output)
    partial = folder / _PARTIAL
    write_huggingface(source, str(partial), vocabulary=vocabulary, advance=advance)
    # Imported here: each brings its own libraries, and one is needed.
    if form == CTRANSLATE2:
        from distill_sbs.convert.ctranslate2_form import write_network
    else:
        from distill_sbs.convert.onnx_form import write_network
    write_network(str(partial), output, source.config, quantization)
    shutil.rmtree(partial)
    write_student(folder, _describe(source, form, quantization, vocabulary))
    text = card.write_card(source, license, (form, quantization))
    (folder / card.CARD_FILE).write_text(text, encoding="utf-8", errors="backslashreplace")


def _describe(
    source: ParameterSource, form: str, quantization: str, vocabulary: VocabularyDescription
) -> ServedStudent:
    from distill_sbs import __version__

    said = source.description
    return ServedStudent(
        name=card.name_student(source),
        mixture=said.mixture if said else None,
        form=form,
        quantization=quantization,
        prefixes=said.prefixes if said else PREFIXES,
        max_input_tokens=said.task_feature_lengths[constants.INPUTS] if said else _INPUT_TOKENS,
        max_decode_tokens=said.max_decode_tokens if said else _OUTPUT_TOKENS,
        vocab_size=source.config.vocab_size,
        vocabulary=vocabulary,
        written_by=f"distill_sbs {__version__}",
        absent_ids=source.absent_ids,
    )
