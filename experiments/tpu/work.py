"""What an optimised program does on each chip: products, bytes, gathers, exchanges.

`cost_analysis` counts the body of a loop once, whatever the number of rounds, so the
operations are counted here, each as often as it runs. Bytes are those of the tiles that
arrays take in memory: a row of 16 floats takes 128 lanes.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from experiments.tpu.hlo import (
    ArrayType,
    Instruction,
    Program,
    called_by,
    executed,
)

_COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "collective-permute",
    "all-to-all",
)
# What moves no data of its own.
_FREE = {"parameter", "constant", "bitcast", "get-tuple-element", "tuple", "while"}
_FREE |= {"conditional", "call", "after-all", "partition-id", "custom-call"}
LANES = 128


class Work(NamedTuple):
    """What a program does on each chip."""

    flops: int
    """Of the matrix products; 2 a multiply-add, each float32 product once."""
    hbm_bytes: int
    """Read from and written to HBM, tiles' padding included."""
    vmem_bytes: int
    """The same of VMEM."""
    cycles: int
    """The compiler's own estimates, which leave out gathers and scatters."""
    gathered_rows: int
    gathered_tile_rows: int
    """Those rows, each once for every 128 channels."""
    gathered_from_hbm: int
    """Of these, those that lie in HBM."""
    gathered_bytes: int
    """Written by gathers, tiles' padding included."""
    padding_bytes: int
    """Of those, the lanes that hold no channel."""
    scattered_rows: int
    loops: int
    """Loops in the program."""
    gathers: int
    scatters: int
    """Gathers and scatters in the program's text."""


def count_work(program: Program) -> Work:
    """Adds up what all instructions do, each as often as it runs."""
    total = dict.fromkeys(Work._fields, 0)
    for name, line, times in executed(program):
        if line.opcode == "while":
            total["loops"] += 1
        if line.opcode in _FREE or line.opcode.endswith("-done"):
            continue
        scope = program.computations[name]
        inside = scope
        members = [(scope, line)]
        if line.opcode == "fusion":
            inside = program.computations[called_by(line, "calls")]
            members = list(_fused(program, line))
        cycles = re.search(r'"estimated_cycles":"(\d+)"', line.attributes)
        total["cycles"] += times * int(cycles[1]) if cycles else 0
        for around, member in members:
            if member.opcode in ("dot", "convolution"):
                total["flops"] += times * _flops(member, around)
            if member.opcode == "gather" and member.arrays[0].shape[1:]:
                (rows,) = member.arrays
                written = line.arrays[0] if line.opcode == "fusion" else rows
                total["gathers"] += 1
                total["gathered_rows"] += times * rows.shape[0]
                tiles = -(-math.prod(rows.shape[1:]) // LANES)
                total["gathered_tile_rows"] += times * tiles * rows.shape[0]
                if _space_of(member.operands[0], around, line, scope) == 0:
                    total["gathered_from_hbm"] += times * tiles * rows.shape[0]
                total["gathered_bytes"] += times * written.tiled_bytes
                total["padding_bytes"] += times * (
                    written.tiled_bytes - written.logical_bytes
                )
            if member.opcode == "scatter":
                total["scatters"] += 1
                (updates,) = around[member.operands[-1]].arrays
                total["scattered_rows"] += times * math.prod(updates.shape)
        for array in _moved(line, scope, inside):
            kind = "vmem_bytes" if array.space == 1 else "hbm_bytes"
            total[kind] += times * array.tiled_bytes if array.space < 2 else 0
    return Work(**total)


Scope = dict[str, Instruction]


def _fused(program: Program, line: Instruction) -> Iterator[tuple[Scope, Instruction]]:
    """Every instruction of a fusion, those of fusions in it among them."""
    scope = program.computations[called_by(line, "calls")]
    for member in scope.values():
        yield scope, member
        if member.opcode == "fusion":
            yield from _fused(program, member)


def _space_of(name: str, around: Scope, line: Instruction, scope: Scope) -> int:
    """Memory that an operand of a fusion's gather lies in."""
    found = around[name]
    while found.opcode in ("bitcast", "get-tuple-element"):
        found = around[found.operands[0]]
    if found.opcode == "parameter" and line.opcode == "fusion":
        found = scope[line.operands[int(found.operands[0])]]
    return found.arrays[0].space


def _flops(line: Instruction, scope: dict[str, Instruction]) -> int:
    """Two for each term of each output of a matrix product."""
    right = scope[line.operands[1]].arrays[0]
    labels = re.search(r"dim_labels=\w+_(\w+)->", line.attributes)
    if labels:
        terms = math.prod(
            size
            for letter, size in zip(labels[1], right.shape, strict=True)
            if letter != "o"
        )
    else:
        axes = re.search(r"rhs_contracting_dims=\{([\d,]*)\}", line.attributes)
        numbers = axes[1].split(",") if axes else []
        terms = math.prod(right.shape[int(axis)] for axis in numbers if axis)
    return 2 * math.prod(line.arrays[0].shape) * terms


def _moved(
    line: Instruction, scope: dict[str, Instruction], inside: dict[str, Instruction]
) -> Iterator[ArrayType]:
    """The arrays that an instruction reads and writes; slices where it takes those."""
    written = line.arrays
    aliased = None
    if line.opcode == "slice-start":
        # The operand, its slice, a flag: the slice alone is read and written.
        operand, piece = line.arrays[:2]
        yield from (piece, piece._replace(space=operand.space))
        return
    if line.opcode == "copy-start":
        written = written[:1]
    elif line.opcode.endswith("-start") and len(written) > len(line.operands):
        written = written[len(line.operands) : 2 * len(line.operands)]
    if line.opcode == "fusion":
        (root,) = [member for member in inside.values() if member.is_root]
        while root.opcode == "bitcast":
            root = inside[root.operands[0]]
        if root.opcode == "dynamic-update-slice":
            written = inside[root.operands[1]].arrays
            aliased = root.operands[0]
    yield from written
    for place, operand in enumerate(line.operands):
        if operand not in scope:
            continue
        array = scope[operand].arrays
        if line.opcode == "fusion":
            parameter = next(
                member
                for member in inside.values()
                if member.opcode == "parameter" and member.operands == [str(place)]
            )
            users = [
                member
                for member in inside.values()
                if parameter.name in member.operands
            ]
            if parameter.name == aliased:
                continue
            if users and all(
                user.opcode in ("dynamic-slice", "gather")
                and user.operands[0] == parameter.name
                for user in users
            ):
                space = array[0].space
                array = [user.arrays[0]._replace(space=space) for user in users]
        yield from array


class Collective(NamedTuple):
    """One kind of exchange between chips."""

    kind: str
    times: int
    """How often it runs."""
    operands: int
    """Arrays that it exchanges; XLA joins several into one exchange."""
    result_bytes: int
    """Of the results on one chip, without padding of tiles."""


def find_collectives(program: Program) -> list[Collective]:
    """The exchanges of a program, by kind."""
    found: dict[str, list[int]] = {}
    for _, line, times in executed(program):
        kind = line.opcode.removesuffix("-start")
        if kind not in _COLLECTIVES:
            continue
        arrays = line.arrays
        if line.opcode.endswith("-start") and len(arrays) > len(line.operands):
            arrays = arrays[len(line.operands) : 2 * len(line.operands)]
        sums = found.setdefault(kind, [0, 0, 0])
        sums[0] += times
        sums[1] += times * len(line.operands)
        sums[2] += times * sum(array.logical_bytes for array in arrays)
    return [Collective(kind, *sums) for kind, sums in sorted(found.items())]
