"""Adversarial natural language inference, round 1, PaLM-540B's rationales."""

from distill_sbs.data import metrics, registration
from distill_sbs.data.dataset import DatasetSpec
from distill_sbs.data.readers import published

registration.register_dataset(
    DatasetSpec(
        name="anli1",
        reader=published.read_anli1,
        is_correct=metrics.answers_match,
        teachers=("palm",),
    )
)
