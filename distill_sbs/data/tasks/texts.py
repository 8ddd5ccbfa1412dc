"""A folder of text files as a source of SeqIO tasks, and its tokens.

Enters: `TEXT_DIR`, whose files `*.txt` (of subfolders too) hold plain text in UTF-8. Leaves: texts,
each of up to 16 lines of a file; one in twenty is held out as validation. Which one is decided by
its content, so that neither the number of files nor of processes moves a text into the other split,
and a text that stands twice is in one split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import seqio
import tensorflow as tf
from etils import epath

from distill_sbs import constants, json_lines
from distill_sbs.data import settings, vocabulary
from distill_sbs.errors import UserError

LINES_PER_TEXT = 16
HELD_OUT_ONE_IN = 20


class TextFolder(seqio.DataSource):
    """The texts below `TEXT_DIR`; it is looked at when data is asked for, never before."""

    def __init__(self) -> None:
        super().__init__(splits=("train", "validation"))

    @property
    def supports_arbitrary_sharding(self) -> bool:
        """Any number of hosts may share it: by texts."""
        return True

    def __repr__(self) -> str:
        return "TextFolder()"

    def list_shards(self, split: str) -> Sequence[str]:
        """The text files, in order; every split reads all of them.

        Raises:
          UserError: there is none.
        """
        del split
        folder = settings.current().text_folder
        files = sorted(
            str(place / name)
            for place, _, names in epath.Path(folder).walk()
            for name in names
            if name.endswith(".txt")
        )
        if not files:
            raise UserError(
                f"TEXT_DIR={folder!r} holds no *.txt; give a folder of text files, or fetch some "
                "with benchmarks/fetch_text.py"
            )
        return files

    def check_files(self) -> None:
        """Reads every file once.

        Raises:
          UserError: there is none.
          SourceError: a line is no UTF-8; file and line are named.
        """
        for file in self.list_shards("train"):
            for _ in json_lines.read_lines(file):
                pass

    def num_input_examples(self, split: str) -> int | None:
        """None: nobody has counted them."""
        del split
        return None

    def get_dataset(
        self,
        split: str = "train",
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        *,
        sequence_length: Mapping[str, int] | None = None,
        use_cached: bool = False,
        num_epochs: int | None = 1,
    ) -> tf.data.Dataset:
        """The texts of `split`, {input: scalar string}; see `seqio.DataSource.get_dataset`.

        Raises:
          UserError: there is no text, or DATA_FRACTION asks for a part of it.
        """
        chosen = settings.current()
        if split == "train" and chosen.data_fraction != 1.0:
            raise UserError(
                f"DATA_FRACTION={chosen.data_fraction}: text_pretrain reads TEXT_DIR as it is; set "
                "DATA_FRACTION = 1.0, and give a folder with less text"
            )
        files = tf.data.Dataset.from_tensor_slices(list(self.list_shards(split)))
        if shuffle:
            files = files.shuffle(1_000, seed=seed)
        texts = files.flat_map(_read_texts).filter(
            lambda text: _is_held_out(text) if split == "validation" else ~_is_held_out(text)
        )
        if shard_info:
            texts = texts.shard(shard_info.num_shards, shard_info.index)
        return texts.map(lambda text: {constants.INPUT: text})


def _read_texts(file: tf.Tensor) -> tf.data.Dataset:
    """The texts of one file; lines without a word are left out of them."""

    def join(lines: tf.Tensor) -> tf.Tensor:
        has_words = tf.strings.length(tf.strings.strip(lines)) > 0
        return tf.strings.reduce_join(tf.boolean_mask(lines, has_words), separator="\n")

    # Many lines a call: one call a line takes ten times as long.
    texts = tf.data.TextLineDataset(file).batch(LINES_PER_TEXT).map(join)
    return texts.filter(lambda text: tf.strings.length(text) > 0)


def _is_held_out(text: tf.Tensor) -> tf.Tensor:
    return tf.strings.to_hash_bucket_fast(text, HELD_OUT_ONE_IN) == 0


def encode_inputs(
    dataset: tf.data.Dataset, output_features: Mapping[str, seqio.Feature]
) -> tf.data.Dataset:
    """A SeqIO preprocessor: {input: text} → {targets: int32 [N]}, no prefix and no end token.

    A text may stand under `text` too, as in many datasets of TFDS, or alone, as lines of files do.
    """
    loaded = output_features[constants.TARGETS].vocabulary

    def encode(example: tf.Tensor | Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        text = example
        if isinstance(example, Mapping):
            text = example[constants.INPUT if constants.INPUT in example else "text"]
        return {constants.TARGETS: vocabulary.encode_text_tf(loaded, text)}

    return dataset.map(encode, num_parallel_calls=tf.data.AUTOTUNE)


def number_rows(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """A SeqIO preprocessor: gives every row its place, int64, as records have."""

    def add(number: tf.Tensor, example: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return {**example, constants.INDEX: number}

    return dataset.enumerate().map(add)
