"""Names and numbers that every stage shares: record fields, feature keys, task ids, prefixes."""

from __future__ import annotations

# Record fields; teacher fields are f"{teacher}_label" and f"{teacher}_rationale".
ID = "id"
INDEX = "index"  # position in the prepared split, 0 .. examples - 1
INPUT = "input"
LABEL = "label"

# Task features (SeqIO output features, the keys of TASK_FEATURE_LENGTHS).
INPUTS = "inputs"
TARGETS = "targets"
TASK_IDS = "task_ids"

# One task id stands beside every target token; 0 is padding, as SeqIO packing demands
# (it casts to int32 and drops zeros).
PADDING_TASK_ID = 0
LABEL_TASK_ID = 1
RATIONALE_TASK_ID = 2
CONTRAST_TASK_ID = 3  # its loss is that of soft labels, which our own engine alone has

# Model features, T5X's names and ours.
ENCODER_INPUT_TOKENS = "encoder_input_tokens"
ENCODER_SEGMENT_IDS = "encoder_segment_ids"
ENCODER_POSITIONS = "encoder_positions"
DECODER_INPUT_TOKENS = "decoder_input_tokens"
DECODER_TARGET_TOKENS = "decoder_target_tokens"
DECODER_SEGMENT_IDS = "decoder_segment_ids"
DECODER_POSITIONS = "decoder_positions"
DECODER_LOSS_WEIGHTS = "decoder_loss_weights"
DECODER_TASK_IDS = "decoder_task_ids"
# Soft labels: K tokens of every target position, their weights, and the weight of the position.
DECODER_SOFT_IDS = "decoder_soft_ids"
DECODER_SOFT_WEIGHTS = "decoder_soft_weights"
DECODER_STEP_WEIGHTS = "decoder_step_weights"
# Where the encoder is shared: the encoder segment that each target answers.
DECODER_SOURCE_SEGMENT_IDS = "decoder_source_segment_ids"
PAIRS = "pairs"  # decoder segments of each pair's label and rationale, of our own engine alone

# Prefixes of the published implementation; the paper's text prints them as [label], [rationale].
LABEL_PREFIX = "predict: "
RATIONALE_PREFIX = "explain: "

# RATIONALE_FILTER: which examples' rationales are trained on.
RATIONALE_FILTERS = ("all", "agreeing")

PAD_ID = 0
EOS_ID = 1

# The decoder's first input token, by task: T5's own, whatever the task, where a prefix of the input
# tells it; or where the encoder is shared, and no prefix does (SHARED_ENCODER), another one for
# rationales. The end token is in every vocabulary, and is no other target's input.
DECODER_STARTS = {"label": PAD_ID, "rationale": PAD_ID}
SHARED_DECODER_STARTS = {"label": PAD_ID, "rationale": EOS_ID}

# What a run leaves in its MODEL_DIR for others to read.
CONFIG_FILE = "config.gin"
RESULTS_FILE = "results.json"
