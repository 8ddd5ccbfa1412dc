"""One training run: its step, its program, its optimizer, what it logs.

Only `run_log` needs TensorFlow, to write TensorBoard's events.
"""
