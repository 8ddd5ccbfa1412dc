"""ONNX Runtime computes the two graphs of an export; the greedy loop around them is here.

Enters: a folder of `convert --to=onnx`. Leaves: an `engines.Engine`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import onnxruntime

from distill_sbs import constants
from distill_sbs.errors import DamagedError
from distill_sbs.serving.served_folder import NETWORK_FILES, ONNX, ServedStudent

ENCODER_FILE, DECODER_FILE = NETWORK_FILES[ONNX]
# What goes into the graphs and comes out of them. A state is a layer's keys or values.
INPUT_IDS, MASK, TOKEN, NEXT = "input_ids", "attention_mask", "token", "next_token"
PAST, PRESENT, CROSS = "past", "present", "cross"


class OnnxEngine:
    """See `engines.Engine`.

    Args:
      folder: where the network lies.
      student: what it says of itself.
      threads: that compute.
    """

    def __init__(self, folder: str, student: ServedStudent, threads: int) -> None:
        self._max_decode_tokens = student.max_decode_tokens
        self._encoder, self._decoder = (
            _open_graph(os.path.join(folder, name), threads)
            for name in (ENCODER_FILE, DECODER_FILE)
        )
        self._states = sum(each.name.startswith(PAST) for each in self._decoder.get_inputs())
        # [batch, heads, tokens, width of a head]; the first and third vary.
        _, self._heads, _, self._head_width = next(
            each.shape for each in self._decoder.get_inputs() if each.name == f"{PAST}_0"
        )

    def decode(self, rows: Sequence[Sequence[int]], max_batch_size: int) -> list[list[int]]:
        """See `engines.Engine`."""
        outputs: list[list[int]] = [[] for _ in rows]
        # Inputs of like lengths beside each other: little is padded.
        order = sorted(range(len(rows)), key=lambda place: -len(rows[place]))
        for start in range(0, len(order), max_batch_size):
            places = order[start : start + max_batch_size]
            decoded = self._decode_batch([rows[place] for place in places])
            for place, output in zip(places, decoded, strict=True):
                outputs[place] = output
        return outputs

    def _decode_batch(self, rows: Sequence[Sequence[int]]) -> list[list[int]]:
        count, width = len(rows), max(2, *map(len, rows))
        input_ids = np.zeros((count, width), np.int64)  # [B, S]
        mask = np.zeros((count, width), np.int64)
        for number, row in enumerate(rows):
            input_ids[number, : len(row)] = row
            mask[number, : len(row)] = 1
        cross = self._encoder.run(None, {INPUT_IDS: input_ids, MASK: mask})
        constant = {MASK: mask, **{f"{CROSS}_{n}": state for n, state in enumerate(cross)}}
        empty = np.zeros((count, self._heads, 0, self._head_width), np.float32)
        states = [empty] * self._states
        token = np.full((count, 1), constants.PAD_ID, np.int64)  # with which T5 begins
        ended = np.zeros(count, bool)
        outputs: list[list[int]] = [[] for _ in rows]
        for _ in range(self._max_decode_tokens):
            past = {f"{PAST}_{n}": state for n, state in enumerate(states)}
            token, *states = self._decoder.run(None, {TOKEN: token, **constant, **past})
            ended |= token[:, 0] == constants.EOS_ID
            if ended.all():
                break
            for number in np.flatnonzero(~ended).tolist():
                outputs[number].append(int(token[number, 0]))
        return outputs


def _open_graph(path: str, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of the library's own kinds, which it does not export
        raise DamagedError(path, error) from None
