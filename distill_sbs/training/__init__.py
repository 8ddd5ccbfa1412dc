"""One training run: its step, its program, its optimizer, what it logs."""
