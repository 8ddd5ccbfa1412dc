"""Arithmetic word problems (ASDiv), training only: the unlabelled data that augments SVAMP."""

from distill_sbs.data import metrics, registration
from distill_sbs.data.dataset import DatasetSpec
from distill_sbs.data.readers import published

registration.register_dataset(
    DatasetSpec(
        name="asdiv",
        reader=published.read_asdiv,
        is_correct=metrics.equations_match,
        teachers=("palm",),
        splits=("train",),
    )
)
