"""Commonsense multiple choice (CoS-E 1.11), PaLM-540B's rationales."""

from distill_sbs.data import metrics, registration
from distill_sbs.data.dataset import DatasetSpec
from distill_sbs.data.readers import published

registration.register_dataset(
    DatasetSpec(
        name="cqa",
        reader=published.read_cqa,
        is_correct=metrics.answers_match,
        teachers=("palm",),
    )
)
