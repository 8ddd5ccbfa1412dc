"""Distilling step-by-step (arXiv 2305.02301) in JAX: a small T5 learns labels and rationales.

Enters: nothing. Leaves: the public names below. Each is imported when it is first asked for, so
that `import distill_sbs` is quick and needs neither TensorFlow nor JAX. Where Python is about to
run a program of this project, its working folder goes to the end of `sys.path` here and Ctrl-C is
handled from here on; a program that merely imports the package keeps both as they are.
"""

from distill_sbs.cli import working_folder

working_folder.put_working_folder_last()

# After the line above: the working folder may hold a typing.py.
import importlib  # noqa: E402
from typing import TYPE_CHECKING  # noqa: E402

from distill_sbs.cli import interrupts, python_messages  # noqa: E402

# Here, for the modules of an entry point take a while to import.
python_messages.watch()
interrupts.watch()

__version__ = "0.2.0"

if TYPE_CHECKING:
    from distill_sbs.config import TrainConfig as TrainConfig
    from distill_sbs.data.dataset import DatasetSpec as DatasetSpec
    from distill_sbs.data.huggingface import HuggingFaceReader as HuggingFaceReader
    from distill_sbs.data.jsonl import JsonlReader as JsonlReader
    from distill_sbs.data.registration import register_dataset as register_dataset
    from distill_sbs.data.tables import TableReader as TableReader
    from distill_sbs.data.tfds import TfdsReader as TfdsReader
    from distill_sbs.errors import UserError as UserError
    from distill_sbs.extract import extract as extract
    from distill_sbs.inference.student import Student as Student
    from distill_sbs.prepare import prepare as prepare
    from distill_sbs.teacher.options import ExtractConfig as ExtractConfig
    from distill_sbs.train import train as train

# Name -> the module that has it.
_HOMES = {
    "DatasetSpec": "distill_sbs.data.dataset",
    "ExtractConfig": "distill_sbs.teacher.options",
    "HuggingFaceReader": "distill_sbs.data.huggingface",
    "JsonlReader": "distill_sbs.data.jsonl",
    "Student": "distill_sbs.inference.student",
    "TableReader": "distill_sbs.data.tables",
    "TfdsReader": "distill_sbs.data.tfds",
    "TrainConfig": "distill_sbs.config",
    "UserError": "distill_sbs.errors",
    "extract": "distill_sbs.extract",
    "prepare": "distill_sbs.prepare",
    "register_dataset": "distill_sbs.data.registration",
    "train": "distill_sbs.train",
}
_NEED_TENSORFLOW = {"register_dataset"}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'distill_sbs' has no attribute {name!r}")
    if name in _NEED_TENSORFLOW:
        from distill_sbs.cli import quiet_tensorflow

        quiet_tensorflow.import_tensorflow()
    module = importlib.import_module(_HOMES[name])
    # `train`, `prepare`, `extract` are modules as well as functions. Python makes a submodule an
    # attribute when it is imported, so the name is that of the module, which can be called.
    found = module if module.__name__ == f"distill_sbs.{name}" else getattr(module, name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
