"""Prepared records: joined, written, read."""
