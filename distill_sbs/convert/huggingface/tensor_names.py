"""HuggingFace's T5 (1.0, v1.1, FLAN, ByT5, mT5) to and from our parameter tree; numpy only.

In: tensors by HuggingFace's names, and the values of its `config.json`.
Out: a tree as `distill_sbs.model.network.Transformer` has it, and a `T5Config`; and back.

HuggingFace stores linear layers as [out, in], we as [in, out]; its relative position table is
[buckets, heads], ours [heads, buckets]. Nothing is computed, so that there and back is identical
to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from distill_sbs.model.config import T5Config

# Tensors that a state may hold besides: copies of the shared embedding, and a table that old
# checkpoints carry and no version of the model reads.
EMBEDDING_COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
UNUSED = ("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",)

_ACTIVATIONS = {
    "relu": ("relu",),
    "gated-gelu": ("gelu", "linear"),
    "gated-silu": ("silu", "linear"),
}
# Another spelling of the same function: transformers computes both by the tanh formula.
_SPELLINGS = {"gated-gelu_new": "gated-gelu"}


class Tensor(NamedTuple):
    """One tensor on both sides.

    Attributes:
      name: HuggingFace's.
      path: ours, layers one by one ('layers_0').
      shape: ours.
      transposed: whether HuggingFace's is the transpose.
    """

    name: str
    path: tuple[str, ...]
    shape: tuple[int, ...]
    transposed: bool

    @property
    def huggingface_shape(self) -> tuple[int, ...]:
        """Shape in HuggingFace's state."""
        return self.shape[::-1] if self.transposed else self.shape


def _attention(theirs: str, ours: tuple[str, ...], config: T5Config) -> Iterator[Tensor]:
    width, joined = config.emb_dim, config.num_heads * config.head_dim
    for letter, name in (("q", "query"), ("k", "key"), ("v", "value")):
        yield Tensor(f"{theirs}.{letter}.weight", (*ours, name, "kernel"), (width, joined), True)
    yield Tensor(f"{theirs}.o.weight", (*ours, "out", "kernel"), (joined, width), True)


def _norm(theirs: str, ours: tuple[str, ...], config: T5Config) -> Tensor:
    return Tensor(f"{theirs}.weight", (*ours, "scale"), (config.emb_dim,), False)


def _stack(side: str, config: T5Config) -> Iterator[Tensor]:
    first = "self_attention" if side == "decoder" else "attention"
    blocks = [(f"pre_{first}_layer_norm", "SelfAttention", first)]
    layers = config.num_encoder_layers
    if side == "decoder":
        cross = "encoder_decoder_attention"
        blocks.append(("pre_cross_attention_layer_norm", "EncDecAttention", cross))
        layers = config.num_decoder_layers
    gated = len(config.mlp_activations) == 2
    for index in range(layers):
        ours = (side, f"layers_{index}")
        for position, (norm, theirs, name) in enumerate(blocks):
            sublayer = f"{side}.block.{index}.layer.{position}"
            yield _norm(f"{sublayer}.layer_norm", (*ours, norm), config)
            yield from _attention(f"{sublayer}.{theirs}", (*ours, name), config)
        sublayer = f"{side}.block.{index}.layer.{len(blocks)}"
        yield _norm(f"{sublayer}.layer_norm", (*ours, "pre_mlp_layer_norm"), config)
        for name, shape in (
            *(
                (wi, (config.emb_dim, config.mlp_dim))
                for wi in (["wi_0", "wi_1"] if gated else ["wi"])
            ),
            ("wo", (config.mlp_dim, config.emb_dim)),
        ):
            theirs = f"{sublayer}.DenseReluDense.{name}.weight"
            yield Tensor(theirs, (*ours, "mlp", name, "kernel"), shape, True)
    yield Tensor(
        f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        (side, "relpos_bias", "rel_embedding"),
        (config.num_heads, config.relative_attention_num_buckets),
        True,
    )
    yield _norm(f"{side}.final_layer_norm", (side, f"{side}_norm"), config)


def tensors(config: T5Config) -> Iterator[Tensor]:
    """Every tensor of a model, once (copies of the shared embedding are not tensors of ours)."""
    vocabulary = (config.vocab_size, config.emb_dim)
    yield Tensor("shared.weight", ("token_embedder", "embedding"), vocabulary, False)
    yield from _stack("encoder", config)
    yield from _stack("decoder", config)
    if not config.logits_via_embedding:
        yield Tensor(
            "lm_head.weight", ("decoder", "logits_dense", "kernel"), vocabulary[::-1], True
        )


def from_huggingface_state(state: Mapping[str, np.ndarray], config: T5Config) -> dict[str, Any]:
    """The parameter tree of a HuggingFace state; layers stacked where `config.scan_layers`.

    Args:
      state: tensors by name. Read one at a time, so a lazy mapping of a file spares memory.
      config: the model's, see `config_from_huggingface`.

    Returns:
      A tree of float32 arrays of their own.

    Raises:
      ValueError: a tensor missing, of another shape, or unknown; each named.
    """
    params: dict[str, Any] = {}
    wanted = {tensor.name: tensor for tensor in tensors(config)}
    allowed = {*wanted, *EMBEDDING_COPIES, *UNUSED}
    if config.logits_via_embedding:
        allowed.add("lm_head.weight")  # a copy of the shared embedding
    unknown = sorted(set(state) - allowed)
    if unknown:
        raise ValueError(
            f"tensor {unknown[0]} (shape {np.shape(state[unknown[0]])}) has no place in this "
            f"model; {len(unknown)} such tensors. Is it a T5 of another size or version?"
        )
    for name, tensor in wanted.items():
        if name not in state:
            raise ValueError(f"tensor {name} is missing; expected shape {tensor.huggingface_shape}")
        value = state[name]
        if tuple(value.shape) != tensor.huggingface_shape:
            raise ValueError(
                f"tensor {name} has shape {tuple(value.shape)}; expected "
                f"{tensor.huggingface_shape}. Is it a model of another size?"
            )
        _write(params, tensor, value, config)
    return params


def _write(params: dict[str, Any], tensor: Tensor, value: np.ndarray, config: T5Config) -> None:
    value = value.T if tensor.transposed else value
    path, layer = list(tensor.path), None
    if config.scan_layers and path[1].startswith("layers_"):
        layer = int(path[1].removeprefix("layers_"))
        path[1] = "layers"
    node = params
    for part in path[:-1]:
        node = node.setdefault(part, {})
    if layer is None:
        # A copy even where nothing changes: the state's file may be closed under its arrays.
        node[path[-1]] = np.array(value, np.float32, order="C")
        return
    if path[-1] not in node:
        layers = config.num_encoder_layers if path[0] == "encoder" else config.num_decoder_layers
        node[path[-1]] = np.empty((layers, *tensor.shape), np.float32)
    node[path[-1]][layer] = value


def to_huggingface_state(params: Mapping[str, Any], config: T5Config) -> dict[str, np.ndarray]:
    """The tensors of a parameter tree by HuggingFace's names; contiguous float32 arrays.

    Raises:
      ValueError: a parameter missing, or of another shape; named by its path.
    """
    return {tensor.name: _read(params, tensor, config) for tensor in tensors(config)}


def _read(params: Mapping[str, Any], tensor: Tensor, config: T5Config) -> np.ndarray:
    path, layer = list(tensor.path), None
    if config.scan_layers and path[1].startswith("layers_"):
        layer = int(path[1].removeprefix("layers_"))
        path[1] = "layers"
    node: Any = params
    for part in path:
        if not isinstance(node, Mapping) or part not in node:
            raise ValueError(
                f"parameter {'/'.join(path)} is missing; expected shape {tensor.shape}"
            )
        node = node[part]
    value = np.asarray(node if layer is None else node[layer], np.float32)
    if value.shape != tensor.shape:
        raise ValueError(
            f"parameter {'/'.join(path)} has shape {value.shape}; expected {tensor.shape}"
        )
    return np.ascontiguousarray(value.T if tensor.transposed else value)


def config_from_huggingface(values: Mapping[str, Any]) -> T5Config:
    """The `T5Config` of a HuggingFace `config.json` (T5, mT5, FLAN-T5, ByT5).

    Raises:
      ValueError: not a T5, a field missing, or a feed-forward block that no T5 has.
    """
    kind = values.get("model_type", "t5")
    if kind not in ("t5", "mt5"):
        raise ValueError(f"config.json is of a {kind!r} model; expected 't5' or 'mt5'")
    for name in ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads"):
        if name not in values:
            raise ValueError(f"config.json has no {name!r}; is it a T5's?")
    block = values.get("feed_forward_proj", "relu")
    block = _SPELLINGS.get(block, block)
    if block not in _ACTIVATIONS:
        raise ValueError(
            f"config.json has feed_forward_proj={block!r}; expected one of "
            f"{', '.join(_ACTIVATIONS)}"
        )
    # transformers 5 writes tie_word_embeddings=true for every T5, v1.1 included, and says whether
    # logits are the scaled product with the embedding in a field of its own.
    tied = values.get("scale_decoder_outputs")
    if tied is None:
        tied = values.get("tie_word_embeddings", True)
    if kind == "mt5":
        tied = False  # every mT5 is a v1.1; transformers 5 writes tie_word_embeddings=true
    return T5Config(
        vocab_size=values["vocab_size"],
        emb_dim=values["d_model"],
        num_heads=values["num_heads"],
        head_dim=values["d_kv"],
        mlp_dim=values["d_ff"],
        num_encoder_layers=values["num_layers"],
        num_decoder_layers=values.get("num_decoder_layers") or values["num_layers"],
        mlp_activations=_ACTIVATIONS[block],
        dropout_rate=values.get("dropout_rate", 0.1),
        logits_via_embedding=bool(tied),
        relative_attention_num_buckets=values.get("relative_attention_num_buckets", 32),
        relative_attention_max_distance=values.get("relative_attention_max_distance", 128),
        layer_norm_epsilon=values.get("layer_norm_epsilon", 1e-6),
    )


def config_to_huggingface(config: T5Config) -> dict[str, Any]:
    """The values of a `config.json` that HuggingFace's T5ForConditionalGeneration reads.

    Raises:
      ValueError: a feed-forward block that HuggingFace's T5 does not have.
    """
    blocks = {activations: block for block, activations in _ACTIVATIONS.items()}
    if config.mlp_activations not in blocks:
        raise ValueError(
            f"HuggingFace's T5 has no feed-forward block {config.mlp_activations!r}; "
            f"it has {', '.join(map(repr, blocks))}"
        )
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "is_encoder_decoder": True,
        "vocab_size": config.vocab_size,
        "d_model": config.emb_dim,
        "d_kv": config.head_dim,
        "d_ff": config.mlp_dim,
        "num_layers": config.num_encoder_layers,
        "num_decoder_layers": config.num_decoder_layers,
        "num_heads": config.num_heads,
        "relative_attention_num_buckets": config.relative_attention_num_buckets,
        "relative_attention_max_distance": config.relative_attention_max_distance,
        "dropout_rate": config.dropout_rate,
        "layer_norm_epsilon": config.layer_norm_epsilon,
        "feed_forward_proj": blocks[config.mlp_activations],
        "tie_word_embeddings": config.logits_via_embedding,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }
