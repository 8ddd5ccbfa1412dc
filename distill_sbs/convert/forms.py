"""Which form a checkpoint has, and its reader.

Enters: a path or a hub id, of a checkpoint of HuggingFace, of T5X, or of distill_sbs.
Leaves: a `ParameterSource`; and, for writers, a folder that appears whole or not at all.
"""

from __future__ import annotations

import contextlib
import os
import re
import uuid
from collections.abc import Iterator

from etils import epath

from distill_sbs.convert.source import ParameterSource
from distill_sbs.errors import UserError

HUGGINGFACE, T5X, NATIVE = "hf", "t5x", "native"
FORMS = (HUGGINGFACE, T5X, NATIVE)

# How a hub id looks: one word, or owner/name. A path with a dot in front or a slash at its end is
# meant as a path.
_HUB_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?")


def open_source(location: str, form: str | None = None) -> ParameterSource:
    """Opens a checkpoint; no tensor is read.

    Args:
      location: a folder, local or gs://, or the id of a repository on the HuggingFace hub.
      form: of `FORMS`; None recognises it.

    Raises:
      UserError: there is no checkpoint, or none of a known form, or it is damaged.
    """
    form = form or recognised_form(location)
    if form == HUGGINGFACE:
        from distill_sbs.convert.huggingface.files import HuggingFaceSource

        return HuggingFaceSource(location)
    if form == T5X:
        from distill_sbs.convert.t5x import files  # type: ignore[attr-defined]

        return files.T5XSource(location)
    from distill_sbs.convert.native import NativeSource

    return NativeSource(location)


def recognised_form(location: str) -> str:
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


def check_output(output: str, source: str, overwrite: bool) -> None:
    """Checks that a folder may be written, before anything is read.

    Raises:
      UserError: it is there already and `overwrite` is not set; it is what is read; a file is in
        the way; its disk cannot be written to.
    """
    folder = epath.Path(output)
    if "://" not in output:
        ours, theirs = os.path.realpath(output), os.path.realpath(source)
        if os.path.exists(theirs) and os.path.commonpath([ours, theirs]) in (ours, theirs):
            raise UserError(
                f"--output={output} and --input={source} lie in one another; choose another folder"
            )
    if folder.exists():
        if not folder.is_dir():
            raise UserError(f"--output={output} is a file; choose a folder that does not exist")
        if not overwrite and any(folder.iterdir()):
            raise UserError(
                f"--output={output} exists already; choose another folder, or replace it with "
                "--overwrite"
            )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output={output} cannot be made ({error})") from None


@contextlib.contextmanager
def appearing_whole(output: str) -> Iterator[str]:
    """A folder to write to that becomes `output`, in the place of one there, if nothing fails.

    On gs:// nothing can be renamed in one step: there the files are written in place, and removed
    after a failure.
    """
    folder = epath.Path(output)
    if "://" in output:
        if folder.exists():
            folder.rmtree()
        try:
            yield output
        except BaseException:
            if folder.exists():
                folder.rmtree()
            raise
        return
    folder = epath.Path(os.path.abspath(output))
    mark = uuid.uuid4().hex[:8]
    partial = folder.parent / f".{folder.name}.partial-{mark}"
    before = folder.parent / f".{folder.name}.replaced-{mark}"
    try:
        yield str(partial)
        if folder.exists():
            folder.rename(before)
        partial.rename(folder)
    except BaseException:
        if before.exists() and not folder.exists():
            before.rename(folder)
        raise
    finally:
        for leftover in (partial, before):
            if leftover.exists():
                leftover.rmtree()
        remove_unfinished(str(partial))


def remove_unfinished(output: str) -> None:
    """Removes what orbax wrote beside `output`, where it writes before it renames."""
    if "://" not in output:
        for leftover in epath.Path(output).parent.glob(f"{epath.Path(output).name}.orbax-*"):
            leftover.rmtree()
