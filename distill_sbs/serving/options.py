"""Every option of a server, once: its name, type, default, range and help; flags are made of it.

Enters: values from Python, or the command line of `python -m distill_sbs.serve`. Leaves: a
`ServeConfig`, or a `UserError` that names the option. None of them belongs to a run's identity.
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Never, TypeVar, cast

from absl import flags

from distill_sbs.cli import flag_groups
from distill_sbs.errors import UserError

DESCRIPTION = (
    "Answers over HTTP with a student that convert --to=ctranslate2 (or onnx) exported.\n"
    "A page at /, its interface at /docs; Ctrl-C or SIGTERM ends it when all is answered."
)

T = TypeVar("T", int, float, str)


def _option(help: str, default: T, *, least: float | None = None, most: float | None = None) -> T:
    """A field with what its flag says; mypy takes it for the default."""
    described = {"help": help, "least": least, "most": most}
    field: T = dataclasses.field(default=default, metadata=described)
    return field


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """What is served, where, and what a client may ask; each field is a flag of `serve`.

    Raises:
      UserError: a value of another type or out of range.
    """

    model: str = _option("A folder that convert --to=ctranslate2 or --to=onnx wrote.", "")
    host: str = _option(
        "The address to listen on. Whoever can reach it can ask: there is no password.",
        "127.0.0.1",
    )
    port: int = _option("0: any that is free; it is printed.", 8000, least=0, most=65_535)
    threads: int = _option(
        "That compute; 0: one for each processor that this process may use.", 0, least=0, most=1024
    )
    batch_size: int = _option(
        "The most inputs decoded at a time, of however many requests.", 32, least=1, most=65_536
    )
    max_inputs: int = _option("The most inputs of one request.", 64, least=1, most=65_536)
    max_waiting: int = _option(
        "The most inputs that wait, of all requests; beyond it a request is answered 503.",
        1024,
        least=1,
    )
    max_body_bytes: int = _option("The longest body of a request.", 1_048_576, least=64)
    body_seconds: float = _option("How long a request's body may take to come.", 10.0, least=0.01)
    max_connections: int = _option("Beyond it a request is answered 503.", 256, least=1)
    grace_seconds: float = _option(
        "After Ctrl-C or SIGTERM: how long answers that are asked for may take.", 30.0, least=0.0
    )

    def __post_init__(self) -> None:
        """Checks each value, and that they go together."""
        for field in dataclasses.fields(self):
            _check_value(field, getattr(self, field.name))
        if not self.model:
            raise UserError(
                "--model is not given; expected a folder that convert --to=ctranslate2 wrote"
            )
        if self.max_inputs > self.max_waiting:
            raise UserError(
                f"--max_inputs={self.max_inputs} is more than --max_waiting={self.max_waiting}: "
                "such a request would never be answered; raise --max_waiting"
            )


def _check_value(field: dataclasses.Field[object], value: object) -> None:
    """Raises UserError for a value of another type, or out of range."""
    kind = type(field.default)
    is_kind = isinstance(value, (int, float) if kind is float else kind)
    if isinstance(value, bool):
        is_kind = False
    least, most = field.metadata["least"], field.metadata["most"]
    if is_kind and isinstance(value, int | float):
        # Not-a-number is in no range.
        is_kind = (least is None or value >= least) and value <= (most or _ENDLESS)
    if is_kind:
        return
    words = {int: "a whole number", float: "a number", str: "text"}
    bounds = "" if least is None else f" of at least {least:g}"
    bounds += "" if most is None else f" and at most {most:g}"
    raise UserError(f"--{field.name}={value!r}: expected {words[kind]}{bounds}")


_ENDLESS = 1e9  # seconds and bytes that nobody means


def define(values: flags.FlagValues) -> None:
    """Defines the flags of `python -m distill_sbs.serve`."""
    for field in dataclasses.fields(ServeConfig):
        is_limit = field.name.startswith("max_") or field.name.endswith("_seconds")
        with flag_groups.group(values, "Limits") if is_limit else contextlib.nullcontext():
            _define_flag(values, field)


def _define_flag(values: flags.FlagValues, field: dataclasses.Field[object]) -> None:
    help, default = field.metadata["help"], getattr(ServeConfig, field.name)
    least, most = field.metadata["least"], field.metadata["most"]
    if isinstance(default, str):
        help += f" Default: {default}." if default else ""
        flags.DEFINE_string(field.name, default, help, flag_values=values)
        return
    help += f" Default: {default:,}."
    make = flags.DEFINE_integer if isinstance(default, int) else flags.DEFINE_float
    make(field.name, default, help, flag_values=values, lower_bound=least, upper_bound=most)


def read(values: flags.FlagValues) -> ServeConfig:
    """The options among the flags.

    Raises:
      UserError: see `ServeConfig`.
    """
    given = {field.name: values[field.name].value for field in dataclasses.fields(ServeConfig)}
    return ServeConfig(**cast(dict[str, Never], given))  # of types that ServeConfig checks
