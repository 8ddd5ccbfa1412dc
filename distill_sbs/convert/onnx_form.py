"""A folder of HuggingFace's as two ONNX graphs, by torch's own exporter.

Enters: a folder that `write_huggingface` wrote. Leaves: `encoder.onnx` and `decoder.onnx`. The
encoder gives every decoder layer's keys and values of the input; the decoder takes one token and
what was kept of those before it, and gives the likeliest next one. `serving.onnx_engine` has the
loop.

`optimum`, which does this for older versions of transformers, does not take the one in use here.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import torch
import transformers
from onnxruntime.quantization import QuantType, quantize_dynamic
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from distill_sbs.convert.quiet_libraries import quiet_export, quiet_transformers
from distill_sbs.model.config import T5Config
from distill_sbs.serving.onnx_engine import (
    CROSS,
    DECODER_FILE,
    ENCODER_FILE,
    INPUT_IDS,
    MASK,
    NEXT,
    PAST,
    PRESENT,
    TOKEN,
)
from distill_sbs.serving.served_folder import FLOAT32

# A protobuf message holds 2 GiB at most; beyond this the weights lie in a file beside it.
_MOST_BYTES = 1_800_000_000
_LONGEST = 65_536  # rows or tokens that the exporter reckons with


class _Encoder(torch.nn.Module):
    """Input ids and mask [B, S] to keys and values [B, H, S, D / H] of each decoder layer."""

    def __init__(self, model: transformers.T5ForConditionalGeneration) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        hidden = self.model.encoder(input_ids=input_ids, attention_mask=mask).last_hidden_state
        states = []
        for block in self.model.decoder.block:
            attention = block.layer[1].EncDecAttention
            shape = (hidden.shape[0], -1, attention.n_heads, attention.key_value_proj_dim)
            for project in (attention.k, attention.v):
                states.append(project(hidden).view(shape).transpose(1, 2))
        return tuple(states)


class _Decoder(torch.nn.Module):
    """A token [B, 1], the mask, states of past tokens and of the input, to the next token.

    What the generation configuration suppresses is never that one.
    """

    def __init__(self, model: transformers.T5ForConditionalGeneration) -> None:
        super().__init__()
        self.model = model
        suppressed = torch.zeros(model.config.vocab_size)
        suppressed[model.generation_config.suppress_tokens or []] = -torch.inf
        self.register_buffer("suppressed", suppressed)

    def forward(
        self, token: torch.Tensor, mask: torch.Tensor, *states: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        layers = len(states) // 4
        past, cross = DynamicCache(), DynamicCache()
        for layer in range(layers):
            past.update(states[2 * layer], states[2 * layer + 1], layer)
            of_input = states[2 * layers + 2 * layer :]
            cross.update(of_input[0], of_input[1], layer)
        cache = EncoderDecoderCache(past, cross)
        cache.is_updated.update(dict.fromkeys(range(layers), True))
        config = self.model.config
        # Asked for its shape alone: the keys and values of the input are in the cache.
        unused = torch.zeros(token.shape[0], mask.shape[1], config.d_model)
        hidden = self.model.decoder(
            input_ids=token,
            encoder_hidden_states=unused,
            encoder_attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        if config.scale_decoder_outputs:
            hidden = hidden * config.d_model**-0.5
        logits = self.model.lm_head(hidden)[:, -1] + self.suppressed  # [B, V]
        kept = [each for layer in past.layers for each in (layer.keys, layer.values)]
        return (logits.argmax(-1, keepdim=True), *kept)


def write_network(huggingface: str, output: str, config: T5Config, quantization: str) -> None:
    """Writes the graphs into `output`.

    Args:
      huggingface: the folder that is converted.
      output: a folder that is there.
      config: the student's.
      quantization: 'float32' or 'int8'.
    """
    quiet_transformers()
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(huggingface).eval()
    folder = pathlib.Path(output)
    plain = folder if quantization == FLOAT32 else pathlib.Path(huggingface) / "onnx"
    plain.mkdir(exist_ok=True)
    is_large = sum(each.nbytes for each in model.parameters()) > _MOST_BYTES
    with quiet_export(), torch.no_grad():
        for name, program in _export(model, config):
            program.save(plain / name, external_data=is_large)
            if plain != folder:
                quantize_dynamic(
                    plain / name,
                    folder / name,
                    weight_type=QuantType.QInt8,
                    use_external_data_format=is_large,
                )


def _export(
    model: transformers.T5ForConditionalGeneration, config: T5Config
) -> Iterator[tuple[str, torch.onnx.ONNXProgram]]:
    """(File, graph) of both networks."""
    batch, source, past = 2, 7, 3  # of the example; they are free in the graphs
    rows, width, kept = (
        torch.export.Dim(name, min=1, max=_LONGEST) for name in ("rows", "width", "kept")
    )
    states = 2 * config.num_decoder_layers
    cross_names = [f"{CROSS}_{number}" for number in range(states)]

    # Each example is a tensor of its own: of one that is given twice the exporter makes one input.
    def make_ids(tokens: int) -> torch.Tensor:
        return torch.ones(batch, tokens, dtype=torch.long)

    def make_states(tokens: int) -> list[torch.Tensor]:
        shape = (batch, config.num_heads, tokens, config.head_dim)
        return [torch.ones(shape) for _ in range(states)]

    yield (
        ENCODER_FILE,
        torch.onnx.export(
            _Encoder(model).eval(),
            (make_ids(source), make_ids(source)),
            dynamo=True,
            verbose=False,
            input_names=[INPUT_IDS, MASK],
            output_names=cross_names,
            dynamic_shapes=({0: rows, 1: width}, {0: rows, 1: width}),
        ),
    )
    of_states = [{0: rows, 2: kept}] * states + [{0: rows, 2: width}] * states
    yield (
        DECODER_FILE,
        torch.onnx.export(
            _Decoder(model).eval(),
            (make_ids(1), make_ids(source), *make_states(past), *make_states(source)),
            dynamo=True,
            verbose=False,
            input_names=[TOKEN, MASK, *(f"{PAST}_{n}" for n in range(states)), *cross_names],
            output_names=[NEXT, *(f"{PRESENT}_{n}" for n in range(states))],
            dynamic_shapes=({0: rows}, {0: rows, 1: width}, tuple(of_states)),
        ),
    )
