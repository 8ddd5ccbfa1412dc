"""The teacher half: prompts, an OpenAI-compatible client, extraction. No TensorFlow, no JAX."""
