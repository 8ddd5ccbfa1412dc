"""Plain text of any kind, below TEXT_DIR: for pretraining."""

from distill_sbs.data import registration
from distill_sbs.data.tasks.texts import TextFolder

registration.register_pretraining("text", TextFolder())
