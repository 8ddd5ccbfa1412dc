"""Weights of HuggingFace and T5X to and from the tree of `distill_sbs.model`."""
