"""Generated arithmetic word problems whose label is an equation: embedded, nothing to download."""

from distill_sbs.data import metrics, registration
from distill_sbs.data.dataset import DatasetSpec
from distill_sbs.data.readers import wordproblems
from distill_sbs.data.readers.shuffled_rationales import SHUFFLED_TEACHER

registration.register_dataset(
    DatasetSpec(
        name="wordproblems",
        reader=wordproblems.read,
        is_correct=metrics.equations_match,
        teachers=(wordproblems.TEACHER, SHUFFLED_TEACHER),
        needs_source_dir=False,
    )
)
