"""HuggingFace's `config.json` of a T5 as a `T5Config`, and back.

Enters: the values of a `config.json`; nothing about them is taken for granted. Leaves: a
`T5Config`, and whether the output head may be missing because it is the embedding.

Which head a model has, as transformers reads it ("scaled": logits are multiplied by
d_model ** -0.5, as in T5 1.0; `files` decides by the tensors that are there):

| model_type | tie_word_embeddings | scale_decoder_outputs | scaled | the head may be missing |
| --- | --- | --- | --- | --- |
| t5 | absent or true | absent | yes | yes: T5 1.0 |
| t5 | false | absent | no | no: v1.1, FLAN, ByT5 |
| t5 | absent or true | false | no | yes: v1.1 that transformers 5 wrote, of an equal head |
| t5 | any | true | yes | unless tie_word_embeddings is false |
| mt5 | true | any | no | yes: transformers 5 wrote it, of an equal head |
| mt5 | absent or false | any | no | no |
| umt5 | as t5 | counts as absent | as t5 | as t5 |

transformers 5 takes every umT5 for a tied one and scales its logits; the published ones say
tie_word_embeddings=false, and have a head of their own.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from distill_sbs import constants
from distill_sbs.convert.huggingface import t5gemma
from distill_sbs.model.config import T5Config, T5GemmaConfig

# HuggingFace's name of a field that both sides have, and ours.
_FIELDS = {
    "vocab_size": "vocab_size",
    "d_model": "emb_dim",
    "d_kv": "head_dim",
    "d_ff": "mlp_dim",
    "num_layers": "num_encoder_layers",
    "num_decoder_layers": "num_decoder_layers",
    "num_heads": "num_heads",
    "relative_attention_num_buckets": "relative_attention_num_buckets",
    "relative_attention_max_distance": "relative_attention_max_distance",
    "dropout_rate": "dropout_rate",
    "layer_norm_epsilon": "layer_norm_epsilon",
}
_NEEDED = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads")

_ACTIVATIONS = {
    "relu": ("relu",),
    "gated-gelu": ("gelu", "linear"),
    "gated-silu": ("silu", "linear"),
}
# Another spelling of the same function: transformers computes both by the tanh formula.
_SPELLINGS = {"gated-gelu_new": "gated-gelu"}

# What model_type may be.
_KINDS = ("t5", "mt5", "umt5", t5gemma.MODEL_TYPE)

# Ids that our model takes for granted.
_IDS = {
    "decoder_start_token_id": constants.PAD_ID,
    "pad_token_id": constants.PAD_ID,
    "eos_token_id": constants.EOS_ID,
}


class Settings(NamedTuple):
    """What a `config.json` says.

    Attributes:
      config: the student's; `logits_via_embedding` where logits are scaled, as in T5 1.0.
      says_tied: whether a head that is missing is the embedding.
      says_scaled: whether it is stated, and not only transformers' default, that logits are scaled.
    """

    config: T5Config
    says_tied: bool
    says_scaled: bool


def read_settings(values: Mapping[str, object]) -> Settings:
    """Reads the values of a `config.json` (T5, mT5, umT5, FLAN-T5, ByT5, T5Gemma 2).

    Raises:
      ValueError: not a T5, a field missing or of a value that no T5 has; the field is named.
    """
    kind = values.get("model_type", "t5")
    if kind not in _KINDS:
        raise ValueError(
            f"config.json is of a {reprlib.repr(kind)} model; expected one of "
            f"{', '.join(map(repr, _KINDS))}"
        )
    if kind == t5gemma.MODEL_TYPE:
        return Settings(t5gemma.read_settings(values), True, False)
    for name in _NEEDED:
        if name not in values:
            raise ValueError(f"config.json has no {name!r}; is it a T5's?")
    if _flag(values, "is_encoder_decoder") is False:
        raise ValueError(
            "config.json has is_encoder_decoder=false; expected a T5 with its decoder, for a "
            "student writes text"
        )
    for name, expected in _IDS.items():
        got = values.get(name)
        if got is not None and (isinstance(got, bool) or got not in (expected, [expected])):
            raise ValueError(
                f"config.json has {name}={reprlib.repr(got)}; expected {expected}, as every "
                "published T5 has it, for a student computes with that"
            )
    tied = _flag(values, "tie_word_embeddings")
    scaled = _flag(values, "scale_decoder_outputs")
    if kind == "mt5":
        # Every mT5 is a v1.1, whatever it says; only transformers 5 leaves a head out.
        return Settings(_config(values, False), tied is True, False)
    if kind == "umt5":
        scaled = None  # which transformers does not look at there
    is_scaled = tied is not False if scaled is None else scaled
    return Settings(_config(values, is_scaled), tied is not False, scaled is True)


def _flag(values: Mapping[str, object], name: str) -> bool | None:
    value = values.get(name)
    if value is not None and not isinstance(value, bool):
        raise ValueError(f"config.json has {name}={reprlib.repr(value)}; expected true or false")
    return value


def _config(values: Mapping[str, object], logits_via_embedding: bool) -> T5Config:
    block = values.get("feed_forward_proj", "relu")
    activations = None
    if isinstance(block, str):
        activations = _ACTIVATIONS.get(_SPELLINGS.get(block, block))
    if activations is None:
        raise ValueError(
            f"config.json has feed_forward_proj={reprlib.repr(block)}; expected one of "
            f"{', '.join(_ACTIVATIONS)}"
        )
    # A decoder that is not stated is as deep as the encoder; so transformers takes null.
    depth = values.get("num_decoder_layers")
    given = {**values, "num_decoder_layers": values["num_layers"] if depth is None else depth}
    fields: dict[str, Any] = {
        ours: given[theirs] for theirs, ours in _FIELDS.items() if theirs in given
    }
    try:
        return T5Config(
            **fields,
            mlp_activations=activations,
            logits_via_embedding=logits_via_embedding,
            relative_attention_per_layer=values.get("model_type") == "umt5",
        )
    except ValueError as error:
        message = str(error)
        for theirs, ours in _FIELDS.items():
            message = message.replace(f"T5Config.{ours}=", f"config.json has {theirs}=")
        raise ValueError(message) from None


def make_settings(config: T5Config) -> dict[str, object]:
    """The values of a `config.json` that HuggingFace's T5, umT5 or T5Gemma 2 reads.

    Raises:
      ValueError: a feed-forward block that HuggingFace's T5 does not have.
    """
    if isinstance(config, T5GemmaConfig):
        return t5gemma.make_settings(config)
    blocks = {activations: block for block, activations in _ACTIVATIONS.items()}
    if config.mlp_activations not in blocks:
        raise ValueError(
            f"HuggingFace's T5 has no feed-forward block {config.mlp_activations!r}; "
            f"it has {', '.join(map(repr, blocks))}"
        )
    kind = "umt5" if config.relative_attention_per_layer else "t5"
    return {
        "architectures": [f"{kind.upper()}ForConditionalGeneration"],
        "model_type": kind,
        "is_encoder_decoder": True,
        **{theirs: getattr(config, ours) for theirs, ours in _FIELDS.items()},
        "feed_forward_proj": blocks[config.mlp_activations],
        "tie_word_embeddings": config.logits_via_embedding,
        **_IDS,
    }
