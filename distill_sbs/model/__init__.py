"""The student: T5 in Flax, decoding, losses. JAX only: runs without TensorFlow and seqio."""
