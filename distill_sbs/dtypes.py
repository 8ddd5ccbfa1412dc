"""The float types that parameters are read from and written in, by every name that they go by.

Enters: nothing. Leaves: one table. Every value of each of them is a float32 too, so reading is
exact; parameters in memory are always float32.
"""

from __future__ import annotations

from typing import NamedTuple

import ml_dtypes
import numpy as np


class FloatType(NamedTuple):
    """A float type.

    Attributes:
      name: NumPy's, JAX's, T5X's, and ours on the command line.
      safetensors: safetensors' name.
      dtype: as NumPy has it.
    """

    name: str
    safetensors: str
    dtype: np.dtype


_ALL = (
    FloatType("float32", "F32", np.dtype(np.float32)),
    FloatType("bfloat16", "BF16", np.dtype(ml_dtypes.bfloat16)),
    FloatType("float16", "F16", np.dtype(np.float16)),
)
FLOAT_TYPES = {each.name: each for each in _ALL}
BY_SAFETENSORS_NAME = {each.safetensors: each for each in _ALL}

# What a student may compute in; float16 has too small a range for T5.
COMPUTE_DTYPES = ("float32", "bfloat16")
