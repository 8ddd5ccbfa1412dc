"""T5X's checkpoints: layouts on disk, parameter names, files."""
