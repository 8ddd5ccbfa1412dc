"""transformers' T5 with a student's parameters: the peer of `gpu.py` and `reference.py`.

Enters: a student's configuration and parameters. Leaves: a `T5ForConditionalGeneration` that
computes the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import transformers
from parity_state import state_of_tree

from distill_sbs.convert.huggingface import settings
from distill_sbs.model.config import T5Config


def make_model(
    config: T5Config, parameters: Mapping[str, Any]
) -> transformers.T5ForConditionalGeneration:
    """The model, on torch's default device, in float32.

    Raises:
      ValueError: transformers' T5 has other tensors than the student.
    """
    values = transformers.T5Config(**settings.make_settings(config))
    # transformers 5 sets it for every T5, and v1.1 has a projection of its own.
    values.tie_word_embeddings = config.logits_via_embedding
    model = transformers.T5ForConditionalGeneration(values)
    # Or encoder and decoder would have tables of their own.
    model.set_input_embeddings(model.shared)
    state = {
        name: torch.from_numpy(np.array(value))
        for name, value in state_of_tree(parameters, config).items()
    }
    missing, unexpected = model.load_state_dict(state, strict=False)
    # The table of tokens goes by three names there.
    left_out = [name for name in missing if not name.endswith("embed_tokens.weight")]
    if left_out or unexpected:
        raise ValueError(f"transformers' T5 has other tensors: {left_out}, {unexpected}")
    return model
