"""Which form a checkpoint has, and its reader.

Enters: a path or a hub id, of a checkpoint of HuggingFace, of T5X, or of distill_sbs.
Leaves: a `ParameterSource`.
"""

from __future__ import annotations

import re

from etils import epath

from distill_sbs.cli import terminal
from distill_sbs.convert.source import ParameterSource
from distill_sbs.errors import UserError
from distill_sbs.serving.served_folder import STUDENT_FILE

HUGGINGFACE, T5X, NATIVE = "hf", "t5x", "native"
FORMS = (HUGGINGFACE, T5X, NATIVE)

# How a hub id looks: one word, or owner/name. A path with a dot in front or a slash at its end is
# meant as a path.
_HUB_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?")


def open_source(location: str, form: str | None = None) -> ParameterSource:
    """Opens a checkpoint; no tensor is read. Says its warnings, if any, to stderr.

    Args:
      location: a folder, local or gs://, or the id of a repository on the HuggingFace hub.
      form: of `FORMS`; None recognises it.

    Raises:
      UserError: there is no checkpoint, or none of a known form, or it is damaged.
    """
    source = _open(location, form or recognise_form(location))
    for warning in source.warnings:
        terminal.say(f"warning: {warning}", stderr=True)
    return source


def _open(location: str, form: str) -> ParameterSource:
    # Imported here: each brings its own libraries, and one is needed.
    if form == HUGGINGFACE:
        from distill_sbs.convert.huggingface.files import HuggingFaceSource

        return HuggingFaceSource(location)
    if form == T5X:
        from distill_sbs.convert.t5x.files import T5XSource

        return T5XSource(location)
    from distill_sbs.convert.native import NativeSource

    return NativeSource(location)


def recognise_form(location: str) -> str:
    """The form of a checkpoint, of `FORMS`, by the files there.

    Raises:
      UserError: none of them.
    """
    folder = epath.Path(location)
    if not folder.exists():
        if "://" not in location and _HUB_ID.fullmatch(location):
            return HUGGINGFACE
        raise UserError(f"{location}: no such checkpoint; correct the path")
    if not folder.is_dir():
        raise UserError(
            f"{location} is a file; expected the folder of a checkpoint: {folder.parent}, perhaps"
        )
    names = {child.name for child in folder.iterdir()}
    if STUDENT_FILE in names:
        raise UserError(
            f"{location} is an export for serving, which cannot be read back; give the run that it "
            "was made of"
        )
    if names & {"description", "checkpoints"} or any(name.isdigit() for name in names):
        return NATIVE
    if "config.json" in names:
        return HUGGINGFACE
    if names & {"checkpoint", "state", "manifest.ocdbt", "_METADATA"} or any(
        re.fullmatch(r"checkpoint_\d+", name) for name in names
    ):
        return T5X
    found = ", ".join(sorted(names)[:5]) or "nothing"
    raise UserError(
        f"{location} holds no checkpoint of a known form, but {found}; expected one of HuggingFace "
        "(config.json and model.safetensors), of T5X (checkpoint_N, with a file 'checkpoint' or a "
        "folder 'state' in it), or of distill_sbs (a MODEL_DIR, or one step's folder)"
    )
