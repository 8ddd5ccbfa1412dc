"""hlo_costs: FLOPs, bytes and collectives of compiled programs, loops as often as they run."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from distill_sbs.precompiling.contributors import list_contributors
from distill_sbs.precompiling.hlo_costs import Program
from distill_sbs.precompiling.hlo_text import Array
from distill_sbs.precompiling.report import compile_report


def costs_of(function, *arguments):
    return Program(jax.jit(function).lower(*arguments).compile().as_text()).costs()


def test_a_product_of_matrices() -> None:
    a, b = jnp.ones((64, 128)), jnp.ones((128, 32))
    costs = costs_of(jnp.dot, a, b)
    assert costs.matrix_flops == 2 * 64 * 128 * 32
    # At least both operands and the result, float32.
    assert costs.memory_bytes >= 4 * (64 * 128 + 128 * 32 + 64 * 32)


@pytest.mark.parametrize("turns", [3, 17])
def test_a_loop_counts_as_often_as_it_runs(turns: int) -> None:
    def loop(x):
        return jax.lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, jnp.ones((turns, 64, 64)))[0]

    x = jnp.ones((64, 64))
    text = jax.jit(loop).lower(x).compile().as_text()
    assert Program(text).costs().matrix_flops == turns * 2 * 64**3
    assert Program(text, loops_once=True).costs().matrix_flops == 2 * 64**3
    # XLA's own analysis is the one that counts once; that is why this module is there.
    xla = jax.jit(loop).lower(x).compile().cost_analysis()["flops"]
    assert 2 * 64**3 <= xla < 2 * 2 * 64**3


def test_a_loop_in_a_loop() -> None:
    def inner(x, _):
        return jax.lax.fori_loop(0, 5, lambda _, y: jnp.sin(y @ y), x), None

    def outer(x):
        return jax.lax.scan(inner, x, None, length=7)[0]

    assert costs_of(outer, jnp.ones((16, 16))).matrix_flops == 7 * 5 * 2 * 16**3


def test_scanned_layers_cost_what_unrolled_ones_do() -> None:
    """A training step's gradients, through four layers that are scanned or written out."""

    def layer(x, w):
        return jnp.tanh(x @ w)

    def scanned(weights, x):
        return jnp.sum(jax.lax.scan(lambda x, w: (layer(x, w), None), x, weights)[0])

    def unrolled(weights, x):
        for w in weights:
            x = layer(x, w)
        return jnp.sum(x)

    weights, x = jnp.ones((4, 64, 64)), jnp.ones((32, 64))
    # Forward one product a layer; backward one for the weights and one for the inputs, the first
    # layer's inputs aside, which a loop's equal bodies do not leave out.
    product = 2 * 32 * 64 * 64
    assert costs_of(jax.grad(unrolled), weights, x).matrix_flops == (4 + 4 + 3) * product
    assert costs_of(jax.grad(scanned), weights, x).matrix_flops == (4 + 4 + 4) * product
    both = (jax.grad(function, argnums=(0, 1)) for function in (unrolled, scanned))
    assert [costs_of(function, weights, x).matrix_flops for function in both] == [12 * product] * 2


# Four devices with 2 rows of 16 float32 numbers each: 128 bytes.
COLLECTIVES = """
import json
import jax, jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec as P
from distill_sbs.precompiling.report import compile_report
from distill_sbs.precompiling.contributors import list_contributors
from distill_sbs.precompiling.hlo_costs import Program

def costs(function, given, left):
    mapped = jax.shard_map(
        lambda x: function(jnp.sin(x)), mesh=Mesh(jax.devices(), ("d",)),
        in_specs=given, out_specs=left, check_vma=False)
    program = Program(jax.jit(mapped).lower(jnp.ones((8, 16))).compile().as_text())
    return program.costs().collective_bytes, program.costs().link_bytes

rows, whole = P("d"), P()
print(json.dumps([
    costs(lambda x: jax.lax.fori_loop(0, 3, lambda _, y: jax.lax.psum(y, "d") / 4, x), rows, rows),
    costs(lambda x: jax.lax.all_gather(x, "d", tiled=True), rows, whole),
    costs(lambda x: jax.lax.psum_scatter(x, "d", tiled=True), whole, rows),
    costs(lambda x: jax.lax.ppermute(x, "d", [(0, 1), (1, 2), (2, 3), (3, 0)]), rows, rows),
    costs(lambda x: jax.lax.all_to_all(x, "d", 1, 0, tiled=True), rows, rows),
]))
"""


@pytest.mark.slow
def test_collectives_of_four_devices() -> None:
    done = subprocess.run(
        [sys.executable, "-c", COLLECTIVES],
        env={**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [
        # Three turns; each sends 3/4 of its operand, then as much of the sum.
        [{"all-reduce": 3 * 128}, 3 * 2 * 96],
        # A device's part goes on three times round the ring.
        [{"all-gather": 128}, 3 * 128],
        [{"reduce-scatter": 512}, 3 * 128],
        [{"collective-permute": 128}, 128],
        # A device keeps a quarter of what it has.
        [{"all-to-all": 128}, 96],
    ]


# As the TPU compiler prints: products as convolutions, no known_trip_count, memory on the chip.
TPU_PROGRAM = """\
HloModule jit_step, is_scheduled=true

%body (state: (s32[], bf16[8,128])) -> (s32[], bf16[8,128]) {
  %state = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  %x = bf16[8,128]{1,0:T(8,128)(2,1)} get-tuple-element(%state), index=1
  %one = s32[]{:T(128)} constant(1)
  %next = s32[]{:T(128)} add(%i, %one)
  %y = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} all-reduce(%x), channel_id=1, \
replica_groups=[2,4]<=[8], to_apply=%sum
  %z = bf16[8,128]{1,0:T(8,128)(2,1)} copy(%y)
  ROOT %out = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}) tuple(%next, %z)
}

%condition (state.1: (s32[], bf16[8,128])) -> pred[] {
  %turns = s32[]{:T(128)} constant(24)
  %state.1 = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i.1, %turns), direction=LT
}

%fused (a: bf16[8,128], w: bf16[128,64]) -> f32[8,64] {
  %a = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  %w = bf16[128,64]{1,0:T(8,128)(2,1)} parameter(1)
  ROOT %c = f32[8,64]{1,0:T(8,128)} convolution(%a, %w), dim_labels=bf_io->bf
}

ENTRY %main (p: bf16[8,128], w: bf16[128,64]) -> f32[8,64] {
  %p = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  %w = bf16[128,64]{1,0:T(8,128)(2,1)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %start = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}) tuple(%zero, %p)
  %loop = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}) while(%start), \
condition=%condition, body=%body, metadata={op_name="a (strange) name, calls=%nothing"}
  %x.1 = bf16[8,128]{1,0:T(8,128)(2,1)} get-tuple-element(%loop), index=1
  ROOT %f = f32[8,64]{1,0:T(8,128)} fusion(%x.1, %w), kind=kOutput, calls=%fused
}
"""


def test_a_tpu_program_by_hand() -> None:
    costs = Program(TPU_PROGRAM).costs()
    assert costs.matrix_flops == 2 * 8 * 128 * 64
    operand = 8 * 128 * 2
    assert costs.collective_bytes == {"all-reduce": 24 * operand}
    # Each of four devices sends 3/4 of it twice: reduce-scatter, then all-gather.
    assert costs.link_bytes == 24 * operand * 2 * 3 / 4
    assert costs.unknown_loops == 0
    # A turn: the all-reduce reads its operand and leaves its result on the chip, the copy writes it
    # back; the counter's addition and comparison touch scalars of 4 and 1 bytes. At the end the
    # fusion reads both factors (64 columns padded to 128) and writes 64, padded likewise.
    scalars = 3 * 4 + (2 * 4 + 1)
    assert costs.memory_bytes == (
        24 * (2 * operand + scalars) + operand + 128 * 128 * 2 + 8 * 128 * 4
    )
    assert costs.accessed_bytes == costs.memory_bytes + 24 * 2 * operand
    once = Program(TPU_PROGRAM, loops_once=True).costs()
    assert once.collective_bytes == {"all-reduce": operand}


# As the TPU compiler prints too: one collective spread over a start, a step in a loop, and a done,
# each of which repeats its instruction; the step computes meanwhile, with a slice of a stack that a
# fusion inside it takes; devices named by axes of a mesh.
ASYNCHRONOUS_PROGRAM = """\
HloModule jit_step, is_scheduled=true

%first (p.0: bf16[16,128]) -> (bf16[16,128], bf16[64,128]) {
  %p.0 = bf16[16,128]{1,0:T(8,128)(2,1)} parameter(0)
  %g.0 = bf16[64,128]{1,0:T(8,128)(2,1)} all-gather(%p.0), channel_id=5, \
replica_groups=mesh['a'=4,'b'=2] {'a'}, dimensions={0}, \
backend_config={"async_collective_fusion_config":{"flag_start":"-1","flag_end":"-1"}}
  ROOT %t.0 = (bf16[16,128]{1,0:T(8,128)(2,1)}, bf16[64,128]{1,0:T(8,128)(2,1)}) tuple(%p.0, %g.0)
}

%slice (stack: bf16[3,128,256], turn: s32[]) -> bf16[128,256] {
  %stack = bf16[3,128,256]{2,1,0:T(8,128)(2,1)} parameter(0)
  %turn = s32[]{:T(128)} parameter(1)
  %zero.0 = s32[]{:T(128)} constant(0)
  %taken = bf16[1,128,256]{2,1,0:T(8,128)(2,1)} dynamic-slice(%stack, %turn, %zero.0, %zero.0), \
dynamic_slice_sizes={1,128,256}
  ROOT %w = bf16[128,256]{1,0:T(8,128)(2,1)} bitcast(%taken)
}

%step (p.1: bf16[16,128], r.1: bf16[64,128], k: bf16[3,128,256], n: s32[], x.1: bf16[8,128]) -> \
(bf16[8,256], bf16[16,128], bf16[64,128]) {
  %p.1 = bf16[16,128]{1,0:T(8,128)(2,1)} parameter(0)
  %r.1 = bf16[64,128]{1,0:T(8,128)(2,1)} parameter(1)
  %k = bf16[3,128,256]{2,1,0:T(8,128)(2,1)} parameter(2)
  %n = s32[]{:T(128)} parameter(3)
  %x.1 = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(4)
  %w.1 = bf16[128,256]{1,0:T(8,128)(2,1)} fusion(%k, %n), kind=kLoop, calls=%slice
  %y.1 = bf16[8,256]{1,0:T(8,128)(2,1)} convolution(%x.1, %w.1), dim_labels=bf_io->bf
  %g.1 = bf16[64,128]{1,0:T(8,128)(2,1)} all-gather(%p.1), channel_id=5, \
replica_groups=mesh['a'=4,'b'=2] {'a'}, dimensions={0}, \
backend_config={"async_collective_fusion_config":{"flag_start":"2","flag_end":"8"}}
  ROOT %t.1 = (bf16[8,256]{1,0:T(8,128)(2,1)}, bf16[16,128]{1,0:T(8,128)(2,1)}, \
bf16[64,128]{1,0:T(8,128)(2,1)}) tuple(%y.1, %p.1, %g.1)
}

%last (p.2: bf16[16,128], r.2: bf16[64,128]) -> bf16[64,128] {
  %p.2 = bf16[16,128]{1,0:T(8,128)(2,1)} parameter(0)
  %r.2 = bf16[64,128]{1,0:T(8,128)(2,1)} parameter(1)
  %g.2 = bf16[64,128]{1,0:T(8,128)(2,1)} all-gather(%p.2), channel_id=5, \
replica_groups=mesh['a'=4,'b'=2] {'a'}, dimensions={0}, \
backend_config={"async_collective_fusion_config":{"flag_start":"2","flag_end":"8"}}
  ROOT %c.2 = bf16[64,128]{1,0:T(8,128)(2,1)} custom-call(%p.2, %r.2, %g.2), \
custom_call_target="done"
}

ENTRY %main (a: bf16[16,128], s: bf16[3,128,256], x: bf16[8,128]) -> bf16[64,128] {
  %a = bf16[16,128]{1,0:T(8,128)(2,1)} parameter(0)
  %s = bf16[3,128,256]{2,1,0:T(8,128)(2,1)} parameter(1)
  %x = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(2)
  %one = s32[]{:T(128)} constant(1)
  %begun = (bf16[16,128]{1,0:T(8,128)(2,1)}, bf16[64,128]{1,0:T(8,128)(2,1)}) fusion(%a), \
kind=kCustom, calls=%first
  %a.1 = bf16[16,128]{1,0:T(8,128)(2,1)} get-tuple-element(%begun), index=0
  %g = bf16[64,128]{1,0:T(8,128)(2,1)} get-tuple-element(%begun), index=1
  %going = (bf16[8,256]{1,0:T(8,128)(2,1)}, bf16[16,128]{1,0:T(8,128)(2,1)}, \
bf16[64,128]{1,0:T(8,128)(2,1)}) fusion(%a.1, %g, %s, %one, %x), kind=kOutput, calls=%step
  %a.2 = bf16[16,128]{1,0:T(8,128)(2,1)} get-tuple-element(%going), index=1
  %g.3 = bf16[64,128]{1,0:T(8,128)(2,1)} get-tuple-element(%going), index=2
  ROOT %end = bf16[64,128]{1,0:T(8,128)(2,1)} fusion(%a.2, %g.3), kind=kCustom, calls=%last
}
"""


def test_an_asynchronous_collective_counts_once() -> None:
    costs = Program(ASYNCHRONOUS_PROGRAM).costs()
    shard, whole = 16 * 128 * 2, 64 * 128 * 2
    assert costs.collective_bytes == {"all-gather": shard}
    assert costs.link_bytes == 3 * shard  # four devices on axis a
    assert costs.matrix_flops == 2 * 8 * 128 * 256
    # The gather reads its shard and writes the whole; the product reads one layer of the stack of
    # three, its index and its inputs, and writes its outputs. Nothing handed on counts again.
    product = 128 * 256 * 2 + 4 + 8 * 128 * 2 + 8 * 256 * 2
    assert costs.memory_bytes == shard + whole + product


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("[2,4]<=[8]", 4),
        ("[4,64]<=[64,4]T(1,0)", 64),
        ("{{0,1,2},{3,4,5}}", 3),
        ("mesh['a'=64,'b'=4] {'a'}", 64),
        ("mesh['a'=64,'b'=4] {'a','b'}", 256),
        ("mesh['a'=64,'b'=4] {'a':(8)4}", 4),
        ("{}", 0),
    ],
)
def test_how_many_devices_a_collective_joins(groups: str, size: int) -> None:
    from distill_sbs.precompiling.hlo_costs import _group_size

    assert _group_size(f"channel_id=1, replica_groups={groups}, use_global_device_ids=true") == size


def test_sizes_of_arrays() -> None:
    assert Array("f32", (3, 5), "1,0").bytes == 60
    assert Array("bf16", (3, 5), "1,0:T(8,128)(2,1)").bytes == 8 * 128 * 2
    assert Array("bf16", (3, 5), "0,1:T(8,128)(2,1)").bytes == 8 * 128 * 2
    assert Array("pred", (), "").bytes == 1
    assert Array("s4", (16,), "0").bytes == 8
    assert Array("f32", (8,), "0:T(128)S(1)").in_main_memory is False
    assert Array("f32", (8,), "0:T(128)").in_main_memory is True


@pytest.mark.parametrize(
    ("attributes", "left", "right", "result", "pairs"),
    [
        # Every input meets every tap once; the other 4 · 7 - 16 pairs are padding.
        ("window={size=4 pad=3_3 rhs_reversal=1}", (4,), (4,), (7,), 16),
        # The same with inputs 5 apart.
        ("window={size=4 pad=3_3 lhs_dilate=5}", (4,), (4,), (19,), 16),
        ("window={size=3}", (8,), (3,), (6,), 18),
        ("window={size=3 pad=1_1}", (8,), (3,), (8,), 22),
        ("window={size=2 stride=2}", (8,), (2,), (4,), 8),
        ("window={size=2 rhs_dilate=4}", (8,), (2,), (4,), 8),
    ],
)
def test_padding_of_a_convolution_is_no_work(attributes, left, right, result, pairs) -> None:
    from distill_sbs.precompiling.convolutions import convolution_flops

    flops = convolution_flops(
        (2, 3, *left), (3, 5, *right), (2, 5, *result), attributes + ", dim_labels=bf0_io0->bf0"
    )
    assert flops == 2 * 2 * 3 * 5 * pairs


KERNEL_PROGRAM = """\
HloModule jit_step, is_scheduled=true

%body (state: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %state = (s32[], f32[8,128]{1,0}) parameter(0)
  %turn = s32[] get-tuple-element(%state), index=0
  %x = f32[8,128]{1,0} get-tuple-element(%state), index=1
  %buffer = f32[64,128]{1,0} custom-call(), custom_call_target="AllocateBuffer"
  %attended = f32[8,128]{1,0} custom-call(%x), custom_call_target="tpu_custom_call", \
backend_config={"custom_call_config":{"body":"TUzvUgF9","cost_estimate":{"flops":"5000",\
"transcendentals":"10"}}}, metadata={op_name="jit(step)/transpose(jvp(Transformer.hidden))/\
Transformer.encode/encoder/while/body/closed_call/checkpoint/rematted_computation/layers/attention/\
fused_attention/pallas_call" stack_frame_id=1}
  ROOT %next = (s32[], f32[8,128]{1,0}) tuple(%turn, %attended)
}

%condition (state: (s32[], f32[8,128])) -> pred[] {
  %state.1 = (s32[], f32[8,128]{1,0}) parameter(0)
  ROOT %goes_on = pred[] constant(true)
}

ENTRY %main (x: f32[8,128]) -> f32[8,128] {
  %x.1 = f32[8,128]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %first = (s32[], f32[8,128]{1,0}) tuple(%zero, %x.1)
  %loop = (s32[], f32[8,128]{1,0}) while(%first), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"3"}}
  %last = f32[8,128]{1,0} get-tuple-element(%loop), index=1
  ROOT %sum = f32[8,128]{1,0} add(%last, %last), metadata={op_name="jit(step)/add"}
}
"""


def test_a_kernel_says_its_flops_and_a_view_moves_nothing() -> None:
    """Three turns of a kernel on 4 KiB, read and written; a sum of two such arrays."""
    costs = Program(KERNEL_PROGRAM).costs()
    assert costs.matrix_flops == 3 * 5000
    assert costs.memory_bytes == 3 * 2 * 4096 + 3 * 4096


def test_a_counter_that_rises_by_two_makes_half_the_turns() -> None:
    """As in loops of products and their collectives, two of which are a turn; no count is known."""
    program = KERNEL_PROGRAM.replace(', backend_config={"known_trip_count":{"n":"3"}}', "")
    program = program.replace(
        "  ROOT %goes_on = pred[] constant(true)",
        "  %turn.1 = s32[] get-tuple-element(%state.1), index=0\n"
        "  %bound = s32[] constant(7)\n"
        "  ROOT %goes_on = pred[] compare(%turn.1, %bound), direction=LT",
    )
    assert "known_trip_count" not in program
    assert Program(program).costs().matrix_flops == 7 * 5000
    by_two = program.replace(
        "tuple(%turn, %attended)",
        "tuple(%raised, %attended)\n  %two = s32[] constant(2)\n  %raised = s32[] add(%turn, %two)",
    )
    assert Program(by_two).costs().matrix_flops == 4 * 5000


def test_which_operations_move_most_bytes() -> None:
    kernel, total = list_contributors(KERNEL_PROGRAM)
    assert (kernel.name, kernel.runs) == (
        "again encoder/layers/attention/fused_attention/pallas_call",
        3,
    )
    assert (kernel.costs.accessed_bytes, kernel.costs.matrix_flops) == (24576, 15000)
    assert (total.name, total.runs, total.costs.accessed_bytes) == ("add", 1, 12288)


def test_text_that_is_no_program() -> None:
    with pytest.raises(ValueError, match="no ENTRY"):
        Program("nothing")


def test_a_program_without_a_text_has_its_memory() -> None:
    """libtpu's programs for v5p come back so that `as_text` fails, as here."""

    class Unreadable:
        def __init__(self, compiled: jax.stages.Compiled) -> None:
            self.memory_analysis = compiled.memory_analysis
            self.cost_analysis = compiled.cost_analysis

        def as_text(self) -> str:
            raise RuntimeError("INTERNAL: RET_CHECK failure\nat length")

    class Lowered:
        def compile(self) -> Unreadable:
            return Unreadable(jax.jit(lambda x: x @ x).lower(jnp.ones((4, 4))).compile())

    report = compile_report(Lowered)
    assert report.unreadable == "INTERNAL: RET_CHECK failure"
    assert report.costs is None
    assert report.refusal is None
    assert report.argument_bytes == 4 * 4 * 4
