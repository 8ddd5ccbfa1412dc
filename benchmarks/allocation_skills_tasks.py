"""The datasets that benchmarks/allocation_skills.py writes; a task file."""

from __future__ import annotations

from distill_sbs.data import metrics
from distill_sbs.data.dataset import DatasetSpec
from distill_sbs.data.jsonl import JsonlReader
from distill_sbs.data.registration import register_dataset

for name in ("add", "max", "compare", "clash", "both"):
    reader = JsonlReader(
        train=f"{name}.jsonl", validation=f"{name}_validation.jsonl", test=f"{name}_test.jsonl"
    )
    register_dataset(DatasetSpec(name, reader, metrics.answers_match, ()))
