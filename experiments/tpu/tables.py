"""Tables in markdown of what `experiments.tpu_compile` found."""

from collections.abc import Sequence
from typing import Any

_COLUMNS = (
    "network, program",
    "slice",
    "clouds a chip",
    "arguments + temporaries, all, MB",
    "GFLOP",
    "HBM / VMEM traffic, GB",
    "cycles, 1e6",
    "rows gathered, 1e6 (padding)",
    "rows scattered, 1e6",
    "exchanges",
    "compiled in s",
)


def format_tables(result: dict[str, Any]) -> str:
    """The programs, a chip's share of each, and the most clouds a chip."""
    lines = [*_head(_COLUMNS)]
    lines += [_row(_cells_of(row)) for row in result["programs"]]
    if result["largest"]:
        names = ("network, train step", "chip", "clouds that fit", "refused", "said")
        lines += ["", *_head(names)]
        for row in result["largest"]:
            names = ("variant", "chip", "fits", "refused", "said")
            lines.append(_row([row[name] for name in names]))
    return "\n".join(lines)


def _cells_of(row: dict[str, Any]) -> tuple[Any, ...]:
    work = row["work"]
    arguments, temporaries, total = (
        row[f"{name}_bytes"] / 1e6 for name in ("argument", "temporary", "total")
    )
    padding = work["padding_bytes"] / max(work["gathered_bytes"], 1)
    exchanges = [
        f"{found['times']} {found['kind']} {found['result_bytes'] / 1e6:.3g} MB"
        for found in row["collectives"]
    ]
    return (
        f"{row['variant']}, {row['kind']}",
        row["topology"],
        row["clouds"],
        f"{arguments:.0f} + {temporaries:.0f}, {total:.0f}",
        f"{work['flops'] / 1e9:.1f}",
        f"{work['hbm_bytes'] / 1e9:.2f} / {work['vmem_bytes'] / 1e9:.2f}",
        f"{row['scheduled_cycles'] / 1e6:.1f}",
        f"{work['gathered_rows'] / 1e6:.2f} ({padding:.0%})",
        f"{work['scattered_rows'] / 1e6:.2f}",
        ", ".join(exchanges) or "none",
        f"{row['compile_seconds']:.0f}",
    )


def _head(names: Sequence[str]) -> tuple[str, str]:
    return _row(names), "|" + "---|" * len(names)


def _row(cells: Sequence[Any]) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"
