"""Generated comparisons of hidden weights, closed-book: embedded, nothing to download."""

from distill_sbs.data import metrics, registration
from distill_sbs.data.dataset import DatasetSpec
from distill_sbs.data.readers import comparisons
from distill_sbs.data.readers.shuffled_rationales import SHUFFLED_TEACHER

registration.register_dataset(
    DatasetSpec(
        name="comparisons",
        reader=comparisons.read,
        is_correct=metrics.answers_match,
        teachers=(comparisons.TEACHER, SHUFFLED_TEACHER),
        needs_source_dir=False,
    )
)
