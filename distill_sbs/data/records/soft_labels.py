"""Records of a contrast: rollouts with soft labels, and a manifest that says how they came to be.

Enters: rows of `contrast` (writing); `DATA_DIR/contrast/{dataset}/{name}` (reading). Leaves: files
`train.tfrecord-00000-of-0000N` and `manifest.json`; parsed records.

A record is a `tf.train.Example`: int64 `index`, `inputs` [S] and `targets` [T], with end tokens;
`soft_ids` [T·K] and float `soft_weights` [T·K], a position's K side by side; float `step_weights`
[T] and, to look at, `kl` [T].
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from etils import epath

from distill_sbs import constants, files, json_lines
from distill_sbs.errors import SourceError, UserError

FORMAT_VERSION = 1
MANIFEST_FILE = "manifest.json"
FOLDER = "contrast"
SOFT_IDS, SOFT_WEIGHTS, STEP_WEIGHTS = "soft_ids", "soft_weights", "step_weights"

ROWS_PER_SHARD = 4096


class ContrastRow(NamedTuple):
    """One rollout.

    Attributes:
      place: its input's place.
      inputs: int [S].
      targets: int [T].
      ids: int [T, K].
      weights: float [T, K].
      step_weights: float [T].
      divergence: float [T].
    """

    place: int
    inputs: np.ndarray
    targets: np.ndarray
    ids: np.ndarray
    weights: np.ndarray
    step_weights: np.ndarray
    divergence: np.ndarray


@dataclasses.dataclass(frozen=True)
class Manifest:
    """How the records came to be.

    Attributes:
      dataset: whose inputs they are.
      name: of the contrast.
      teacher: whose rationales the expert learned; None where it names none.
      options: of `contrasting.options.ContrastOptions`, by name, and what else chose the inputs.
      expert: sha256 of the parameters that decoded, which tuning starts from.
      amateur: sha256 of the amateur's.
      vocabulary: the sha256 of both, or 'bytes'.
      beta: the least divergence of a kept position, in nats.
      problems: inputs that were decoded.
      examples: rollouts in the records.
      valid: positions that could be kept.
      kept: positions that are.
      overflow: kept positions of more plausible tokens than `top_k`.
      top_k: K of the records.
      mean_divergence: over valid positions, in nats.
      histogram: valid positions by divergence (`contrasting.selection.HISTOGRAM_EDGES`).
      validation: accuracy of labels, 0 to 1, of `expert` and `amateur`, where it is known.
    """

    dataset: str
    name: str
    teacher: str | None
    options: Mapping[str, object]
    expert: str
    amateur: str
    vocabulary: str
    beta: float
    problems: int
    examples: int
    valid: int
    kept: int
    overflow: int
    top_k: int
    mean_divergence: float
    histogram: Sequence[int]
    validation: Mapping[str, float]

    @property
    def identity(self) -> dict[str, object]:
        """What makes two contrasts the same."""
        options = {f"--{name}": value for name, value in self.options.items()}
        return {"expert": self.expert, "amateur": self.amateur, **options}


def find_folder(data_dir: epath.PathLike, dataset: str, name: str) -> epath.Path:
    """Where a contrast lies."""
    return epath.Path(data_dir) / FOLDER / dataset / name


def read_manifest(folder: epath.Path) -> Manifest | None:
    """What a contrast says of itself; None where there is none.

    Raises:
      UserError: it is not as it was written, or of another version.
    """
    path = folder / MANIFEST_FILE
    if not path.exists():
        return None
    try:
        values = json_lines.read_json(path)
    except SourceError as error:
        raise UserError(f"{error}; delete {folder} and make the contrast again") from None
    expected = {field.name for field in dataclasses.fields(Manifest)}
    if not isinstance(values, dict) or values.pop("format_version", None) != FORMAT_VERSION:
        raise UserError(
            f"{path} is no manifest of format {FORMAT_VERSION}; make the contrast again"
        )
    if set(values) != expected:
        wrong = ", ".join(sorted(expected ^ set(values)))
        raise UserError(f"{path}: {wrong} missing or unknown; make the contrast again")
    return Manifest(**values)  # type: ignore[arg-type]  # `write_contrast` wrote it


def write_contrast(folder: epath.Path, manifest: Manifest, rows: Iterable[ContrastRow]) -> None:
    """Writes records and manifest; `folder` holds all of them, or what it held before."""
    shards = max(1, -(-manifest.examples // ROWS_PER_SHARD))
    with files.replace_folder(folder) as partial:
        stream = iter(rows)
        for shard in range(shards):
            path = partial / f"train.tfrecord-{shard:05d}-of-{shards:05d}"
            with tf.io.TFRecordWriter(str(path)) as writer:
                for row, _ in zip(stream, range(ROWS_PER_SHARD), strict=False):
                    writer.write(_serialise(row))
        values = {"format_version": FORMAT_VERSION, **dataclasses.asdict(manifest)}
        (partial / MANIFEST_FILE).write_text(json.dumps(values, indent=2) + "\n")


def list_shards(folder: epath.Path) -> list[str]:
    """The record files, in order.

    Raises:
      UserError: one is missing.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise UserError(f"{folder} holds no contrast; python -m distill_sbs.contrast makes one")
    shards = max(1, -(-manifest.examples // ROWS_PER_SHARD))
    paths = [folder / f"train.tfrecord-{n:05d}-of-{shards:05d}" for n in range(shards)]
    for path in paths:
        if not path.exists():
            raise UserError(f"{path} is missing; delete {folder} and make the contrast again")
    return [str(path) for path in paths]


def _serialise(row: ContrastRow) -> bytes:
    def whole(values: np.ndarray) -> tf.train.Feature:
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values.reshape(-1)))

    def real(values: np.ndarray) -> tf.train.Feature:
        return tf.train.Feature(float_list=tf.train.FloatList(value=values.reshape(-1)))

    features = {
        constants.INDEX: whole(np.array(row.place)),
        constants.INPUTS: whole(row.inputs),
        constants.TARGETS: whole(row.targets),
        SOFT_IDS: whole(row.ids),
        SOFT_WEIGHTS: real(row.weights),
        STEP_WEIGHTS: real(row.step_weights),
        "kl": real(row.divergence),
    }
    record = tf.train.Example(features=tf.train.Features(feature=features))
    # A map's order is not told; the same rows are to be the same bytes.
    serialised: bytes = record.SerializeToString(deterministic=True)
    return serialised


def parse_record(serialised: tf.Tensor) -> dict[str, tf.Tensor]:
    """A record's fields as tensors, for a tf.data map; whole numbers as int32."""
    whole = (constants.INPUTS, constants.TARGETS, SOFT_IDS)
    features: dict[str, object] = {
        name: tf.io.FixedLenSequenceFeature([], tf.int64, allow_missing=True) for name in whole
    }
    for name in (SOFT_WEIGHTS, STEP_WEIGHTS):
        features[name] = tf.io.FixedLenSequenceFeature([], tf.float32, allow_missing=True)
    features[constants.INDEX] = tf.io.FixedLenFeature([], tf.int64)
    fields: dict[str, tf.Tensor] = tf.io.parse_single_example(serialised, features)
    return {**fields, **{name: tf.cast(fields[name], tf.int32) for name in whole}}
