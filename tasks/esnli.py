"""Natural language inference (e-SNLI), PaLM-540B's rationales."""

from distill_sbs.data import metrics, registration
from distill_sbs.data.dataset import DatasetSpec
from distill_sbs.data.readers import published

registration.register_dataset(
    DatasetSpec(
        name="esnli",
        reader=published.read_esnli,
        is_correct=metrics.answers_match,
        teachers=("palm",),
    )
)
