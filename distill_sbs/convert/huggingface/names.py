"""Our parameters by HuggingFace's names of T5's tensors (1.0, v1.1, FLAN, ByT5, mT5, umT5).

T5Gemma's names are in `huggingface.t5gemma`; which ones a configuration has is decided here.

In: a `T5Config`, or the path of a parameter. Out: the name and shape that HuggingFace stores it by.

HuggingFace stores linear layers as [out, in], we as [in, out]; its relative position table is
[buckets, heads], ours [heads, buckets]. Nothing is computed, so that there and back is identical
to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from distill_sbs.convert.huggingface import t5gemma
from distill_sbs.model.config import T5Config, T5GemmaConfig
from distill_sbs.model.parameters import list_parameters

EMBEDDING, HEAD = "shared.weight", "lm_head.weight"

# Tensors that a state may hold besides: copies of the shared embedding, and a table that old
# checkpoints carry and no version of the model reads.
EMBEDDING_COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
UNUSED = ("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",)

# Our names inside a layer: HuggingFace's sublayer, counted from 0, and its name in there.
_SUBLAYERS = {
    "encoder": {
        "pre_attention_layer_norm": (0, "layer_norm"),
        "attention": (0, "SelfAttention"),
        "relpos_bias": (0, "SelfAttention.relative_attention_bias"),
        "pre_mlp_layer_norm": (1, "layer_norm"),
        "mlp": (1, "DenseReluDense"),
    },
    "decoder": {
        "pre_self_attention_layer_norm": (0, "layer_norm"),
        "self_attention": (0, "SelfAttention"),
        "relpos_bias": (0, "SelfAttention.relative_attention_bias"),
        "pre_cross_attention_layer_norm": (1, "layer_norm"),
        "encoder_decoder_attention": (1, "EncDecAttention"),
        "pre_mlp_layer_norm": (2, "layer_norm"),
        "mlp": (2, "DenseReluDense"),
    },
}
_LINEAR = {"query": "q", "key": "k", "value": "v", "out": "o"}
_OUTSIDE_LAYERS = {
    "token_embedder/embedding": EMBEDDING,
    "decoder/logits_dense/kernel": HEAD,
    "encoder/encoder_norm/scale": "encoder.final_layer_norm.weight",
    "decoder/decoder_norm/scale": "decoder.final_layer_norm.weight",
    **{
        f"{side}/relpos_bias/rel_embedding": (
            f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        )
        for side in ("encoder", "decoder")
    },
}


class Layout(NamedTuple):
    """What a folder holds besides the tensors that are parameters of ours.

    Attributes:
      embedding: the tensor that is the embedding.
      head: the output head's; None where it can only be the embedding.
      copies: of the embedding, which must be equal to it.
      unused: tensors that are not looked at.
      left_out: beginnings of the names of tensors that no student has.
      layer: beginning of the names of a layer's tensors, with a place for side and number.
    """

    embedding: str
    head: str | None
    copies: tuple[str, ...]
    unused: tuple[str, ...]
    left_out: tuple[str, ...]
    layer: str


_T5 = Layout(EMBEDDING, HEAD, EMBEDDING_COPIES, UNUSED, (), "{side}.block.{number}.")
_T5GEMMA = Layout(
    t5gemma.EMBEDDING,
    None,
    t5gemma.EMBEDDING_COPIES,
    t5gemma.UNUSED,
    t5gemma.IMAGE_TENSORS,
    "model.{side}.layers.{number}.",
)


def find_layout(config: T5Config) -> Layout:
    """That of a model of this configuration."""
    return _T5GEMMA if isinstance(config, T5GemmaConfig) else _T5


class Tensor(NamedTuple):
    """One tensor on both sides.

    Attributes:
      name: HuggingFace's.
      path: ours, layers one by one ('encoder/layers_0/…').
      shape: ours.
      transposed: whether HuggingFace's is the transpose.
    """

    name: str
    path: str
    shape: tuple[int, ...]
    transposed: bool

    @property
    def huggingface_shape(self) -> tuple[int, ...]:
        """Shape in HuggingFace's state."""
        return self.shape[::-1] if self.transposed else self.shape


def list_tensors(config: T5Config) -> Iterator[Tensor]:
    """Every tensor of a model, once (copies of the shared embedding are not tensors of ours)."""
    for path, shape, _ in list_parameters(config):
        transposed = path.endswith(("/kernel", "/rel_embedding"))
        is_t5gemma = isinstance(config, T5GemmaConfig)
        name = t5gemma.name_tensor(path) if is_t5gemma else name_tensor(path)
        yield Tensor(name, path, shape, transposed)


def name_tensor(path: str) -> str:
    """HuggingFace's name of the T5's parameter at `path`, layers one by one."""
    if path in _OUTSIDE_LAYERS:
        return _OUTSIDE_LAYERS[path]
    side, layer, block, *linear, _ = path.split("/")
    number, theirs = _SUBLAYERS[side][block]
    parts = [side, "block", layer.removeprefix("layers_"), "layer", str(number), theirs]
    return ".".join([*parts, *(_LINEAR.get(name, name) for name in linear), "weight"])
