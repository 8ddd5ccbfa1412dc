"""precompile: the real steps, compiled for slices that are not there; what is said of them."""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

from distill_sbs import precompile
from distill_sbs.cli import command_line
from distill_sbs.config import PrecompileConfig, TrainConfig
from distill_sbs.model import flops
from distill_sbs.model.config import named_config
from distill_sbs.precompiling import chips, report
from distill_sbs.precompiling.hlo_costs import Costs

ROOT = pathlib.Path(__file__).parent.parent.parent

# A student small in everything: seconds to compile.
SMALL = (
    "--gin_file=gin/experiments/cqa_dss_base.gin",
    "--gin_file=gin/models/t5_1_1_tiny.gin",
    "--gin.STUDENT_OVERRIDES={'dtype': 'bfloat16', 'scan_layers': True, 'remat_policy': 'full',"
    " 'vocab_size': 512}",
    "--gin.TASK_FEATURE_LENGTHS={'inputs': 64, 'targets': 32, 'task_ids': 32}",
    "--gin.BATCH_SIZE=16",
    "--gin.EVAL_BATCH_SIZE=8",
    "--gin.MAX_DECODE_TOKENS=4",
)


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "distill_sbs.precompile", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu is not installed: pip install -e '.[precompile]'",
)


# ---------------------------------- formulas ---------------------------------


def test_flops_of_a_step_by_hand() -> None:
    config = named_config(
        "t5_1_1_tiny",
        emb_dim=8,
        num_heads=2,
        head_dim=3,
        mlp_dim=16,
        vocab_size=32,
        num_encoder_layers=1,
        num_decoder_layers=1,
    )
    # One row, S = 10, T = 4. Encoder: four projections 8 × 6 and three feed-forward products
    # 8 × 16 a position, and 10 × 10 pairs of 6 numbers, twice.
    encoder = 10 * 2 * (4 * 48 + 3 * 128) + 2 * 2 * 100 * 6
    # Decoder: the same at 4 positions; query and output of cross-attention at 4, key and value at
    # 10; 4 × 10 pairs.
    decoder = 4 * 2 * (4 * 48 + 3 * 128) + 2 * 2 * 16 * 6
    decoder += (4 + 10) * 2 * 2 * 48 + 2 * 2 * 40 * 6
    logits = 4 * 2 * 8 * 32
    assert flops.forward_flops(config, 1, 10, 4) == encoder + decoder + logits
    assert flops.train_step_flops(config, 5, 10, 4) == 15 * (encoder + decoder + logits)
    # Two targets that answer one input: the encoder, and key and value at its positions, once.
    twice = encoder + 2 * decoder - 10 * 2 * 2 * 48 + 2 * logits
    assert flops.train_step_flops(config, 5, 10, 4, 2) == 15 * twice


def test_roofline_by_hand() -> None:
    chip = chips.TPUS["v5e"][0]
    costs = Costs(matrix_flops=197e12, memory_bytes=2 * 819e9, link_bytes=100e9)
    roofline = report.Roofline.of(costs, chip)
    assert roofline.compute_seconds == 1.0
    assert roofline.memory_seconds == 2.0
    assert roofline.link_seconds == 0.5
    assert (roofline.seconds, roofline.limited_by) == (2.0, "memory")
    # Two devices a chip share its figures.
    chip = chips.TPUS["tpu7x"][0]
    assert report.Roofline.of(Costs(matrix_flops=2307e12 / 2), chip).compute_seconds == 1.0


@pytest.mark.parametrize(
    ("message", "gib"),
    [
        (
            "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total "
            "memory required for HLO temporaries (25.04G) exceeds available HBM (15.75G).",
            25.04,
        ),
        ("RESOURCE_EXHAUSTED: Used 1.5T of 15.75G hbm. Exceeded hbm capacity by …", 1536),
        ("RESOURCE_EXHAUSTED: …", float("inf")),
    ],
)
def test_what_the_compiler_needed(message: str, gib: float) -> None:
    assert report.needed_bytes(message) / 2**30 == pytest.approx(gib)


# ---------------------------------- gin files --------------------------------


def test_any_file_that_train_takes_is_taken() -> None:
    """What names data and weights may be set, or unset, and has no effect."""
    arguments = ["program", "--gin.KEEP_CHECKPOINTS=7", "--gin.TOPOLOGY='v5e:2x4'", *SMALL]
    config = command_line.parse(arguments, PrecompileConfig, "runs/precompile.gin").config
    assert config.topology == "v5e:2x4"
    assert config.batch.batch_size == 16
    # Their defaults are of the same fields.
    theirs = {option.macro: option.default for option in TrainConfig.options()}
    ours = {option.macro: option.default for option in PrecompileConfig.options()}
    assert {name for name in ours if name not in theirs} == {"TOPOLOGY"}


# ---------------------------------- runs -------------------------------------


@pytest.mark.slow
def test_devices_at_hand() -> None:
    """Without TOPOLOGY: the CPUs of this test, whose memory and speed nobody states."""
    done = run(
        *SMALL,
        "--json",
        "--operations=3",
        JAX_PLATFORMS="cpu",
        XLA_FLAGS="--xla_force_host_platform_device_count=4",
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    most = [each["bytes_accessed"] for each in result["operations"]]
    assert len(most) == 3 and most == sorted(most, reverse=True)
    assert "operations of the training step" in done.stderr
    assert result["devices"] == 4
    assert result["mesh"] == {"slice": 1, "data": 4, "model": 1}
    assert result["fits"] is None
    assert "mfu_bound" in result and result["mfu_bound"] is None
    # A quarter of the step's products, and more for what full remat recomputes.
    assert 1.0 < result["flops"] / result["model_flops"] < 1.6
    # Float32 parameters, whole on every device, and Adam's two moments of them.
    assert result["bytes"]["parameters"] == 4 * result["parameters"]
    assert result["bytes"]["optimizer"] == pytest.approx(8 * result["parameters"], abs=64)
    assert result["decode"]["rows"] == 8


@pytest.mark.slow
def test_pairs_are_laid_out_as_the_run_would() -> None:
    """With the mutual-information loss: eight rows of two sequences, not sixteen of one."""
    done = run(
        *SMALL,
        "--gin.MUTUAL_INFORMATION_WEIGHT=0.1",
        "--json",
        "--nodecoding",
        JAX_PLATFORMS="cpu",
        XLA_FLAGS="--xla_force_host_platform_device_count=4",
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert [result[name] for name in ("rows", "input_tokens", "target_tokens")] == [8, 128, 64]
    assert (result["refusal"], result["unreadable"]) == (None, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gin.TOPOLOGY='v5e:3x'"], "expected GENERATION:SHAPE"),
        (["--gin.BATCH_SIZE=0"], "BATCH_SIZE=0; expected a whole number"),
        (["--gin.STUDENT='t5_1_1_bas'"], "t5_1_1_base"),
        (["--gin.TOPOLOGI='v5e:2x4'"], "unknown macro TOPOLOGI; did you mean TOPOLOGY?"),
        ([SMALL[2][:-1] + ", 'attention': 'fused'}"], "kernel for TPUs; these devices are"),
        ([SMALL[2][:-1] + ", 'attention': 'fuse'}"], "did you mean 'fused'?"),
    ],
)
def test_errors_are_one_line_and_status_2(arguments: list[str], message: str) -> None:
    done = run(*SMALL, *arguments, JAX_PLATFORMS="cpu")
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@needs_libtpu
@pytest.mark.tpu_aot
@pytest.mark.slow
def test_tpu_slice() -> None:
    done = run(*SMALL, "--json", "--gin.TOPOLOGY='v5e:2x4'", "--gin.NUM_MODEL_PARTITIONS=2")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["chips"], result["devices"], result["fits"]) == (8, 8, True)
    assert result["mesh"] == {"slice": 1, "data": 4, "model": 2}
    assert result["hbm_bytes"] == 16 * 2**30
    assert 1.0 < result["flops"] / result["model_flops"] < 1.6
    assert result["roofline_seconds"] == max(result["compute_seconds"], result["memory_seconds"])
    assert result["flops"] == pytest.approx(result["compute_seconds"] * 197e12)
    assert 0 < result["mfu_bound"] < 1
    # Gradients are summed over the data axis, every step, in one form or another.
    assert sum(result["collective_bytes"].values()) > 2 * result["parameters"]
    assert result["unknown_loops"] == 0
    assert "training step" in done.stderr  # the table


@pytest.mark.slow
@needs_libtpu
@pytest.mark.tpu_aot
def test_what_does_not_fit_says_what_to_change() -> None:
    """11 B parameters on one chip: refused without compiling for minutes."""
    done = run(
        "--gin_file=gin/experiments/cqa_dss_base.gin",
        "--gin_file=gin/models/t5_1_1_xxl.gin",
        "--gin.NUM_MODEL_PARTITIONS=1",
        "--gin.FSDP=False",
        "--gin.TOPOLOGY='v5e:2x2'",
    )
    assert done.returncode == precompile.DOES_NOT_FIT_EXIT_STATUS == 1
    assert "NO" in done.stdout
    assert "FSDP = True" in done.stdout


@pytest.mark.slow
@needs_libtpu
@pytest.mark.tpu_aot
def test_what_the_compiler_refuses() -> None:
    """Too many rows for one chip, all activations kept."""
    overrides = SMALL[2].replace("'full'", "'none'")
    done = run(*SMALL, overrides, "--gin.BATCH_SIZE=8192", "--gin.TOPOLOGY='v5e:1x1'", "--json")
    assert done.returncode == 1, done.stderr
    result = json.loads(done.stdout)
    assert result["fits"] is False
    # The compiler's own words, and the number among them.
    assert result["decode"] is None  # not compiled: the answer is known
    assert "exceeds available HBM (15.75G)" in result["refusal"]
    needed = result["bytes"]["total"] / 2**30
    assert f"({needed:.2f}G)" in result["refusal"]
    assert result["available_bytes"] == 15.75 * 2**30 < result["bytes"]["total"]
    assert result["advice"] == [
        "STUDENT_OVERRIDES = {…, 'remat_policy': 'full'}: recomputes activations, "
        "or 'minimal': most of them",
        "NUM_MICROBATCHES = 2: half the activations at a time",
        "a larger TOPOLOGY",
    ]
    assert "does not fit: RESOURCE_EXHAUSTED" in done.stderr


@pytest.mark.slow
@needs_libtpu
@pytest.mark.tpu_aot
def test_unknown_slice_and_indivisible_batch() -> None:
    done = run(*SMALL, "--gin.TOPOLOGY='v5e:3x3'")
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1)
    assert "near matches: v5e:" in done.stderr
    done = run(*SMALL, "--gin.TOPOLOGY='v5e:4x8'")
    assert done.returncode == 2
    assert "BATCH_SIZE=16 is not a multiple of 32 devices; use 32" in done.stderr
