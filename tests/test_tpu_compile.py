"""Programs for TPUs: their text is read right, and the estimates add up by hand."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.scaling import (
    FLOAT32_PASSES,
    HOP_SECONDS,
    V5E,
    estimate_step,
    first_programs,
    format_scaling,
    rings,
    sent_bytes,
    step_exchanges,
)
from experiments.tpu.hlo import parse_arrays, parse_program, rounds
from experiments.tpu.programs import OutOfMemory, find_largest
from experiments.tpu.schedule import (
    GATHER_CYCLES,
    HBM_GATHER_CYCLES,
    SCATTER_CYCLES,
    scheduled_cycles,
)
from experiments.tpu.work import count_work, find_collectives

ROOT = Path(__file__).resolve().parents[1]

# A loop of 9 rounds: gather 256 rows of 48 int8 channels, multiply by one of nine
# matrices of 48 x 16, add up; then an exchange of the result.
PROGRAM = """HloModule jit_f, is_scheduled=true

%region_sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add.0 = f32[] add(%a, %b)
}

%gather_computation (p0: s8[300,48], p1: s32[256]) -> s8[256,48] {
  %p0 = s8[300,48]{1,0:T(8,128)(4,1)S(1)} parameter(0)
  %p1 = s32[256]{0:T(256)S(1)} parameter(1)
  ROOT %gather.1 = s8[256,48]{1,0:T(32,128)(4,1)} gather(%p0, %p1), offset_dims={1}
}

%product_computation (q0: f32[256,16], q1: s8[256,48], q2: f32[9,48,16], q3: s32[]) -> f32[256,16] {
  %q0 = f32[256,16]{0,1:T(8,128)S(1)} parameter(0)
  %q1 = s8[256,48]{1,0:T(32,128)(4,1)S(1)} parameter(1)
  %q2 = f32[9,48,16]{2,1,0:T(8,128)} parameter(2)
  %q3 = s32[]{:T(128)} parameter(3)
  %zero = s32[]{:T(128)} constant(0)
  %slice.1 = f32[1,48,16]{2,1,0:T(8,128)} dynamic-slice(%q2, %q3, %zero, %zero), dynamic_slice_sizes={1,48,16}
  %matrix = f32[48,16]{1,0:T(8,128)} bitcast(%slice.1)
  %real = f32[256,48]{1,0:T(8,128)} convert(%q1)
  %product = f32[256,16]{0,1:T(8,128)} convolution(%real, %matrix), dim_labels=bf_io->bf, operand_precision={highest,highest}
  ROOT %sum.1 = f32[256,16]{0,1:T(8,128)} add(%q0, %product)
}

%condition (c: (s32[], f32[256,16])) -> pred[] {
  %limit = s32[]{:T(128)} constant(9)
  %c = (s32[]{:T(128)}, f32[256,16]{0,1:T(8,128)S(1)}) parameter(0)
  %count = s32[]{:T(128)} get-tuple-element(%c), index=0
  ROOT %less = pred[]{:T(512)} compare(%count, %limit), direction=LT
}

%body (s: (s32[], f32[256,16], s8[300,48], s32[256], f32[9,48,16])) -> (s32[], f32[256,16], s8[300,48], s32[256], f32[9,48,16]) {
  %s = (s32[]{:T(128)}, f32[256,16]{0,1:T(8,128)S(1)}, s8[300,48]{1,0:T(8,128)(4,1)S(1)}, s32[256]{0:T(256)S(1)}, f32[9,48,16]{2,1,0:T(8,128)}, /*index=5*/s32[]{:T(128)}) parameter(0)
  %n = s32[]{:T(128)} get-tuple-element(%s), index=0
  %total = f32[256,16]{0,1:T(8,128)S(1)} get-tuple-element(%s), index=1
  %wide = s8[300,48]{1,0:T(8,128)(4,1)S(1)} get-tuple-element(%s), index=2
  %first = s32[256]{0:T(256)S(1)} get-tuple-element(%s), index=3
  %kernel = f32[9,48,16]{2,1,0:T(8,128)} get-tuple-element(%s), index=4
  %taken = s8[256,48]{1,0:T(32,128)(4,1)S(1)} fusion(%wide, %first), kind=kCustom, calls=%gather_computation
  %next = f32[256,16]{0,1:T(8,128)S(1)} fusion(%total, %taken, %kernel, %n), kind=kOutput, calls=%product_computation, backend_config={"window_config":{"estimated_cycles":"70"}}
  ROOT %out = (s32[]{:T(128)}, f32[256,16]{0,1:T(8,128)S(1)}) tuple(%n, %next, %wide, %first, %kernel)
}

ENTRY %main (x: f32[256,16]) -> f32[256,16] {
  %x = (s32[]{:T(128)}, f32[256,16]{0,1:T(8,128)S(1)}) parameter(0)
  %loop = (s32[]{:T(128)}, f32[256,16]{0,1:T(8,128)S(1)}) while(%x), condition=%condition, body=%body
  %result = f32[256,16]{0,1:T(8,128)S(1)} get-tuple-element(%loop), index=1
  %all.1 = (f32[256,16]{0,1:T(8,128)}, f32[]{:T(128)}) all-reduce(%result, %result), channel_id=1, to_apply=%region_sum
  %begun = (f32[256,16]{0,1:T(8,128)S(1)}, f32[64]{0:T(128)}) all-gather-start(%result), dimensions={0}
  %ended = f32[64]{0:T(128)} all-gather-done(%begun)
  ROOT %answer = f32[256,16]{0,1:T(8,128)} get-tuple-element(%all.1), index=0
}
"""  # noqa: E501


def test_arrays_take_whole_tiles():
    narrow, turned, scalar, small = parse_arrays(
        "(f32[300,16]{1,0:T(8,128)}, f32[300,16]{0,1:T(8,128)S(1)}, s32[]{:T(128)}, "
        "bf16[2,3]{1,0:T(2,128)(2,1)})"
    )
    assert narrow.logical_bytes == turned.logical_bytes == 300 * 16 * 4
    assert narrow.tiled_bytes == 304 * 128 * 4  # channels padded to the lanes
    assert turned.tiled_bytes == 384 * 16 * 4  # rows along the lanes
    assert (narrow.space, turned.space) == (0, 1)
    assert scalar.shape == ()
    assert small.tiled_bytes == 2 * 128 * 2


def test_what_runs_in_a_loop_is_counted_as_often():
    program = parse_program(PROGRAM)
    (loop,) = [
        line
        for line in program.computations[program.entry].values()
        if line.opcode == "while"
    ]
    assert rounds(program, loop) == 9
    work = count_work(program)
    assert work.flops == 9 * 2 * 256 * 48 * 16
    assert work.cycles == 9 * 70
    assert (work.gathered_rows, work.gathered_tile_rows) == (9 * 256, 9 * 256)
    assert work.gathered_from_hbm == 0
    assert work.gathered_bytes == 9 * 256 * 128
    assert work.padding_bytes == 9 * 256 * (128 - 48)
    assert (work.loops, work.gathers, work.scatters) == (1, 1, 0)


def test_bytes_are_those_of_slices_and_gathered_rows():
    work = count_work(parse_program(PROGRAM))
    # Of the kernel, which lies in HBM, one matrix a round, and its number; then the
    # exchanges' results, the scalar among them.
    assert work.hbm_bytes == 9 * (48 * 128 * 4 + 4) + 256 * 16 * 4 + 4 + 128 * 4
    gathered = 2 * 256 * 128 + 256 * 4
    product = 256 * 128 + 2 * 256 * 16 * 4
    assert work.vmem_bytes == 9 * (gathered + product) + 3 * 256 * 16 * 4


def test_a_gather_from_hbm_is_known():
    far = PROGRAM.replace(
        "s8[300,48]{1,0:T(8,128)(4,1)S(1)}", "s8[300,48]{1,0:T(8,128)}"
    )
    assert count_work(parse_program(far)).gathered_from_hbm == 9 * 256


def test_a_gather_of_many_channels_counts_every_tile():
    wide = PROGRAM.replace("s8[256,48]", "s8[256,300]")
    work = count_work(parse_program(wide.replace("f32[256,48]", "f32[256,300]")))
    assert work.gathered_rows == 9 * 256
    assert work.gathered_tile_rows == 9 * 256 * 3


def test_exchanges_are_found_with_their_bytes():
    gather, reduce = find_collectives(parse_program(PROGRAM))
    assert gather == ("all-gather", 1, 1, 64 * 4)
    assert reduce == ("all-reduce", 1, 2, 256 * 16 * 4 + 4)


def test_a_loop_without_a_fixed_number_of_rounds_is_refused():
    program = parse_program(PROGRAM.replace("constant(9)", "parameter(1)"))
    with pytest.raises(ValueError, match="no fixed number"):
        count_work(program)
    with pytest.raises(ValueError, match="no ENTRY"):
        parse_program("HloModule empty")


def test_scatters_are_counted_by_what_they_write():
    text = """
%fused (t: s32[1000], i: s32[64,1], u: s32[64]) -> s32[1000] {
  %t = s32[1000]{0:T(1024)S(1)} parameter(0)
  %i = s32[64,1]{0,1:T(1,128)} parameter(1)
  %u = s32[64]{0:T(128)} parameter(2)
  ROOT %s = s32[1000]{0:T(1024)S(1)} scatter(%t, %i, %u), to_apply=%region
}

ENTRY %main (t: s32[1000], i: s32[64,1], u: s32[64]) -> s32[1000] {
  %t = s32[1000]{0:T(1024)S(1)} parameter(0)
  %i = s32[64,1]{0,1:T(1,128)} parameter(1)
  %u = s32[64]{0:T(128)} parameter(2)
  ROOT %f = s32[1000]{0:T(1024)S(1)} fusion(%t, %i, %u), kind=kCustom, calls=%fused
}
"""
    work = count_work(parse_program(text))
    assert (work.scatters, work.scattered_rows) == (1, 64)
    gathers = work._replace(cycles=10, gathered_tile_rows=100, gathered_from_hbm=30)
    rows = 70 * GATHER_CYCLES + 30 * HBM_GATHER_CYCLES
    expected = round(10 + rows + 64 * SCATTER_CYCLES)
    assert scheduled_cycles(gathers) == expected


def test_the_largest_batch_lies_between_a_fit_and_a_refusal():
    tried = []

    def try_clouds(clouds):
        tried.append(clouds)
        if clouds > 777:
            raise OutOfMemory("Used 20G of 16G hbm")
        return 10 + 2 * clouds

    largest = find_largest(try_clouds, start=16, memory=10 + 2 * 777)
    assert largest.fits <= 777 < largest.refused <= 1.25 * largest.fits
    assert largest.said == "Used 20G of 16G hbm"
    assert len(tried) < 8
    # A program can take more than the memory analysis leaves room for, and fit.
    tried.clear()
    crowded = find_largest(lambda n: try_clouds(n) * 10**6, start=16, memory=1)
    assert crowded.fits <= 777 < crowded.refused <= 1.25 * crowded.fits + 1
    assert len(tried) < 25
    # Where nothing is refused the search ends all the same.
    endless = find_largest(lambda clouds: clouds, start=1, memory=10**12, most=500)
    assert endless == (500, None, "")


def test_exchanges_of_a_step_follow_from_the_sizes_of_the_network():
    gather, derivative, gradient, needs = step_exchanges(
        parameters=1000, norm_channels=[16, 32], levels=5, devices=4
    )
    assert gather.result_bytes == derivative.result_bytes == 4 * 3 * 48 * 4
    assert gather.times == derivative.times == 2
    assert gradient.result_bytes == 4 * 1000 + 12
    assert needs.result_bytes == 4 * 5 * 3 * 4
    assert not step_exchanges(parameters=1000, norm_channels=[16], levels=5, devices=1)


def test_bytes_sent_in_a_ring():
    # Four devices: three steps scatter-reduce a quarter each, three gather it.
    assert sent_bytes("all-reduce", 400, 4) == 2 * 3 * 100
    assert sent_bytes("all-gather", 400, 4) == 3 * 100
    assert sent_bytes("reduce-scatter", 100, 4) == 3 * 100
    assert sent_bytes("all-reduce", 400, 1) == 0
    with pytest.raises(ValueError, match="got 'broadcast'"):
        sent_bytes("broadcast", 1, 2)


def test_a_step_is_estimated_as_by_hand():
    work = {"flops": 197e9, "hbm_bytes": 819e6, "cycles": V5E.cycles / 100}
    alone = estimate_step(work, V5E, [], 1)
    assert alone.products == pytest.approx(FLOAT32_PASSES * 1e-3)
    assert alone.memory == pytest.approx(1e-3)
    assert alone.schedule == pytest.approx(10e-3)
    assert alone.exchange == 0
    assert alone.roofline == pytest.approx(6e-3)
    assert alone.scheduled == pytest.approx(10e-3)
    exchanges = step_exchanges(parameters=10**6, norm_channels=[], levels=1, devices=16)
    many = estimate_step(work, V5E, exchanges, 16)
    # A grid of 4 x 4: six hops; the sum passes them twice, the gather once.
    sums, needs = 4e6 + 12, 16 * 12
    seconds = (2 + 1) * 6 * HOP_SECONDS + (2 * sums + needs) * 15 / 16 / 200e9
    assert many.exchange == pytest.approx(seconds)
    assert many.roofline == pytest.approx(alone.roofline + seconds)
    assert [rings(n) for n in (1, 2, 8, 12, 256)] == [
        (1, 1),
        (1, 2),
        (2, 4),
        (3, 4),
        (16, 16),
    ]


def test_the_table_of_estimates_has_a_row_for_each_network():
    row = {
        "variant": "T",
        "kind": "train",
        "topology": "v5e:2x2",
        "clouds": 16,
        "parameters": 10,
        "norm_channels": [4],
        "levels": 2,
        "scheduled_cycles": 15_000_000,
        "work": {"flops": 1, "hbm_bytes": 0},
    }
    later = row | {"topology": "v5e:16x16", "clouds": 99}
    chosen = first_programs([row | {"kind": "infer"}, row, later])
    assert chosen == [row]
    table = format_scaling(chosen)
    assert "| T, 16 clouds a v5e chip | schedule, ms | 9.98 (100%)" in table
    assert "1 microsecond a hop, which is a guess" in table


def has_libtpu():
    return importlib.util.find_spec("libtpu") is not None


def test_without_libtpu_the_command_says_what_to_install():
    if has_libtpu():
        pytest.skip("libtpu is installed")
    done = subprocess.run(
        [sys.executable, "-m", "experiments.tpu_compile", "--quick"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "pip install -e '.[tpu]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_smallest_network_compiles_for_four_chips(tmp_path):
    if not has_libtpu():
        pytest.skip("libtpu is not installed: pip install -e '.[tpu]'")
    command = [sys.executable, "-m", "experiments.tpu_compile", "--quick"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    result = json.loads(done.stdout.splitlines()[-1])
    train, infer = result["programs"]
    assert (train["kind"], infer["kind"]) == ("train", "infer")
    assert train["parameters"] == 1_874_216
    assert train["work"]["scatters"] == 0
    found = {part["kind"]: part for part in train["collectives"]}
    expected = step_exchanges(
        parameters=train["parameters"],
        norm_channels=train["norm_channels"],
        levels=5,
        devices=4,
    )
    sums = [part for part in expected if part.kind.startswith("sum")]
    gathers = [part for part in expected if part.kind.startswith("gather")]
    for kind, parts in (("all-reduce", sums), ("all-gather", gathers)):
        assert found[kind]["result_bytes"] == sum(part.result_bytes for part in parts)
        # XLA may split the sum of the gradient into several exchanges.
        more = found[kind]["times"] - sum(part.times for part in parts)
        assert 0 <= more <= 3 * (kind == "all-reduce")
    assert (tmp_path / "programs.md").read_text().startswith("| network, program |")
