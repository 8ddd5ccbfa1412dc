"""The output file while it is being written: every answer once, none lost, whoever is killed when.

Enters: answers as they arrive. Leaves: a line each, flushed at once; on opening, what is answered
already. SIGKILL loses what was in flight and nothing else: a torn last line is cut off, unless
all of it but the newline is there. Finished answers take 16 bytes of memory each.

Beside the file `{output}.settings.json` says how the answers were asked for; a file of other
settings is refused, so that no file mixes two teachers or two prompts.
"""

from __future__ import annotations

import array
import dataclasses
import fcntl
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from distill_sbs.data.readers import responses
from distill_sbs.errors import UserError

# What may differ from run to run of one output file: it changes no answer.
CHANGEABLE = ("task_path", "teacher", "answers", "keep", "rationales", "inputs", "llm_files")


@dataclasses.dataclass
class Totals:
    """What an output file holds. Tokens are those that the endpoint counted."""

    answered: int = 0
    parsed: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def add(self, row: Mapping[str, Any]) -> None:
        """Counts one line."""
        if row.get("error"):
            self.failed += 1
            return
        self.answered += 1
        self.parsed += row.get("label") is not None
        usage = row.get("usage") or {}
        self.prompt_tokens += usage.get("prompt_tokens") or 0
        self.completion_tokens += usage.get("completion_tokens") or 0


class Journal:
    """An output file, opened for more answers.

    Args:
      path: the file, on a local disk.
      settings: how answers are asked for.
      retry_failed: whether examples that failed for good are to be asked again.

    Raises:
      UserError: the file belongs to other settings, is broken, or another process writes to it.
    """

    def __init__(self, path: str, settings: Mapping[str, Any], retry_failed: bool = False) -> None:
        if "://" in path:
            raise UserError(
                f"--output={path}: answers are appended as they arrive, which a bucket does not "
                "allow; give a local path, and copy the file when it is complete"
            )
        self.path = path
        self.totals = Totals()
        pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
        existed = os.path.exists(path) and os.path.getsize(path) > 0
        if existed:
            _check_same_settings(path, settings)
        self._file = open(path, "ab")  # noqa: SIM115  (closed in `close`)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise UserError(f"another process writes to {path}; wait for it, or end it") from None
        try:
            self.mended = _mend(path) if existed else None
            earlier = responses.read_settings(path)
            kept = {key: earlier[key] for key in CHANGEABLE if key in earlier}
            write_settings(path, {**kept, **settings})
            self._finished, self._inputs = self._read_finished(retry_failed)
        except BaseException:
            self._file.close()
            raise

    def _read_finished(self, retry_failed: bool) -> tuple[np.ndarray, np.ndarray]:
        """Sorted numbers of the finished answers, and the hashes of their inputs, uint64 each."""
        numbers, inputs = array.array("Q"), array.array("Q")
        failed: dict[int, bool] = {}
        for _, row in responses.read_lines(self.path):
            number = _answer_number(row["id"], row.get("sample") or 0)
            if row.get("error"):
                if retry_failed:
                    continue
                failed[number] = True
            elif failed.pop(number, False):
                self.totals.failed -= 1  # a later success replaces it
            self.totals.add(row)
            numbers.append(number)
            inputs.append(int(row.get("input_hash") or "0", 16))
        if not numbers:
            return np.zeros(0, np.uint64), np.zeros(0, np.uint64)
        order = np.argsort(np.frombuffer(numbers, np.uint64), kind="stable")
        return np.frombuffer(numbers, np.uint64)[order], np.frombuffer(inputs, np.uint64)[order]

    @property
    def finished(self) -> int:
        """How many answers were there when the file was opened."""
        return len(self._finished)

    def has(self, example_id: str, sample: int, text: str) -> bool:
        """Whether the answer was there when the file was opened.

        Raises:
          UserError: it is, but for another input text.
        """
        number = np.uint64(_answer_number(example_id, sample))
        place = int(np.searchsorted(self._finished, number))
        if place == len(self._finished) or self._finished[place] != number:
            return False
        known = int(self._inputs[place])
        if known and known != int(responses.input_hash(text), 16):
            raise UserError(
                f"{self.path} holds an answer for id {example_id!r}, but to another input text "
                f"than {text[:60]!r}; give these inputs an --output of their own"
            )
        return True

    def write(self, row: Mapping[str, Any]) -> None:
        """Appends one line; when this returns, a killed process does not lose it."""
        self._file.write(json.dumps(row, ensure_ascii=False).encode("utf-8") + b"\n")
        self._file.flush()
        self.totals.add(row)

    def close(self) -> None:
        """Writes what the system holds back to the disk, and closes the file."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


def _answer_number(example_id: str, sample: int) -> int:
    return responses.number_of(f"{sample}\0{example_id}")


def _mend(path: str) -> str | None:
    """Cuts a torn last line off, or completes it with its newline; says what was done."""
    with open(path, "rb+") as file:
        size = file.seek(0, os.SEEK_END)
        start, chunk = size, b""
        while start > 0 and b"\n" not in chunk:
            start = max(0, start - 65536)
            file.seek(start)
            chunk = file.read(size - start)
        if chunk.endswith(b"\n"):
            return None
        tail = chunk.rpartition(b"\n")[2]
        try:
            row = json.loads(tail)
        except ValueError:
            row = None
        if isinstance(row, dict):
            file.seek(0, os.SEEK_END)
            file.write(b"\n")
            return "its last line lacked the newline"
        file.truncate(size - len(tail))
        return f"cut a torn last line of {len(tail)} bytes off"


def write_settings(path: str, settings: Mapping[str, Any]) -> None:
    """Writes the settings file of an output, all at once."""
    target = responses.settings_path(path)
    partial = target.with_name(target.name + ".partial")
    partial.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", "utf-8")
    partial.replace(target)


def check_equal_settings(path: str, earlier: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuses settings under which other answers would come.

    Raises:
      UserError: names the first one that differs.
    """
    for key in [*earlier, *(key for key in now if key not in earlier)]:
        if key not in CHANGEABLE and earlier.get(key) != now.get(key):
            what = "the prompt" if key == "prompt_sha256" else key
            was, is_now = earlier.get(key), now.get(key)
            detail = "" if key == "prompt_sha256" else f": {was!r} there, {is_now!r} now"
            raise UserError(
                f"{path} holds answers that were asked for with another setting of {what}{detail}. "
                "Go on with the same command as before, or choose another --output"
            )


def _check_same_settings(path: str, settings: Mapping[str, Any]) -> None:
    earlier = responses.read_settings(path)
    if not earlier:
        raise UserError(
            f"{path} exists, and {responses.settings_path(path)} does not say how its answers "
            "were asked for; choose another --output, or put that file back"
        )
    check_equal_settings(path, earlier, settings)
