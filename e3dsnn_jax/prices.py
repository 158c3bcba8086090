"""What operations and memories cost: a named table that can be replaced.

`e3dsnn energy --prices FILE.json` takes such a table; that of a run stands in its
`energy.json` under `prices_pj`, in the same form, to be copied and changed.
"""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple


class Memory(NamedTuple):
    """A kind of memory, and what moving a byte into it or out of it costs."""

    name: str
    bytes: int | None
    """What it holds; None: as much as is needed."""
    pj_per_byte: float


class Prices(NamedTuple):
    """Energy of each operation, in pJ; replace what your hardware does otherwise."""

    name: str
    source: str
    """Where the numbers come from."""
    multiply_accumulate: float
    add: float
    multiply: float
    integer_add: float
    memories: tuple[Memory, ...]
    """From the smallest to the largest; the last one holds everything."""


HOROWITZ_45NM = Prices(
    name="45 nm CMOS, 0.9 V, float32",
    source=(
        "M. Horowitz, Computing's energy problem (and what we can do about it), ISSCC "
        "2014: float32 addition 0.9 pJ, multiplication 3.7 pJ, int32 addition 0.1 pJ; "
        "64 bits of a cache of 8 KiB 10 pJ, of 32 KiB 20 pJ, of 1 MiB 100 pJ, of DRAM "
        "1300 to 2600 pJ, of which the lower one is taken"
    ),
    multiply_accumulate=4.6,
    add=0.9,
    multiply=3.7,
    integer_add=0.1,
    memories=(
        Memory("8 KiB", 2**13, 1.25),
        Memory("32 KiB", 2**15, 2.5),
        Memory("1 MiB", 2**20, 12.5),
        Memory("DRAM", None, 162.5),
    ),
)
"""The constants that papers on spiking networks use: 4.6 pJ a product and its sum."""


def choose_memory(prices: Prices, size: int) -> Memory:
    """The smallest memory that holds so many bytes."""
    for memory in prices.memories:
        if memory.bytes is None or size <= memory.bytes:
            return memory
    raise ValueError(
        f"the prices {prices.name!r} have no memory for {size} bytes: the last one "
        "must hold everything (bytes: null)"
    )


def describe_prices(prices: Prices) -> dict[str, Any]:
    """The table as JSON; `read_prices` reads it."""
    memories = [memory._asdict() for memory in prices.memories]
    return prices._asdict() | {"memories": memories}


def read_prices(path: Path) -> Prices:
    """Reads a table from a JSON file with the fields of `Prices`.

    Raises:
      OSError: If the file cannot be read.
      ValueError: If it is no JSON, a field is unknown, missing or of a wrong kind, or
        the memories are not in order.
    """
    try:
        given = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: this is no JSON: {error}") from error
    _check_fields(given, Prices, f"{path}: ")
    if not isinstance(given["memories"], list) or not given["memories"]:
        raise ValueError(
            f"{path}: memories is {given['memories']!r}, expected a list of one or more"
        )
    for number, memory in enumerate(given["memories"]):
        _check_fields(memory, Memory, f"{path}: memories[{number}].")
    memories = tuple(Memory(**memory) for memory in given["memories"])
    sizes = [memory.bytes for memory in memories]
    bounded = [size for size in sizes if size is not None]
    if sizes != [*sorted(set(bounded)), None]:
        raise ValueError(
            f"{path}: the bytes of the memories are {sizes}, expected ever "
            "larger ones and null (as much as is needed) for the last one alone"
        )
    return Prices(**(given | {"memories": memories}))


def _check_fields(given: Any, kind: type[Prices] | type[Memory], where: str) -> None:
    known = kind._fields
    if not isinstance(given, dict):
        raise ValueError(
            f"{where.rstrip(': .')}: {given!r} is no object with the fields "
            f"{', '.join(known)}"
        )
    for name in given:
        if name not in known:
            raise ValueError(
                f"{where}{name} is no field of the prices; the fields there are "
                f"{', '.join(known)}"
            )
    for name in known:
        if name not in given:
            raise ValueError(f"{where}{name} is missing")
    for name, value in given.items():
        if name == "memories":
            continue
        if name in ("name", "source"):
            fits, expected = isinstance(value, str), "a text"
        elif name == "bytes":
            whole = isinstance(value, int) and not isinstance(value, bool)
            fits = value is None or (whole and value > 0)
            expected = "a whole number above 0, or null"
        else:
            number = isinstance(value, int | float) and not isinstance(value, bool)
            fits = number and math.isfinite(value) and value >= 0
            expected = "a number of pJ, 0 or more"
        if not fits:
            raise ValueError(f"{where}{name} is {value!r}, expected {expected}")
