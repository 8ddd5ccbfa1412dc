"""An expert's rollouts, scored by it and by an amateur, in parts that a killed job goes on from.

Enters: two checkpoints, texts. Leaves: files `part-00000-of-0000N.npz` in a folder, each whole or
not there; of all of them, the positions that are kept, and toward what.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np
from etils import epath

from distill_sbs import files, json_lines
from distill_sbs.checkpoint.description import RunDescription
from distill_sbs.cli.progress import show_progress
from distill_sbs.contrasting import scoring, selection
from distill_sbs.contrasting.options import ContrastOptions
from distill_sbs.distributed import processes
from distill_sbs.errors import UserError
from distill_sbs.inference import batch_decoder
from distill_sbs.inference.student import Student
from distill_sbs.training.program import LOGITS_BYTES_PER_DEVICE

# What is trained on of a rollout: its place, inputs, targets, ids, weights, weights of positions,
# divergences.
Row: TypeAlias = tuple[int, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]
# A text, and the tokens of its teacher's rationale.
Gold: TypeAlias = Sequence[tuple[str, np.ndarray]]


def check_pair(
    expert: RunDescription, amateur: RunDescription, expert_folder: str, amateur_folder: str
) -> None:
    """Refuses two students whose tokens do not mean the same.

    Raises:
      UserError: their vocabularies differ, or the numbers of tokens that they embed; or one was
        trained with SHARED_ENCODER.
    """
    for role, each, folder in (
        ("expert", expert, expert_folder),
        ("amateur", amateur, amateur_folder),
    ):
        if each.shares_encoder:
            raise UserError(
                f"the {role} {folder} was trained with SHARED_ENCODER = True, and a contrast tells "
                "rationales from labels by a prefix of the input; give one that was trained with "
                "SHARED_ENCODER = False"
            )
    kinds = [each.vocabulary.get("sha256", each.vocabulary["kind"]) for each in (expert, amateur)]
    sizes = [each.student.vocab_size for each in (expert, amateur)]
    if kinds[0] != kinds[1]:
        pieces = [each.vocabulary["size"] for each in (expert, amateur)]
        raise UserError(
            f"the expert {expert_folder} and the amateur {amateur_folder} have different "
            f"vocabularies ({pieces[0]} and {pieces[1]} pieces): expected one; train the amateur "
            "with the expert's VOCABULARY_FILE"
        )
    if sizes[0] != sizes[1]:
        raise UserError(
            f"the expert {expert_folder} embeds {sizes[0]} tokens, the amateur {amateur_folder} "
            f"{sizes[1]}: expected as many; train the amateur with STUDENT_OVERRIDES = "
            f"{{'vocab_size': {sizes[0]}}}"
        )


def check_same(
    folder: str,
    there: Mapping[str, object],
    hashes: Sequence[str],
    options: Mapping[str, object],
) -> None:
    """Refuses a contrast that is there already, made otherwise.

    Raises:
      UserError: names each difference.
    """
    wanted = {f"--{name}": value for name, value in options.items()}
    now: dict[str, object] = {"expert": hashes[0], "amateur": hashes[1], **wanted}
    differences = [
        f"{name}: {str(there.get(name)):.12} there, {str(value):.12} now"
        for name, value in now.items()
        if there.get(name) != value
    ]
    if differences:
        raise UserError(
            f"{folder} holds another contrast ({'; '.join(differences)}); choose another --name, "
            "or delete that folder"
        )


def name_work(
    options: ContrastOptions, hashes: Sequence[str], inputs: Sequence[str], gold: Gold | None
) -> str:
    """The name of the folder of rollouts: contrasts that need the same ones share it."""
    total = hashlib.sha256(json.dumps([options.of_rollouts(), *hashes, *inputs]).encode())
    for _, tokens in gold or ():
        total.update(tokens.astype(np.int32).tobytes())
    return total.hexdigest()[:16]


def remember(
    path: epath.Path, measure: Callable[[], dict[str, float]], is_first: bool
) -> dict[str, float]:
    """What a file says, or what is measured, which it then says."""
    found = json_lines.read_json(path) if path.exists() else None
    processes.wait_for_all(f"{path.name} is read")
    if isinstance(found, dict):
        return {name: value for name, value in found.items() if isinstance(value, int | float)}
    measured = measure()
    if is_first:
        files.write_file(path, json.dumps(measured) + "\n")
    return measured


@dataclasses.dataclass(frozen=True)
class Contest:
    """Two students on one mesh.

    Attributes:
      expert: the one to improve.
      amateur: the weaker one.
      options: how they are compared.
    """

    expert: Student
    amateur: Student
    options: ContrastOptions

    @classmethod
    def load(
        cls, expert: str, amateur: str, num_model_partitions: int, options: ContrastOptions
    ) -> Contest:
        """Loads both; see `Student.load`."""
        first, second = (Student.load(each, num_model_partitions) for each in (expert, amateur))
        return cls(first, second, options)

    def make_rollouts(
        self, folder: epath.Path, inputs: Sequence[str], gold: Gold | None, is_first: bool
    ) -> None:
        """Decodes and scores what is not in `folder` yet.

        Args:
          folder: of the parts.
          inputs: texts without prefix.
          gold: the same with rationales, which stand in the place of decoded ones.
          is_first: whether this process writes.
        """
        options, expert = self.options, self.expert
        missing = [
            number
            for number, path in enumerate(self._parts(folder, len(inputs)))
            if not path.exists()
        ]
        processes.wait_for_all("what is missing is known")
        if not missing:
            return
        rows = scoring.choose_rows(options.batch_size, expert.mesh)
        tokens = [expert.tokens(text, "rationale") for text in inputs]
        longest = max(map(len, tokens))
        width = -(-longest // batch_decoder.WIDTH_MULTIPLE) * batch_decoder.WIDTH_MULTIPLE
        decoder = batch_decoder.Decoder(
            expert.model, expert.mesh, options.max_rollout, options.batch_size
        )
        chunk = LOGITS_BYTES_PER_DEVICE * expert.mesh.size // (4 * expert.model.config.vocab_size)
        scorer = scoring.PairScorer(
            expert.model, self.amateur.model, expert.mesh, options.alpha, options.top_k, chunk
        )
        paths = self._parts(folder, len(inputs))
        with show_progress("contrasting", len(inputs), silent=not is_first) as advance:
            for number in range(len(paths)):
                start = number * options.shard_size
                part = tokens[start : start + options.shard_size]
                if number not in missing:
                    advance(len(part))
                    continue
                if gold is None:
                    # All as wide as the widest: what is compiled does not depend on the part.
                    filled = [np.pad(each, (0, width - len(each))) for each in part]
                    outputs = decoder(expert.params, filled)
                    targets = [each[: scoring.target_length(each)] for each in outputs]
                else:
                    targets = [rationale for _, rationale in gold[start : start + len(part)]]
                compared = []
                for begin in range(0, len(part), rows):
                    batch = scoring.pad_batch(
                        part[begin : begin + rows],
                        targets[begin : begin + rows],
                        rows,
                        width,
                        options.max_rollout,
                    )
                    scores = scorer(expert.params, self.amateur.params, batch)
                    here = len(part[begin : begin + rows])
                    compared.append([array[:here] for array in scores])
                    advance(here)
                columns = [np.concatenate(column) for column in zip(*compared, strict=True)]
                if is_first:
                    padded = scoring.pad_batch(part, targets, len(part), width, options.max_rollout)
                    _save(paths[number], padded, part, targets, columns)
        processes.wait_for_all("all rollouts are saved")

    def select(self, folder: epath.Path, problems: int) -> tuple[selection.Figures, Iterator[Row]]:
        """What the manifest says of the rollouts in `folder`, and the rows to write."""
        options = self.options
        paths = self._parts(folder, problems)
        pieces, plausible, lengths = [], [], []
        for path in paths:
            part = load_part(path)
            valid = part.find_valid(options.skip_first)
            pieces.append(part.divergence[valid])
            plausible.append(part.plausible[valid])
            lengths.append(valid.sum(axis=1))
        divergences = np.concatenate(pieces)
        beta = selection.choose_beta(divergences, options)
        kept = selection.choose_kept(divergences, beta, options)
        # The kept positions of each part, and of each rollout.
        parts = np.split(kept, np.cumsum([len(piece) for piece in pieces])[:-1])
        per_rollout = np.concatenate(lengths)
        owners = np.repeat(np.arange(len(per_rollout)), per_rollout)
        counts = np.bincount(owners[kept], minlength=len(per_rollout))
        used = per_rollout > 0 if options.anchor_weight > 0 else counts > 0
        top_k = min(options.top_k, self.expert.model.config.vocab_size)
        said = selection.Figures(
            beta=beta,
            problems=problems,
            examples=int(used.sum()),
            valid=len(divergences),
            kept=int(kept.sum()),
            overflow=int((np.concatenate(plausible)[kept] > top_k).sum()),
            top_k=top_k,
            mean_divergence=float(divergences.mean()) if len(divergences) else 0.0,
            histogram=selection.count_bins(divergences),
        )
        return said, self._rows(paths, parts, used)

    def _rows(
        self, paths: Sequence[epath.Path], kept: Sequence[np.ndarray], used: np.ndarray
    ) -> Iterator[Row]:
        index = 0
        for path, kept_here in zip(paths, kept, strict=True):
            part = load_part(path)
            valid = part.find_valid(self.options.skip_first)
            chosen = np.zeros_like(valid)
            chosen[valid] = kept_here
            labels = selection.make_labels(part, valid, chosen, self.options)
            for row, length in enumerate(part.lengths):
                if used[index]:
                    yield (
                        index,
                        part.inputs[row, : part.input_lengths[row]],
                        part.targets[row, :length],
                        labels.ids[row, :length],
                        labels.weights[row, :length],
                        labels.step_weights[row, :length],
                        part.divergence[row, :length],
                    )
                index += 1

    def _parts(self, folder: epath.Path, problems: int) -> list[epath.Path]:
        count = -(-problems // self.options.shard_size)
        return [folder / f"part-{number:05d}-of-{count:05d}.npz" for number in range(count)]


def _save(
    path: epath.Path,
    batch: Mapping[str, np.ndarray],
    inputs: Sequence[np.ndarray],
    targets: Sequence[np.ndarray],
    columns: Sequence[np.ndarray],
) -> None:
    arrays = [
        batch["encoder_input_tokens"],
        np.array([len(each) for each in inputs], np.int32),
        batch["decoder_target_tokens"],
        np.array([len(each) for each in targets], np.int32),
        *columns,
    ]
    names = [field.name for field in dataclasses.fields(selection.Rollouts)]
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **dict(zip(names, arrays, strict=True)))
    with files.open_replacement(path, "wb") as file:
        file.write(content.getvalue())


def load_part(path: epath.Path) -> selection.Rollouts:
    """What a part holds.

    Raises:
      UserError: it is not as it was written.
    """
    names = [field.name for field in dataclasses.fields(selection.Rollouts)]
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
            return selection.Rollouts(*(stored[name] for name in names))
    except (ValueError, KeyError, OSError, EOFError) as error:
        raise UserError(
            f"{path} is not as it was written ({str(error).splitlines()[0]}); delete it, and the "
            "same command makes it again"
        ) from None
