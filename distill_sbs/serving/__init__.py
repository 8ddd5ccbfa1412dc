"""A student that answers over HTTP. Needs neither JAX nor TensorFlow nor torch."""
