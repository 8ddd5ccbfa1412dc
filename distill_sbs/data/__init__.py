"""From published files or a user's JSONL to batches of tokens. TensorFlow and SeqIO; no JAX."""
