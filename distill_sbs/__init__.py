"""Distilling step-by-step (arXiv 2305.02301) in JAX: a small T5 learns labels and rationales."""

__version__ = "0.1.0"
