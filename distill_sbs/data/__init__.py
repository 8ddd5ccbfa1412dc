"""From published files or a user's JSONL to batches of token arrays. TensorFlow and SeqIO; no JAX."""
