"""Compiles a run's programs for chips that need not be at hand, and reads what they need."""
