"""The benchmarks' results in a few lines: rows of a table for a README."""

from collections.abc import Callable
from typing import Any

from experiments.benchmarks.report import is_ours

Row = tuple[str, str]
"""What was measured, and what came out."""


def format_headlines(results: dict[str, dict[str, Any]]) -> str:
    """A Markdown table of what the benchmarks printed, by their names."""
    lines = ["| what | result | command |", "|---|---|---|"]
    for name, result in results.items():
        command = f"`python -m experiments.benchmarks.{name}`"
        for what, value in HEADLINES[name](result):
            busy = " (on a busy machine)" if result.get("busy") else ""
            lines.append(f"| {what} | {value}{busy} | {command} |")
            command = "as above"
    return "\n".join(lines)


def format_seconds(seconds: float) -> str:
    """Three digits, in seconds or milliseconds."""
    if seconds >= 1:
        return f"{seconds:.3g} s"
    return f"{1e3 * seconds:.3g} ms"


def format_bytes(number: float) -> str:
    """Megabytes, or gigabytes from 1 GB on."""
    return f"{number / 1e9:.2f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"


def format_ratio(row: dict[str, float]) -> str:
    """A median with quartiles, where there are any."""
    text = f"ratio {row['median']:.2f}"
    if "lower_quartile" in row:
        text += f" ({row['lower_quartile']:.2f} to {row['upper_quartile']:.2f})"
    return text


def compare(part: dict[str, Any], kind: str) -> str:
    """Ours beside the fastest of others, spconv where it was timed."""
    seconds = {whose: row["median"] for whose, row in part["seconds"][kind].items()}
    others = {whose for whose in seconds if not is_ours(whose)}
    peers = {whose for whose in others if whose.startswith("spconv")} or others
    # On one device, or one cloud on all of them.
    dealt = [whose for whose in seconds if whose.endswith("_devices")]
    mine = min(["ours", *dealt], key=lambda whose: seconds[whose])
    text = f"{_name(mine)} {format_seconds(seconds[mine])}"
    if "ours_fast" in seconds:
        text += f", `fast` {format_seconds(seconds['ours_fast'])}"
    if not peers:
        return text
    against = min(peers, key=lambda whose: (seconds[whose], whose))
    ratio = format_ratio(part["ratio"][kind][mine][against])
    return f"{text} / {_name(against)} {format_seconds(seconds[against])}, {ratio}"


def _name(whose: str) -> str:
    return whose.replace("_", " ").replace("1 threads", "1 thread")


def _describe_scaling(rows: dict[str, Any], unit: str) -> str:
    times = [row[f"nanoseconds_per_{unit}"] for row in rows.values()]
    sizes = [f"{int(voxels):,}" for voxels in rows]
    first, last = (f"{times[end]:,.0f} ns a {unit} for {sizes[end]}" for end in (0, -1))
    text = f"{first}, {last} voxels"
    if {"20000", "200000"} <= set(rows):
        small, large = (rows[n][f"nanoseconds_per_{unit}"] for n in ("20000", "200000"))
        text += f", ratio of 200,000 to 20,000 {large / small:.2f}"
    return text


def _sparse_conv(result: dict[str, Any]) -> list[Row]:
    rows = [
        (
            f"3x3x3 convolution, {result['voxels']:,} voxels, {kind}",
            compare(result, kind),
        )
        for kind in result["seconds"]
    ]
    for kind, sizes in result["scaling"].items():
        what = f"the same, {result['scaling_channels']} channels {kind}, ours"
        rows.append((what, _describe_scaling(sizes, "pair")))
    return rows


def _kernel_map(result: dict[str, Any]) -> list[Row]:
    what = (
        f"maps of all levels, {result['clouds']} clouds, {result['voxels'][0]:,} voxels"
    )
    limit = f"; limit {result['limit_milliseconds']:.0f} ms"
    rows = [(what, compare(result, "levels") + limit)]
    for kind, by_whom in result["scaling"].items():
        largest = list(by_whom["ours"])[-1]
        what = f"{kind} map, {int(largest):,} voxels"
        rows.append((what, compare(result, f"{kind}, {largest} voxels")))
        rows.append((f"{kind} map, ours", _describe_scaling(by_whom["ours"], "voxel")))
    return rows


def _training_step(result: dict[str, Any]) -> list[Row]:
    rows = []
    batch = f"{result['variant']}, {result['clouds']} clouds"
    for kind in ("train_step_with_maps", "forward_with_maps", "train_step", "maps"):
        milliseconds = result["milliseconds"][kind]
        text = f"ours {format_seconds(milliseconds['ours']['median'] / 1e3)}"
        if kind in result["ratio"]:
            ratio = result["ratio"][kind]
            theirs = milliseconds[ratio["against"]]["median"] / 1e3
            text += f" / {_name(ratio['against'])} {format_seconds(theirs)}"
            text += f", {format_ratio(ratio)}"
        rows.append((f"{kind.replace('_', ' ')}, {batch}", text))
    return rows


def _neurons(result: dict[str, Any]) -> list[Row]:
    rows = []
    for steps, part in result["parts"].items():
        seconds = part["seconds"][f"{steps} steps"]
        text = f"ours {format_seconds(seconds['ours_hard']['median'])}"
        if "fastest_peer" in part:
            peer = part["fastest_peer"]
            text += f" / {_name(peer)} {format_seconds(seconds[peer]['median'])}"
            text += f", {format_ratio(part['ratio_to_fastest']['ours_hard'])}"
        what = f"LIF with hard reset, {steps} steps x {result['neurons']:,} neurons"
        rows.append((what, text))
    return rows


def _memory(result: dict[str, Any]) -> list[Row]:
    # The largest batch of each network, without and with rematerialisation.
    largest: dict[str, int] = {}
    for row in result["rows"]:
        seen = largest.get(row["variant"], 0)
        largest[row["variant"]] = max(seen, row["batch_size"])
    rows = []
    for variant, batch_size in largest.items():
        texts = []
        for row in result["rows"]:
            if (row["variant"], row["batch_size"]) != (variant, batch_size):
                continue
            text = "rematerialised " if row.get("rematerialise") else ""
            if row.get("working_bytes") is not None:
                text += f"{format_bytes(row['working_bytes'])} planned, "
            text += f"{format_bytes(row['peak_bytes'])} at the peak, "
            texts.append(text + format_seconds(row["milliseconds"] / 1e3))
        what = f"memory of a training step, {variant}, {batch_size} clouds"
        rows.append((what, "; ".join(texts)))
    return rows


def _similarity(result: dict[str, Any]) -> list[Row]:
    rows = []
    for name, part in result["parts"].items():
        size = f"{len(part['widths'])} layers, {part['datapoints']:,} datapoints"
        for kind, seconds in part["seconds"].items():
            if "ours" in seconds:
                what = f"{kind.replace('_', ' ')}, {name}, {size}"
                rows.append((what, compare(part, kind)))
    return rows


def _records(result: dict[str, Any]) -> list[Row]:
    rows = []
    for kind, speed in result["clouds_per_second"].items():
        text = f"{speed['ours_records']:,.0f} / text {speed['txt']:,.0f} clouds/s, "
        rows.append(
            (
                f"packed records, {kind}, {result['points']:,.0f} points, one core",
                text + format_ratio(result["speedup"][kind]),
            )
        )
    return rows


HEADLINES: dict[str, Callable[[dict[str, Any]], list[Row]]] = {
    "sparse_conv": _sparse_conv,
    "kernel_map": _kernel_map,
    "training_step": _training_step,
    "neurons": _neurons,
    "memory": _memory,
    "similarity": _similarity,
    "records": _records,
}
"""The rows of each benchmark's result."""
