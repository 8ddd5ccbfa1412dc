"""T5X's checkpoints as our parameters, and our parameters as a checkpoint of T5X.

Enters: a checkpoint that T5X wrote, in any of its layouts (`disk_layouts`) and of either of its
networks (`network_kinds`); or a `ParameterSource` of any form.
Leaves: a `ParameterSource`; or a folder with a `checkpoint_N` that `t5x.train`, `t5x.eval` and
`t5x.infer` restore. Neither needs T5X, TensorFlow, or a device.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping

import numpy as np
from etils import epath
from flax import traverse_util

from distill_sbs.convert.source import Index, ParameterSource
from distill_sbs.convert.t5x import disk_layouts, network_kinds
from distill_sbs.errors import DamagedError, UserError
from distill_sbs.model.config import T5Config, T5GemmaConfig


class T5XSource(ParameterSource):
    """A checkpoint as T5X itself writes them.

    All tensors' files are opened at once. None is read, but for the small tables of relative
    positions of `scalable_t5`, one a layer: where all of a side are equal they are one, and the
    checkpoint is a T5's; where not, each layer keeps its own, as in umT5.

    Args:
      location: a folder `checkpoint_N`, or a MODEL_DIR, of which the newest is taken; local or
        gs://.

    Raises:
      UserError: no checkpoint there; a file missing or damaged; not a T5.
    """

    def __init__(self, location: str) -> None:
        folder = disk_layouts.find_checkpoint(location)
        self.location = str(folder)
        self._parts: dict[str, network_kinds.Part] = {}
        for name, values in disk_layouts.open_tensors(folder).items():
            for path, part in network_kinds.list_parts(name, values):
                if path in self._parts:
                    raise UserError(
                        f"{self.location} has tensor {path} twice, stacked with its layer's "
                        "neighbours and by itself; were two checkpoints copied into one folder?"
                    )
                self._parts[path] = part
        self._share_positions()
        self.config = _find_config(self.shapes(), self.location)

    def _share_positions(self) -> None:
        """One table of relative positions a side, in the place of equal ones of all its layers."""
        tables: dict[str, list[str]] = {}
        for path in self._parts:
            layer = network_kinds.LAYER.fullmatch(path)
            if layer and layer[3] == network_kinds.POSITIONS:
                tables.setdefault(f"{layer[1]}/{network_kinds.POSITIONS}", []).append(path)
        for shared, paths in tables.items():
            if shared in self._parts:
                paths.insert(0, shared)
            first = self.read(paths[0])
            if not all(np.array_equal(self.read(path), first) for path in paths[1:]):
                return
        for shared, paths in tables.items():
            parts = [self._parts.pop(path) for path in paths]
            self._parts[shared] = parts[0]

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """See `ParameterSource`."""
        return {path: part.shape for path, part in self._parts.items()}

    def _read(self, path: str, index: Index | None) -> np.ndarray:
        # T5X's own chunks of stacked layers each hold all layers, and a chunk is decompressed
        # whole, so reading layer by layer decompresses the tensor as many times.
        if path not in self._parts:
            raise UserError(
                f"{self.location} has no tensor {path}; is it a checkpoint of another model?"
            )
        try:
            return self._parts[path].read(index)
        except Exception as error:
            cause = disk_layouts.shorten_error(error)
            raise DamagedError(f"{self.location}: tensor {path}", cause) from error


def _find_config(shapes: Mapping[str, tuple[int, ...]], location: str) -> T5Config:
    """The architecture that shapes show; `ParameterSource.check` compares the rest with it."""

    def matrix(path: str) -> tuple[int, ...]:
        if len(shapes.get(path, ())) != 2:
            found = f"has shape {shapes[path]}" if path in shapes else "is missing"
            raise UserError(
                f"{location}: tensor {path} {found}, expected two dimensions, as in T5X's own T5; "
                f"is it a checkpoint of another model? It has {', '.join(sorted(shapes)[:3])}, …"
            )
        return shapes[path]

    def layers(side: str) -> int:
        matches = [network_kinds.LAYER.fullmatch(path) for path in shapes]
        return 1 + max(
            (int(match[2]) for match in matches if match and match[1] == side), default=0
        )

    vocab_size, emb_dim = matrix("token_embedder/embedding")
    # umT5's are in its layers.
    per_layer = f"encoder/layers_0/{network_kinds.POSITIONS}" in shapes
    positions = f"encoder/{'layers_0/' if per_layer else ''}{network_kinds.POSITIONS}"
    heads, buckets = matrix(positions)
    joined = matrix("encoder/layers_0/attention/query/kernel")[1]
    gated = "encoder/layers_0/mlp/wi_0/kernel" in shapes
    mlp_dim = matrix(f"encoder/layers_0/mlp/{'wi_0' if gated else 'wi'}/kernel")[1]
    if not heads or joined % heads:
        raise UserError(
            f"{location}: encoder/layers_0/attention/query/kernel has {joined} columns, expected "
            f"a multiple of the {heads} heads of {positions}; is it a T5?"
        )
    try:
        return T5Config(
            vocab_size=vocab_size,
            emb_dim=emb_dim,
            num_heads=heads,
            head_dim=joined // heads,
            mlp_dim=mlp_dim,
            num_encoder_layers=layers("encoder"),
            num_decoder_layers=layers("decoder"),
            # No file names the activations; these are those of all published T5.
            mlp_activations=("gelu", "linear") if gated else ("relu",),
            logits_via_embedding="decoder/logits_dense/kernel" not in shapes,
            relative_attention_num_buckets=buckets,
            relative_attention_per_layer=per_layer,
        )
    except ValueError as error:
        raise UserError(f"{location}: by its tensors' shapes, {error}; is it a T5?") from None


def write_t5x(
    source: ParameterSource,
    output: str,
    *,
    scan_layers: bool = False,
    step: int = 0,
    advance: Callable[[int], None] | None = None,
) -> None:
    """Writes `output/checkpoint_{step}`, which T5X restores, one tensor of one layer at a time.

    It has the older of T5X's layouts, which both its checkpointers read, and float32 values.
    `t5x.train` restores the state of its optimizer as well: this is that of Adafactor, which all
    of T5X's model files set, before its first step. A run with another optimizer binds
    `utils.RestoreCheckpointConfig.fallback_to_scratch = True` and
    `utils.RestoreCheckpointConfig.assignment_map = (('state/param_states/.*', None),)`.

    Args:
      source: of the parameters.
      output: a folder that does not exist or is empty; after a failure, what was written by then.
      scan_layers: for the network of `t5x/examples/scalable_t5` with its layers stacked, instead
        of that of `t5x/examples/t5`.
      step: from which T5X goes on; its TRAIN_STEPS counts these steps too.
      advance: called with the values written since the last call; in all, as many as the student
        has.

    Raises:
      UserError: `output` holds something; a tensor of `source` is missing or damaged; a umT5 for
        the network of `t5x/examples/t5`, which has one table of relative positions for all layers.
      OSError, RuntimeError, ValueError: it cannot be written; TensorStore's are of all three.
    """
    folder = disk_layouts.make_absolute(output)
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{output} exists already; choose another folder, or delete it")
    if step < 0:
        raise UserError(f"the step of {output} is {step}, expected 0 or more")
    if isinstance(source.config, T5GemmaConfig):
        raise UserError(
            f"{source.location} is a T5Gemma 2, expected a T5, for T5X has no network of it; "
            "convert it with --to=hf or --to=native"
        )
    if source.config.relative_attention_per_layer and not scan_layers:
        raise UserError(
            f"{source.location} has a table of relative positions in every layer, as umT5 does; "
            "expected one for all, for t5x/examples/t5 has no other. Use --scan_layers, for "
            "t5x/examples/scalable_t5"
        )
    source.check(source.config)
    checkpoint = folder / f"checkpoint_{step}"
    checkpoint.mkdir(parents=True)
    _write(source, checkpoint, scan_layers, step, advance or (lambda _: None))


def _write(
    source: ParameterSource,
    checkpoint: epath.Path,
    scan_layers: bool,
    step: int,
    advance: Callable[[int], None],
) -> None:
    model: dict[str, object] = {}  # by the names of tensors, and then as trees
    optimizer: dict[str, object] = {}
    for tensor in network_kinds.list_tensors(source.config, scan_layers):
        store, listed = disk_layouts.create_array(
            checkpoint, tensor.name, tensor.shape, tensor.layers_axis
        )
        for layer, path in enumerate(tensor.paths):
            values = source.read(path)
            store[tensor.index_of(layer)].write(values.reshape(tensor.layer_shape())).result()
            if layer == 0 or path != tensor.paths[0]:  # a table that layers share counts once
                advance(math.prod(values.shape))
        model[tensor.name] = listed
        optimizer[tensor.name] = network_kinds.make_adafactor_state(tensor)
    as_tree = functools.partial(traverse_util.unflatten_dict, sep="/")
    state = {"step": np.array(step, np.int32), "param_states": as_tree(optimizer)}
    disk_layouts.write_listing(checkpoint, {disk_layouts.MODEL: as_tree(model), "state": state})
