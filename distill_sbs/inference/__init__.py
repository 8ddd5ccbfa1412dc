"""A trained student that answers. JAX only: runs without TensorFlow and SeqIO."""
