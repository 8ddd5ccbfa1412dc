"""Arithmetic word problems (SVAMP) whose label is an equation, PaLM-540B's rationales."""

from distill_sbs.data import metrics, registration
from distill_sbs.data.dataset import DatasetSpec
from distill_sbs.data.readers import published

registration.register_dataset(
    DatasetSpec(
        name="svamp",
        reader=published.read_svamp,
        is_correct=metrics.equations_match,
        teachers=("palm",),
    )
)
