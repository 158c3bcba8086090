"""The text of an optimised program of XLA for TPU: computations, arrays, loops."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2}
_BYTES |= {"s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
_INSTRUCTION = re.compile(r"\s+(ROOT )?(%[\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)")


class ArrayType(NamedTuple):
    """An array in a program's text, such as `f32[36352,16]{0,1:T(8,128)S(1)}`."""

    dtype: str
    shape: tuple[int, ...]
    order: tuple[int, ...]
    """Axes from the fastest to the slowest."""
    tile: tuple[int, ...]
    space: int
    """0 is the memory of the chip (HBM), 1 that of the core (VMEM)."""

    @property
    def logical_bytes(self) -> int:
        """Bytes of the numbers alone."""
        return math.prod(self.shape) * _BYTES.get(self.dtype, 4)

    @property
    def tiled_bytes(self) -> int:
        """Bytes in memory, the tiles' padding included."""
        sizes = [self.shape[axis] for axis in self.order]
        for place, edge in enumerate(reversed(self.tile)):
            if place < len(sizes):
                sizes[place] = -(-sizes[place] // edge) * edge
        return math.prod(sizes) * _BYTES.get(self.dtype, 4)


def parse_arrays(text: str) -> list[ArrayType]:
    """Every array type in a piece of text, tuples' elements one after the other."""
    arrays = []
    for dtype, shape, layout in _ARRAY.findall(text):
        sizes = tuple(int(size) for size in shape.split(",") if size)
        axes, _, notes = layout.partition(":")
        order = tuple(int(axis) for axis in axes.split(",") if axis)
        tile = re.match(r"T\(([\d,]+)\)", notes)
        space = re.search(r"S\((\d+)\)", notes)
        arrays.append(
            ArrayType(
                dtype,
                sizes,
                order if len(order) == len(sizes) else tuple(range(len(sizes)))[::-1],
                tuple(int(edge) for edge in tile[1].split(",")) if tile else (),
                int(space[1]) if space else 0,
            )
        )
    return arrays


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    arrays: list[ArrayType]
    """The result; several if it is a tuple."""
    opcode: str
    operands: list[str]
    attributes: str
    is_root: bool


class Program(NamedTuple):
    """Computations by name, and which is the entry."""

    computations: dict[str, dict[str, Instruction]]
    entry: str


def parse_program(text: str) -> Program:
    """Reads a program's text.

    Raises:
      ValueError: If it has no entry computation.
    """
    computations: dict[str, dict[str, Instruction]] = {}
    current, entry = "", ""
    for line in text.splitlines():
        header = re.match(r"(ENTRY )?(%[\w.\-]+) \(.*\{$", line)
        if header:
            current = header[2]
            computations[current] = {}
            entry = current if header[1] else entry
            continue
        found = _INSTRUCTION.match(line)
        if found and current:
            root, name, result, opcode, rest = found.groups()
            inside, _, after = _split_operands(rest)
            operands = re.findall(r"%[\w.\-]+", inside) or [inside]
            computations[current][name] = Instruction(
                name, parse_arrays(result), opcode, operands, after, bool(root)
            )
    if not entry:
        raise ValueError("the text has no ENTRY: it is no program of XLA")
    return Program(computations, entry)


def _split_operands(rest: str) -> tuple[str, str, str]:
    depth = 1
    for place, letter in enumerate(rest):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return rest[:place], ")", rest[place + 1 :]
    return rest, "", ""


def called_by(instruction: Instruction, role: str) -> str:
    """Name of the computation that an instruction calls as its "body", "calls", ...

    Raises:
      ValueError: If it calls none so.
    """
    found = re.search(rf"{role}=(%[\w.\-]+)", instruction.attributes)
    if found is None:
        raise ValueError(f"{instruction.name} names no {role}")
    return found[1]


def rounds(program: Program, loop: Instruction) -> int:
    """How often the body of a loop runs: the number that its counter is compared with.

    Raises:
      ValueError: If the condition holds no single number to compare with.
    """
    condition = program.computations[called_by(loop, "condition")]
    limits = {
        int(line.operands[0])
        for line in condition.values()
        if line.opcode == "constant" and line.operands[0].isdigit()
    }
    if len(limits) != 1:
        raise ValueError(f"{loop.name} runs until one of {limits}: no fixed number")
    return limits.pop()


def executed(program: Program) -> Iterator[tuple[str, Instruction, int]]:
    """Yields (computation, instruction, times) for all that runs, fusions whole."""

    def walk(name: str, times: int) -> Iterator[tuple[str, Instruction, int]]:
        for line in program.computations[name].values():
            yield name, line, times
            if line.opcode == "while":
                inner = times * rounds(program, line)
                yield from walk(called_by(line, "body"), inner)
            elif line.opcode == "call":
                yield from walk(called_by(line, "to_apply"), times)

    yield from walk(program.entry, 1)
