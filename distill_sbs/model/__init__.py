"""The student: T5 in Flax, its decoding and its losses. JAX only; runs without TensorFlow and seqio."""
