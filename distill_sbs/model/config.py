"""The student's shape and numerics: `T5Config`, `T5GemmaConfig`, and the published sizes by name.

In: a size's name and overrides, or a plain dict (what a checkpoint stores beside its weights).
Out: a frozen, hashable `T5Config`, or the one of T5Gemma, that every model function takes.

Sizes are those of google-research/t5x (`t5x/examples/t5/t5_1_{0,1}/*.gin`), which equal the
`config.json` files of HuggingFace's `t5-*` and `google/t5-v1_1-*`, and those of `google/byt5-*`
(arXiv 2105.13626), `google/mt5-*` (arXiv 2010.11934) and `google/umt5-*` (arXiv 2304.09151).
FLAN-T5 and the LM-adapted models have the sizes of v1.1.
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
      relative_attention_per_layer: every layer has a table of relative positions of its own, as in
        umT5 (arXiv 2304.09151); else all layers of a stack share one.
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
    relative_attention_per_layer: bool = False
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
        for name in (
            "logits_via_embedding",
            "relative_attention_per_layer",
            "float32_attention_logits",
            "scan_layers",
        ):
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
        if self.attention == "fused" and self.relative_attention_per_layer:
            raise ValueError(
                "T5Config.attention='fused' with relative_attention_per_layer=True: the kernel has "
                "one bias for all layers; use attention='xla'"
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

    @property
    def logits_scale(self) -> float:
        """What logits by the embedding are multiplied with."""
        return float(self.emb_dim**-0.5)

    @property
    def cached_heads(self) -> int:
        """Heads of keys and values."""
        return self.num_heads

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
        kind = T5GemmaConfig if values.get(_ARCHITECTURE) == T5GEMMA else T5Config
        # Of which types they are is checked as it is made.
        fields: dict[str, Any] = {
            name: value
            for name, value in values.items()
            if not (name == _ARCHITECTURE and kind is T5GemmaConfig)
        }
        _check_fields(fields, kind)
        return kind(**fields)


# In a plain dict, what tells a T5Gemma 2 from a T5.
_ARCHITECTURE, T5GEMMA = "architecture", "t5gemma2"


@dataclasses.dataclass(frozen=True)
class T5GemmaConfig(T5Config):
    """Hyper-parameters of one T5Gemma 2 (arXiv 2512.14856), its text alone.

    Gemma 3's layers: rotary positions, grouped queries, norms of queries and keys; in the decoder
    one attention over targets and inputs together. Most layers see a window, every so many see
    all. What T5's relative positions are about has no meaning here. Layers are never stacked.

    Attributes:
      num_kv_heads: heads of keys and values, each shared by `num_heads / num_kv_heads` queries.
      query_scale_dim: products of queries and keys are divided by its square root
        (`query_pre_attn_scalar`).
      sliding_window: positions that a layer with a window sees: in the decoder so many up to its
        own, in the encoder half of them on either side. Inputs are seen whole by every target.
      full_attention_period: every so many-th layer sees all.
      rope_theta: base of the rotary frequencies where all is seen.
      rope_scaling_factor: by which positions are divided there.
      sliding_rope_theta: base of the rotary frequencies where a window is seen.
      start_id: the token with which a target starts; token 0 stands for it in our batches.
      end_of_image_id: the one token with an embedding of its own, which is not scaled.

    Raises:
      ValueError: as `T5Config`.
    """

    logits_via_embedding: bool = True
    num_kv_heads: int = 1
    query_scale_dim: int = 256
    sliding_window: int = 512
    full_attention_period: int = 6
    rope_theta: float = 1e6
    rope_scaling_factor: float = 1.0
    sliding_rope_theta: float = 1e4
    start_id: int = 2
    end_of_image_id: int = 256_000

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, smallest in _T5GEMMA_LEAST.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise _refusal(name, value, f"a whole number >= {smallest}")
            if not smallest <= value <= 2**24:
                raise _refusal(name, value, f"a whole number >= {smallest} and <= {2**24:,}")
        for name in ("rope_theta", "rope_scaling_factor", "sliding_rope_theta"):
            value = getattr(self, name)
            if not _is_number(value) or not 0.0 < value < 1e12:
                raise _refusal(name, value, "a number > 0")
        for name, expected in _T5GEMMA_ALWAYS.items():
            if getattr(self, name) != expected:
                raise _refusal(name, getattr(self, name), f"{expected!r}, as in every T5Gemma 2")
        if self.num_heads % self.num_kv_heads:
            raise _refusal("num_kv_heads", self.num_kv_heads, f"a divisor of {self.num_heads}")
        if self.head_dim % 2:
            raise _refusal("head_dim", self.head_dim, "an even number, of which halves rotate")

    @property
    def logits_scale(self) -> float:
        """Logits are not scaled."""
        return 1.0

    @property
    def cached_heads(self) -> int:
        """Heads of keys and values."""
        return self.num_kv_heads

    def sees_all(self, layer: int) -> bool:
        """Whether a layer, counted from 0, sees all positions and no window of them."""
        return (layer + 1) % self.full_attention_period == 0

    def to_dict(self) -> dict[str, object]:
        """See `T5Config`."""
        return {**super().to_dict(), _ARCHITECTURE: T5GEMMA}


_T5GEMMA_LEAST = {
    "num_kv_heads": 1,
    "query_scale_dim": 1,
    "sliding_window": 1,
    "full_attention_period": 1,
    "start_id": 1,
    "end_of_image_id": 0,
}
_T5GEMMA_ALWAYS = {
    "mlp_activations": ("gelu", "linear"),
    "logits_via_embedding": True,
    "attention": "xla",
    "relative_attention_per_layer": False,
    "scan_layers": False,
}


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


def _check_fields(values: Mapping[str, object], kind: type[T5Config]) -> None:
    known = tuple(field.name for field in dataclasses.fields(kind))
    for name in values:
        if name not in known:
            raise ValueError(
                f"{kind.__name__} has no field {name!r}{_near(name, known)} "
                f"(fields: {', '.join(known)})"
            )


def _size(
    emb_dim: int,
    num_heads: int,
    head_dim: int,
    mlp_dim: int,
    layers: int,
    decoder_layers: int | None = None,
) -> dict[str, int]:
    return dict(
        emb_dim=emb_dim,
        num_heads=num_heads,
        head_dim=head_dim,
        mlp_dim=mlp_dim,
        num_encoder_layers=layers,
        num_decoder_layers=layers if decoder_layers is None else decoder_layers,
    )


_V1_1 = dict(mlp_activations=("gelu", "linear"), logits_via_embedding=False)
_V1_0 = dict(mlp_activations=("relu",), logits_via_embedding=True)
_BYTE = _V1_1 | dict(vocab_size=384)
_M = _V1_1 | dict(vocab_size=250112)
_GEMMA = {_ARCHITECTURE: T5GEMMA, "vocab_size": 262144}
_UM = _V1_1 | dict(vocab_size=256384, relative_attention_per_layer=True)

#                        D     H  head    mlp  layers (of the encoder, and of the decoder if others)
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
    "byt5_small": _size(1472, 6, 64, 3584, 12, 4) | _BYTE,
    "byt5_base": _size(1536, 12, 64, 3968, 18, 6) | _BYTE,
    "byt5_large": _size(1536, 16, 64, 3840, 36, 12) | _BYTE,
    "byt5_xl": _size(2560, 32, 64, 6720, 36, 12) | _BYTE,
    "byt5_xxl": _size(4672, 64, 64, 12352, 36, 12) | _BYTE,
    "mt5_small": _size(512, 6, 64, 1024, 8) | _M,
    "mt5_base": _size(768, 12, 64, 2048, 12) | _M,
    "mt5_large": _size(1024, 16, 64, 2816, 24) | _M,
    "mt5_xl": _size(2048, 32, 64, 5120, 24) | _M,
    "mt5_xxl": _size(4096, 64, 64, 10240, 24) | _M,
    "umt5_small": _size(512, 6, 64, 1024, 8) | _UM,
    "umt5_base": _size(768, 12, 64, 2048, 12) | _UM,
    "umt5_xl": _size(2048, 32, 64, 5120, 24) | _UM,
    "umt5_xxl": _size(4096, 64, 64, 10240, 24) | _UM,
    "t5gemma2_270m": _size(640, 4, 256, 2048, 18) | _GEMMA,
    "t5gemma2_1b": _size(1152, 4, 256, 6912, 26) | _GEMMA,
    "t5gemma2_4b": _size(2560, 8, 256, 10240, 34)
    | _GEMMA
    | dict(num_kv_heads=4, sliding_window=1024, rope_scaling_factor=8.0),
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
    values = _NAMED[name]
    _check_fields(overrides, T5GemmaConfig if values.get(_ARCHITECTURE) == T5GEMMA else T5Config)
    return T5Config.from_dict(values | overrides)
