"""The student's shape and numerics: `T5Config`, and the published sizes by name.

In: a size's name and overrides, or a plain dict (what a checkpoint stores beside its weights).
Out: a frozen, hashable `T5Config` that every model function takes.

Sizes are those of google-research/t5x (`t5x/examples/t5/t5_1_{0,1}/*.gin`), which equal the
`config.json` files of HuggingFace's `t5-*` and `google/t5-v1_1-*`.
"""

from __future__ import annotations

import dataclasses
import math
import reprlib
from collections.abc import Mapping
from typing import Any

from distill_sbs.dtypes import COMPUTE_DTYPES
from distill_sbs.errors import nearest_names

REMAT_POLICIES = ("none", "minimal", "full")
ATTENTION_KINDS = ("xla", "fused")
RESIDUAL_DROPOUT_SCHEDULES = ("linear", "constant")
# Names of activation functions that a feed-forward block may use ('linear' is the identity).
ACTIVATIONS = ("gelu", "relu", "silu", "linear")

# No T5 has more than 24.
MOST_LAYERS = 1000

# Sizes, smallest and largest. No T5 comes near the largest; what is beyond them, in a file that
# came from elsewhere, is refused before anything is laid out for it.
_LIMITS = {
    "vocab_size": (1, 2**24),
    "emb_dim": (1, 2**24),
    "num_heads": (1, 2**24),
    "head_dim": (1, 2**24),
    "mlp_dim": (1, 2**24),
    "num_encoder_layers": (1, MOST_LAYERS),
    "num_decoder_layers": (1, MOST_LAYERS),
    # Fewer than four leave a direction of the encoder without a bucket for a distance of its own.
    "relative_attention_num_buckets": (4, 1024),
    "relative_attention_max_distance": (1, 2**20),
}


@dataclasses.dataclass(frozen=True)
class T5Config:
    """Hyper-parameters of one encoder-decoder T5. Immutable and hashable.

    Attributes:
      vocab_size: rows of the embedding, V. T5 pads its 32,100 pieces to 32,128.
      emb_dim: width of the residual stream, D.
      num_heads: attention heads, H.
      head_dim: width of one head; num_heads * head_dim need not be emb_dim.
      mlp_dim: width of the feed-forward block.
      num_encoder_layers: layers of the encoder.
      num_decoder_layers: layers of the decoder.
      mlp_activations: ('gelu', 'linear') is T5 v1.1's gated GELU; ('relu',) is T5 1.0.
      dropout_rate: probability of dropping, wherever T5 drops.
      residual_dropout_rate: of what a layer's attention and feed-forward add to the residual
        stream, in the place of `dropout_rate`, the highest of them; None: `dropout_rate`. Each
        element is drawn by itself.
      residual_dropout_schedule: 'linear' rises from 0 in the lowest layer of encoder and of decoder
        to `residual_dropout_rate` in the highest (arXiv 2305.11206); 'constant' is the same in all.
      logits_via_embedding: T5 1.0 multiplies by the embedding, scaled by emb_dim ** -0.5, to get
        logits; v1.1 has a projection of its own.
      relative_attention_num_buckets: buckets of the relative position bias.
      relative_attention_max_distance: distance, in tokens, from which all share a bucket.
      layer_norm_epsilon: added to the mean square in RMS normalisation.
      dtype: 'float32' or 'bfloat16', of the computation; parameters are always float32.
      float32_attention_logits: keep query-key products and their softmax in float32.
      scan_layers: store layers stacked along a leading axis and loop over them in one compiled
        body (fast compilation), instead of one parameter tree and one body a layer.
      remat_policy: what the backward pass recomputes: 'none' keeps all activations, 'minimal'
        keeps the outputs of the weight products (and of fused attention), 'full' keeps only each
        layer's input.
      attention: 'xla' leaves attention over whole rows to the compiler; 'fused' does it in one
        kernel for TPUs (`model.fused_attention`), logits and softmax in float32.

    Raises:
      ValueError: a value that no model can have, named with what is allowed.
    """

    vocab_size: int = 32128
    emb_dim: int = 512
    num_heads: int = 6
    head_dim: int = 64
    mlp_dim: int = 1024
    num_encoder_layers: int = 8
    num_decoder_layers: int = 8
    mlp_activations: tuple[str, ...] = ("gelu", "linear")
    dropout_rate: float = 0.1
    residual_dropout_rate: float | None = None
    residual_dropout_schedule: str = "linear"
    logits_via_embedding: bool = False
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    dtype: str = "float32"
    float32_attention_logits: bool = True
    scan_layers: bool = False
    remat_policy: str = "none"
    attention: str = "xla"

    def __post_init__(self) -> None:
        # gin and JSON bring lists; a frozen config must hash.
        if isinstance(self.mlp_activations, list):
            object.__setattr__(self, "mlp_activations", tuple(self.mlp_activations))
        for name, (smallest, largest) in _LIMITS.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise _refusal(name, value, f"a whole number >= {smallest}")
            if not smallest <= value <= largest:
                raise _refusal(name, value, f"a whole number >= {smallest} and <= {largest:,}")
        # The buckets of one direction of the decoder, half of them of one distance each.
        if self.relative_attention_max_distance <= self.relative_attention_num_buckets // 2:
            raise _refusal(
                "relative_attention_max_distance",
                self.relative_attention_max_distance,
                "more than half of relative_attention_num_buckets="
                f"{self.relative_attention_num_buckets}",
            )
        if not _is_number(self.dropout_rate) or not 0.0 <= self.dropout_rate < 1.0:
            raise _refusal("dropout_rate", self.dropout_rate, "0 <= rate < 1")
        residual = self.residual_dropout_rate
        if residual is not None and (not _is_number(residual) or not 0.0 <= residual < 1.0):
            raise _refusal("residual_dropout_rate", residual, "0 <= rate < 1, or None")
        if not _is_number(self.layer_norm_epsilon) or not 0.0 <= self.layer_norm_epsilon < 1.0:
            raise _refusal("layer_norm_epsilon", self.layer_norm_epsilon, "0 <= epsilon < 1")
        for name in ("logits_via_embedding", "float32_attention_logits", "scan_layers"):
            if not isinstance(getattr(self, name), bool):
                raise _refusal(name, getattr(self, name), "True or False")
        _check_choice("dtype", self.dtype, COMPUTE_DTYPES)
        _check_choice("remat_policy", self.remat_policy, REMAT_POLICIES)
        _check_choice("attention", self.attention, ATTENTION_KINDS)
        if self.attention == "fused" and not self.float32_attention_logits:
            raise ValueError(
                "T5Config.attention='fused' with float32_attention_logits=False: the kernel has "
                "float32 logits; leave float32_attention_logits out, or use attention='xla'"
            )
        schedule = self.residual_dropout_schedule
        _check_choice("residual_dropout_schedule", schedule, RESIDUAL_DROPOUT_SCHEDULES)
        if not isinstance(self.mlp_activations, tuple) or len(self.mlp_activations) not in (1, 2):
            raise ValueError(
                f"T5Config.mlp_activations={reprlib.repr(self.mlp_activations)}: expected one "
                "name, or two for a gated block, such as ('gelu', 'linear')"
            )
        for name in self.mlp_activations:
            _check_choice("mlp_activations", name, ACTIVATIONS)

    def residual_rates(self, layers: int) -> tuple[float, ...] | None:
        """What each of a stack's layers drops of what it adds, the lowest first.

        p_l = p_max · l / (L − 1) (arXiv 2305.11206); a stack of one layer has p_max. None where
        `dropout_rate` holds there too.
        """
        highest = self.residual_dropout_rate
        if highest is None:
            return None
        if self.residual_dropout_schedule == "constant" or layers == 1:
            return (highest,) * layers
        return tuple(highest * layer / (layers - 1) for layer in range(layers))

    def to_dict(self) -> dict[str, object]:
        """Plain values only, so that JSON can hold it; `from_dict` reads it back, equal."""
        values = dataclasses.asdict(self)
        values["mlp_activations"] = list(self.mlp_activations)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> T5Config:
        """Reads what `to_dict` wrote; fields left out take their defaults.

        Raises:
          ValueError: no mapping; an unknown field, with its near matches; a value out of range.
        """
        if not isinstance(values, Mapping):
            raise ValueError(f"{type(values).__name__} found, expected the fields of a T5Config")
        _check_fields(values)
        fields: dict[str, Any] = dict(values)  # of which types they are is checked as it is made
        return cls(**fields)


def _is_number(value: object) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        # A whole number may be too large for `isfinite`.
        and (isinstance(value, int) or math.isfinite(value))
    )


def _refusal(field: str, value: object, expected: str) -> ValueError:
    """The error for a value, which may be of any length."""
    return ValueError(f"T5Config.{field}={reprlib.repr(value)}: expected {expected}")


def _check_choice(field: str, value: object, allowed: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in allowed:
        raise _refusal(field, value, f"one of {', '.join(allowed)}{_near(value, allowed)}")


def _near(name: object, known: tuple[str, ...]) -> str:
    matches = nearest_names(name, known) if isinstance(name, str) and len(name) < 100 else []
    return f"; did you mean {' or '.join(repr(match) for match in matches)}?" if matches else ""


def _check_fields(values: Mapping[str, object]) -> None:
    known = tuple(field.name for field in dataclasses.fields(T5Config))
    for name in values:
        if name not in known:
            raise ValueError(
                f"T5Config has no field {name!r}{_near(name, known)} (fields: {', '.join(known)})"
            )


def _size(emb_dim: int, num_heads: int, head_dim: int, mlp_dim: int, layers: int) -> dict[str, int]:
    return dict(
        emb_dim=emb_dim,
        num_heads=num_heads,
        head_dim=head_dim,
        mlp_dim=mlp_dim,
        num_encoder_layers=layers,
        num_decoder_layers=layers,
    )


_V1_1 = dict(mlp_activations=("gelu", "linear"), logits_via_embedding=False)
_V1_0 = dict(mlp_activations=("relu",), logits_via_embedding=True)

#                        D     H  head    mlp  layers (encoder and decoder each)
_NAMED: dict[str, dict[str, object]] = {
    "t5_1_1_tiny": _size(128, 4, 32, 256, 2) | _V1_1,  # ours: trains on a laptop's CPU
    "t5_1_1_small": _size(512, 6, 64, 1024, 8) | _V1_1,
    "t5_1_1_base": _size(768, 12, 64, 2048, 12) | _V1_1,
    "t5_1_1_large": _size(1024, 16, 64, 2816, 24) | _V1_1,
    "t5_1_1_xl": _size(2048, 32, 64, 5120, 24) | _V1_1,
    "t5_1_1_xxl": _size(4096, 64, 64, 10240, 24) | _V1_1,
    "t5_1_0_small": _size(512, 8, 64, 2048, 6) | _V1_0,
    "t5_1_0_base": _size(768, 12, 64, 3072, 12) | _V1_0,
    "t5_1_0_large": _size(1024, 16, 64, 4096, 24) | _V1_0,
    "t5_1_0_3b": _size(1024, 32, 128, 16384, 24) | _V1_0,
    "t5_1_0_11b": _size(1024, 128, 128, 65536, 24) | _V1_0,
}

CONFIG_NAMES = tuple(_NAMED)


def named_config(name: str, /, **overrides: object) -> T5Config:
    """The published size `name` (one of `CONFIG_NAMES`), with fields replaced by `overrides`.

    Raises:
      ValueError: an unknown name or field, with near matches; a value out of range.
    """
    if name not in _NAMED:
        raise ValueError(
            f"unknown model size {name!r}{_near(name, CONFIG_NAMES)} "
            f"(sizes: {', '.join(CONFIG_NAMES)})"
        )
    _check_fields(overrides)
    return T5Config.from_dict(_NAMED[name] | overrides)
