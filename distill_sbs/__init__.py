"""Distilling step-by-step (arXiv 2305.02301) in JAX: a small T5 learns labels and rationales."""

from distill_sbs.cli import working_folder

__version__ = "0.1.0"

working_folder.put_working_folder_last()
