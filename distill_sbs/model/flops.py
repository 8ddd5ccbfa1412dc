"""The arithmetic that a training step cannot do without, by formula.

Enters: a student's configuration and a batch's shape. Leaves: FLOPs of its matrix products, what
"model FLOPs utilisation" (MFU) counts: no recomputation, nothing elementwise.
"""

from __future__ import annotations

from distill_sbs.model.config import T5Config, T5GemmaConfig


def forward_flops(
    config: T5Config,
    rows: int,
    input_tokens: int,
    target_tokens: int,
    targets_per_row: int = 1,
) -> float:
    """FLOPs of one forward pass over rows of S input and T target positions, padding included.

    A multiplication and an addition are two. Attention counts every pair of positions, masked ones
    too, since the products are computed; but of several targets that answer a row's one input, each
    only its own.
    """
    count = targets_per_row
    width, joined = config.emb_dim, config.num_heads * config.head_dim
    inputs, targets = float(input_tokens), float(target_tokens)  # S, T
    projection = 2.0 * width * joined  # of one position
    feed_forward = 2.0 * width * config.mlp_dim * (len(config.mlp_activations) + 1)

    def attention(queries: float, keys: float) -> float:
        """Query · key and weight · value."""
        return 2 * 2.0 * queries * keys * joined

    if isinstance(config, T5GemmaConfig):
        # Queries and outputs of all heads; keys and values of fewer. One attention of the decoder
        # goes over targets and inputs.
        shared = 2.0 * width * config.num_kv_heads * config.head_dim
        own = 2 * projection + 2 * shared + feed_forward
        encoder = inputs * own + attention(inputs, inputs)
        decoder = targets * own + inputs * 2 * shared + attention(targets, targets + inputs)
        logits = 2.0 * targets * width * config.vocab_size
        layers = config.num_encoder_layers * encoder + config.num_decoder_layers * decoder
        return rows * (layers + logits)
    encoder = inputs * (4 * projection + feed_forward) + attention(inputs, inputs)
    decoder = (
        count * targets * (4 * projection + feed_forward)
        + count * attention(targets, targets)
        # Attention on the encoder: query and output at targets, key and value at inputs.
        + (count * targets + inputs) * 2 * projection
        + count * attention(targets, inputs)
    )
    logits = 2.0 * count * targets * width * config.vocab_size
    return rows * (
        config.num_encoder_layers * encoder + config.num_decoder_layers * decoder + logits
    )


def train_step_flops(
    config: T5Config,
    rows: int,
    input_tokens: int,
    target_tokens: int,
    targets_per_row: int = 1,
) -> float:
    """FLOPs of one training step: the backward pass takes twice the forward pass's products."""
    return 3.0 * forward_flops(config, rows, input_tokens, target_tokens, targets_per_row)


# FLOPs of matrix products in whose time one logit of attention is masked, biased and put through
# softmax, and one of the vocabulary through softmax and the loss: fitted to training steps on CPU
# cores (docs/performance.md).
_FLOPS_OF_AN_ATTENTION_LOGIT = 450.0
_FLOPS_OF_A_VOCABULARY_LOGIT = 200.0


def step_cost(config: T5Config, rows: int, input_tokens: int, target_tokens: int) -> float:
    """What a training step over rows of S + T positions takes, in FLOPs of matrix products.

    Those, and what is elementwise over logits in the time that it takes. It tells how long rows
    should be (`data.batches.layout.choose_layout`).
    """
    inputs, targets = float(input_tokens), float(target_tokens)
    encoder_pairs = config.num_encoder_layers * inputs**2
    decoder_pairs = config.num_decoder_layers * (targets**2 + targets * inputs)
    elementwise = (
        _FLOPS_OF_AN_ATTENTION_LOGIT * config.num_heads * (encoder_pairs + decoder_pairs)
        + _FLOPS_OF_A_VOCABULARY_LOGIT * config.vocab_size * targets
    )
    return 3.0 * rows * elementwise + train_step_flops(config, rows, input_tokens, target_tokens)
