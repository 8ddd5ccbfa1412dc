"""HuggingFace's T5Gemma 2, its text alone: settings and names of tensors, and back.

Enters: the values of a `config.json`, of which nothing is taken for granted; or the path of a
parameter. Leaves: a `T5GemmaConfig`; or the name that transformers stores it by.

A checkpoint has an image tower besides, which no student has. It is left out, and what is written
has one of no layers in its place, zeros, so that transformers loads the folder without a warning.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping

from distill_sbs import constants
from distill_sbs.model.config import T5GEMMA, T5Config, T5GemmaConfig

MODEL_TYPE = T5GEMMA

_EMBEDDER = "model.encoder.embed_tokens"
EMBEDDING = f"{_EMBEDDER}.weight"
EMBEDDING_COPIES = ("model.decoder.embed_tokens.weight", "lm_head.out_proj.weight")
# A copy of the other embedding, which nothing compares.
UNUSED = ("model.decoder.embed_tokens.eoi_embedding",)
IMAGE_TENSORS = ("model.encoder.vision_tower.", "model.encoder.multi_modal_projector.")
# transformers calls it so in memory, and may on disk.
_IN_MEMORY = ("model.encoder.text_model.", "model.encoder.")

# HuggingFace's name of a field that both sides have, in both stacks, and ours.
_FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "emb_dim",
    "head_dim": "head_dim",
    "intermediate_size": "mlp_dim",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "query_pre_attn_scalar": "query_scale_dim",
    "sliding_window": "sliding_window",
    "rms_norm_eps": "layer_norm_epsilon",
}
_SEES_ALL, _WINDOW = "full_attention", "sliding_attention"
# Fields of a stack that have one value here.
_ALWAYS: dict[str, tuple[object, ...]] = {
    "hidden_activation": ("gelu_pytorch_tanh", None),
    "attention_bias": (False, None),
    "final_logit_softcapping": (None,),
    "attn_logit_softcapping": (None,),
    "pad_token_id": (constants.PAD_ID, None),
    "eos_token_id": (constants.EOS_ID, [constants.EOS_ID], None),
    "tie_word_embeddings": (True, None),
}

_OF_LAYER = {
    "pre_attention_norm/scale": "pre_self_attn_layernorm",
    "post_attention_norm/scale": "post_self_attn_layernorm",
    "pre_mlp_norm/scale": "pre_feedforward_layernorm",
    "post_mlp_norm/scale": "post_feedforward_layernorm",
    "grouped_attention/query/kernel": "self_attn.q_proj",
    "grouped_attention/key/kernel": "self_attn.k_proj",
    "grouped_attention/value/kernel": "self_attn.v_proj",
    "grouped_attention/out/kernel": "self_attn.o_proj",
    "grouped_attention/query_norm/scale": "self_attn.q_norm",
    "grouped_attention/key_norm/scale": "self_attn.k_norm",
    "mlp/wi_0/kernel": "mlp.gate_proj",
    "mlp/wi_1/kernel": "mlp.up_proj",
    "mlp/wo/kernel": "mlp.down_proj",
}

# An image tower of no layers: HuggingFace's names and shapes of its tensors, D of the student.
_IMAGE_WIDTH, _IMAGE_SIZE, _PATCH_SIZE = 8, 8, 4


def name_tensor(path: str) -> str:
    """HuggingFace's name of the parameter at `path`, layers one by one."""
    if path == "token_embedder/embedding":
        return EMBEDDING
    if path == "token_embedder/end_of_image":
        return f"{_EMBEDDER}.eoi_embedding"
    side, rest = path.split("/", 1)
    if rest == f"{side}_norm/scale":
        return f"model.{side}.norm.weight"
    layer, rest = rest.split("/", 1)
    return f"model.{side}.layers.{layer.removeprefix('layers_')}.{_OF_LAYER[rest]}.weight"


def rename_stored(name: str) -> str:
    """The name that is meant by one in a file."""
    in_memory, stored = _IN_MEMORY
    return name.replace(in_memory, stored, 1) if name.startswith(in_memory) else name


def warn_of_images(location: str, names: Iterable[str]) -> tuple[str, ...]:
    """A sentence where a checkpoint has an image tower of more than no layers."""
    tower = f"{IMAGE_TENSORS[0]}encoder.layers."
    if not any(
        name.startswith((tower, tower.replace("tower.", "tower.vision_model."))) for name in names
    ):
        return ()
    return (f"{location}: its image tower is left out, for a student reads text",)


def image_tensors(config: T5GemmaConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of an image tower of no layers."""
    width, patches = _IMAGE_WIDTH, (_IMAGE_SIZE // _PATCH_SIZE) ** 2
    tower, projector = IMAGE_TENSORS
    return {
        f"{tower}embeddings.patch_embedding.weight": (width, 3, _PATCH_SIZE, _PATCH_SIZE),
        f"{tower}embeddings.patch_embedding.bias": (width,),
        f"{tower}embeddings.position_embedding.weight": (patches, width),
        f"{tower}post_layernorm.weight": (width,),
        f"{tower}post_layernorm.bias": (width,),
        f"{projector}mm_input_projection_weight": (width, config.emb_dim),
        f"{projector}mm_soft_emb_norm.weight": (width,),
    }


# ---------------------------------- settings ---------------------------------


def read_settings(values: Mapping[str, object]) -> T5GemmaConfig:
    """Reads the values of a `config.json` of T5Gemma 2.

    Raises:
      ValueError: a field missing, of a value that no student has, or stacks that differ in more
        than their depths; the field is named.
    """
    encoder = _member(values, "encoder")
    stacks = {"encoder.text_config": _member(encoder, "text_config", "encoder.")}
    stacks["decoder"] = _member(values, "decoder")
    found = [_read_stack(name, stack) for name, stack in stacks.items()]
    for name in found[0]:
        if found[0][name] != found[1][name] and name != "layers":
            raise ValueError(
                f"config.json has {name} of {found[0][name]!r} in encoder.text_config and of "
                f"{found[1][name]!r} in decoder; expected the same, as in every T5Gemma 2"
            )
    image = next(
        (
            each
            for each in (values.get("eoi_token_index"), encoder.get("eoi_token_index"))
            if each is not None
        ),
        256_000,
    )
    rate = values.get("dropout_rate")
    fields = {name: value for name, value in found[0].items() if name != "layers"} | {
        "architecture": T5GEMMA,
        "num_encoder_layers": found[0]["layers"],
        "num_decoder_layers": found[1]["layers"],
        "end_of_image_id": image,
        "dropout_rate": 0.0 if rate is None else rate,
    }
    try:
        config = T5Config.from_dict(fields)
        assert isinstance(config, T5GemmaConfig)
        return config
    except ValueError as error:
        message = str(error)
        for theirs, ours in _FIELDS.items():
            message = message.replace(f"T5Config.{ours}=", f"config.json has {theirs}=")
        raise ValueError(message) from None


def _member(values: Mapping[str, object], name: str, of: str = "") -> Mapping[str, object]:
    member = values.get(name)
    if not isinstance(member, Mapping):
        raise ValueError(
            f"config.json has no {of}{name}, or one that is no object; is it a T5Gemma 2's?"
        )
    return member


def _read_stack(name: str, stack: Mapping[str, object]) -> dict[str, object]:
    """Our fields of one stack, and its `layers`."""
    for field, allowed in _ALWAYS.items():
        got = stack.get(field)
        if got not in allowed or isinstance(got, bool) != isinstance(allowed[0], bool) and got:
            raise ValueError(
                f"config.json has {name}.{field}={reprlib.repr(got)}; expected {allowed[0]!r}, for "
                "a student computes with that"
            )
    layers = stack.get("num_hidden_layers")
    if isinstance(layers, bool) or not isinstance(layers, int) or not 0 < layers <= 1000:
        raise ValueError(
            f"config.json has {name}.num_hidden_layers={reprlib.repr(layers)}; expected a whole "
            "number of layers"
        )
    fields: dict[str, object] = {}
    for theirs, ours in _FIELDS.items():
        if theirs not in stack:
            raise ValueError(f"config.json has no {name}.{theirs}; is it a T5Gemma 2's?")
        fields[ours] = stack[theirs]
    fields["start_id"] = stack.get("bos_token_id", 2)
    fields["full_attention_period"] = _read_period(name, stack, layers)
    fields |= _read_rotation(name, stack)
    return {**fields, "layers": layers}


def _read_period(name: str, stack: Mapping[str, object], layers: int) -> int:
    kinds = stack.get("layer_types")
    if kinds is None:
        return 6
    if isinstance(kinds, list) and len(kinds) == layers:
        period = kinds.index(_SEES_ALL) + 1 if _SEES_ALL in kinds else max(layers + 1, 6)
        if kinds == _layer_kinds(period, layers):
            return period
    raise ValueError(
        f"config.json has {name}.layer_types={reprlib.repr(kinds)}; expected {layers} of "
        f"{_WINDOW!r}, every so many-th {_SEES_ALL!r}"
    )


def _layer_kinds(period: int, layers: int) -> list[str]:
    return [_WINDOW if (layer + 1) % period else _SEES_ALL for layer in range(layers)]


def _read_rotation(name: str, stack: Mapping[str, object]) -> dict[str, object]:
    """Bases and the scale of positions."""
    found: dict[str, object] = {}
    rotations = stack.get("rope_parameters")
    for kind, ours in ((_SEES_ALL, "rope_theta"), (_WINDOW, "sliding_rope_theta")):
        values = rotations.get(kind) if isinstance(rotations, Mapping) else None
        if values is None:
            continue
        said = values.get("rope_type", "default") if isinstance(values, Mapping) else values
        scaled = said == "linear" and kind == _SEES_ALL
        if not isinstance(values, Mapping) or not (said == "default" or scaled):
            raise ValueError(
                f"config.json has {name}.rope_parameters.{kind} of type {reprlib.repr(said)}; "
                "expected 'default', or 'linear' where all is seen"
            )
        if "rope_theta" in values:
            found[ours] = values["rope_theta"]
        if scaled:
            found["rope_scaling_factor"] = values.get("factor")
    return found


def make_settings(config: T5GemmaConfig) -> dict[str, object]:
    """The values of a `config.json` that HuggingFace's T5Gemma2ForConditionalGeneration reads."""
    both = {theirs: getattr(config, ours) for theirs, ours in _FIELDS.items()} | {
        "hidden_activation": "gelu_pytorch_tanh",
        "bos_token_id": config.start_id,
        "pad_token_id": constants.PAD_ID,
        "eos_token_id": constants.EOS_ID,
        "rope_parameters": {
            _SEES_ALL: _rotation(config.rope_theta, config.rope_scaling_factor),
            _WINDOW: _rotation(config.sliding_rope_theta, 1.0),
        },
    }

    def stack(kind: str, layers: int) -> dict[str, object]:
        kinds = _layer_kinds(config.full_attention_period, layers)
        return {
            "model_type": f"{MODEL_TYPE}_{kind}",
            **both,
            "num_hidden_layers": layers,
            "layer_types": kinds,
        }

    image = {
        "model_type": "siglip_vision_model",
        "hidden_size": _IMAGE_WIDTH,
        "intermediate_size": _IMAGE_WIDTH,
        "num_hidden_layers": 0,
        "num_attention_heads": 1,
        "image_size": _IMAGE_SIZE,
        "patch_size": _PATCH_SIZE,
        "vision_use_head": False,
    }
    return {
        "architectures": ["T5Gemma2ForConditionalGeneration"],
        "model_type": MODEL_TYPE,
        "is_encoder_decoder": True,
        "dropout_rate": config.dropout_rate,
        "encoder": {
            "model_type": f"{MODEL_TYPE}_encoder",
            "text_config": stack("text", config.num_encoder_layers),
            "vision_config": image,
            "mm_tokens_per_image": (_IMAGE_SIZE // _PATCH_SIZE) ** 2,
            "eoi_token_index": config.end_of_image_id,
        },
        "decoder": stack("decoder", config.num_decoder_layers),
        "eoi_token_index": config.end_of_image_id,
        "vocab_size": config.vocab_size,
        "decoder_start_token_id": config.start_id,
        "bos_token_id": config.start_id,
        "pad_token_id": constants.PAD_ID,
        "eos_token_id": constants.EOS_ID,
    }


def _rotation(theta: float, factor: float) -> dict[str, object]:
    kind: dict[str, object] = {"rope_type": "default"}
    if factor != 1.0:
        kind = {"rope_type": "linear", "factor": factor}
    return {"rope_theta": theta, **kind}
