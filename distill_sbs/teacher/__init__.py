"""The teacher half: prompts, an OpenAI-compatible client, extraction.

No JAX; and TensorFlow only where the inputs are prepared records (`teacher.inputs`).
"""
