"""The output file while it is being written: every answer once, none lost, whoever is killed when.

Enters: answers as they arrive. Leaves: a line each, handed to the system at once; on opening, what
is answered already. SIGKILL loses what was in flight and nothing else: a torn last line is cut
off, unless all of it but the newline is there. A full disk loses nothing that was written before.

Beside the file stands how the answers were asked for (`data.readers.request_description`); a file
of other settings is refused, so that no file mixes two teachers or two prompts.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import pathlib

from distill_sbs import json_lines
from distill_sbs.data.readers import request_description, responses
from distill_sbs.data.readers.request_description import RequestDescription
from distill_sbs.data.readers.responses import ResponseRow
from distill_sbs.errors import SourceError, UserError
from distill_sbs.teacher.budget import CHARACTERS_PER_TOKEN, check_token_count


@dataclasses.dataclass
class Totals:
    """What an output file holds. Tokens are those that the endpoint counted, or estimates.

    Attributes:
      answered: answers.
      parsed: those of them that have a label.
      failed: examples that failed for good.
      prompt_tokens: of answers and of failed attempts.
      completion_tokens: likewise.
      uncounted: lines of an earlier program whose token counts are none.
    """

    answered: int = 0
    parsed: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    uncounted: int = 0

    def add(self, row: ResponseRow) -> None:
        """Counts one line."""
        failed = bool(row.get("error"))
        self.failed += failed
        self.answered += not failed
        self.parsed += not failed and row.get("label") is not None
        usage = row.get("usage")
        if usage is None and failed:
            return  # nothing came that would have cost anything
        counts = usage if isinstance(usage, dict) else {}
        prompt = check_token_count(counts.get("prompt_tokens"))
        completion = check_token_count(counts.get("completion_tokens"))
        if prompt is None or completion is None:
            self.uncounted += 1
            prompt = self.prompt_tokens // max(1, self.answered - 1)  # as the others on average
            completion = len(row.get("raw") or "") // CHARACTERS_PER_TOKEN
        self.spend(prompt, completion)

    def spend(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Counts tokens that were used, whatever came of them."""
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += completion_tokens


class Journal:
    """An output file, opened for more answers.

    Args:
      path: the file, on a local disk.
      asked: how answers are asked for.
      retry_failed: whether examples that failed for good are to be asked again.

    Attributes:
      totals: what the file holds.
      finished: how many answers were there when the file was opened.
      mended: what was done to a torn last line; None: there was none.

    Raises:
      UserError: the file belongs to other settings, is broken, or another process writes to it.
      OSError: the folder or the disk does not let anyone write.
    """

    def __init__(self, path: str, asked: RequestDescription, retry_failed: bool = False) -> None:
        if "://" in path:
            raise UserError(
                f"--output={path}: answers are appended as they arrive, which a bucket does not "
                "allow; give a local path, and copy the file when it is complete"
            )
        self.path = path
        self.totals = Totals()
        self._failed: set[tuple[str, int]] = set()
        self._retry_failed = retry_failed
        pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
        existed = os.path.exists(path) and os.path.getsize(path) > 0
        earlier = request_description.read(path)
        if existed:
            _check_same_answers(path, asked, earlier)
        # Unbuffered: what could not be written is not tried again behind our back.
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115  (closed in `close`)
        try:
            _lock(self._file.fileno(), path)
            self.mended = _mend(path) if existed else None
            llm_files = earlier.llm_files if earlier else ()
            dataclasses.replace(asked, llm_files=llm_files).write(path)
            self._index = responses.AnswerIndex([path], self._count)
        except BaseException:
            self._file.close()
            raise
        self.finished = len(self._index)

    def _count(self, row: ResponseRow) -> bool:
        """Counts a line that was there; whether its input is not to be asked about again."""
        answer = (row["id"], row.get("sample") or 0)
        if row.get("error"):
            if self._retry_failed:
                self.totals.add(row)  # what it cost was spent
                self.totals.failed -= 1
                return False
            self._failed.add(answer)
        elif answer in self._failed:  # a later success replaces it
            self._failed.discard(answer)
            self.totals.failed -= 1
        self.totals.add(row)
        return True

    def has(self, example_id: str, sample: int, text: str) -> bool:
        """Whether the answer was there when the file was opened.

        Raises:
          UserError: it is, but for another input text.
        """
        known = self._index.input_hash_of(example_id, sample)
        if known is None:
            return False
        if known and known != responses.input_hash(text):
            raise UserError(
                f"{self.path} holds an answer for id {example_id!r}, but to another input text "
                f"than {text[:60]!r}; give these inputs an --output of their own"
            )
        return True

    def write(self, row: ResponseRow) -> None:
        """Appends one line; when this returns, a killed process does not lose it.

        Raises:
          OSError: the disk takes no more; the file ends with the line before.
        """
        # Half a character can come from a parser of the user's alone, and must not end the run.
        line = json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        rest = memoryview(line)
        whole = os.fstat(self._file.fileno()).st_size
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            os.ftruncate(self._file.fileno(), whole)
            raise OSError(error.errno, os.strerror(error.errno or 0), self.path) from None
        self.totals.add(row)

    def close(self) -> None:
        """Writes what the system holds back to the disk, and closes the file."""
        self._index.close()
        if not self._file.closed:
            try:
                os.fsync(self._file.fileno())
            finally:
                self._file.close()


def _lock(file: int, path: str) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise UserError(f"another process writes to {path}; wait for it, or end it") from None


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
            is_whole = isinstance(json_lines.parse_json(tail, path), dict)
        except SourceError:
            is_whole = False
        if is_whole:
            file.seek(0, os.SEEK_END)
            file.write(b"\n")
            return "its last line lacked the newline"
        file.truncate(size - len(tail))
        return f"cut a torn last line of {len(tail)} bytes off"


def _check_same_answers(
    path: str, asked: RequestDescription, earlier: RequestDescription | None
) -> None:
    if earlier is None:
        raise UserError(
            f"{path} exists, and {request_description.path_of(path)} does not say how its answers "
            "were asked for; choose another --output, or put that file back"
        )
    asked.check_same_answers(earlier, path)
