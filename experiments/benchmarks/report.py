"""What benchmarks say of their times and memory: JSON fields, a table, figures."""

import importlib.metadata
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from matplotlib.figure import Figure

from experiments.benchmarks.timing import Timings, describe_machine, ratio, spread

# What decides how many threads share the cores with XLA's own.
ENVIRONMENT = (
    "OPENBLAS_NUM_THREADS",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NPROC",
    "XLA_FLAGS",
    "JAX_PLATFORMS",
)
_OURS, _THEIRS = "#c1440e", "#7a8794"


def report(line: str) -> None:
    """Says how far a measurement is."""
    print(line, file=sys.stderr, flush=True)


def timed(compute: Callable[[], Any]) -> tuple[Any, float]:
    """Returns a value and the seconds that it took."""
    start = time.perf_counter()
    value = compute()
    return value, time.perf_counter() - start


def _read_status(field: str) -> int | None:
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith(f"{field}:"):
                return 1024 * int(line.split()[1])
    return None


def memory_now() -> int:
    """Bytes of memory that this process holds; its peak on systems without /proc."""
    now = _read_status("VmRSS")
    return peak_memory() if now is None else now


def reset_peak() -> None:
    """Makes `peak_memory` count from now on, where the system can."""
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")


def peak_memory() -> int:
    """Most bytes of memory that this process has held at once."""
    # Linux hands the peak of `getrusage` down from the parent to its children.
    peak = _read_status("VmHWM")
    if peak is not None:
        return peak
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def is_ours(whose: str) -> bool:
    """Whether a case is this project's."""
    return whose.startswith("ours")


def summarize(times: Timings) -> dict[str, Any]:
    """Seconds of every case, and ours over each other one's in the same rounds.

    A case that ran in fewer rounds than the others ran in the first of them.
    """
    seconds: dict[str, Any] = {}
    cpu_seconds: dict[str, Any] = {}
    ratios: dict[str, Any] = {}
    for (kind, whose), timing in times.items():
        wall, cpu = ([t / 1e3 for t in part] for part in timing)
        seconds.setdefault(kind, {})[whose] = spread(wall) | {"rounds": len(wall)}
        cpu_seconds.setdefault(kind, {})[whose] = spread(cpu)
        for (other_kind, other), theirs in times.items():
            if other_kind == kind and is_ours(whose) and not is_ours(other):
                paired = ratio(timing.wall[: len(theirs.wall)], theirs.wall)
                ratios.setdefault(kind, {}).setdefault(whose, {})[other] = paired
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "ratio": ratios}


def describe() -> dict[str, Any]:
    """The machine, with the linear algebra of NumPy and of SciPy, which JAX calls."""
    machine = describe_machine()
    for name in ("scipy", "netrep", "anatome"):
        try:
            machine["versions"][name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            machine["versions"][name] = None
    machine["blas"] = {
        "numpy": _name_blas(np.show_config(mode="dicts")),
        "scipy": _name_blas(scipy.show_config(mode="dicts")),
    }
    machine["environment"] = {name: os.environ.get(name) for name in ENVIRONMENT}
    return machine


def _name_blas(config: Any) -> str:
    blas = config["Build Dependencies"]["blas"]
    return f"{blas['name']} {blas['version']}"


def format_table(result: dict[str, Any]) -> str:
    """Times, ratios and errors of every part as lines of text."""
    lines = [
        f"{result['cores']} cores, load {result['load_average']:.1f} before and "
        f"{result['load_average_after']:.1f} after; NumPy with "
        f"{result['blas']['numpy']}, OPENBLAS_NUM_THREADS="
        f"{result['environment']['OPENBLAS_NUM_THREADS']}"
    ]
    if result["busy"]:
        lines.append("BUSY: others used the cores. The times are too long.")
    for name, part in result["parts"].items():
        lines += ["", name, _header("seconds", "lower", "median", "upper", "rounds")]
        for kind, rows in part["seconds"].items():
            for whose, row in rows.items():
                lines.append(_row(f"{kind}, {whose}", row) + f"{row['rounds']:10}")
        lines.append(_header("ratio, ours / theirs", "lower", "median", "upper"))
        for kind, by_ours in part["ratio"].items():
            for ours, rows in by_ours.items():
                for theirs, row in rows.items():
                    lines.append(_row(f"{kind}, {ours} / {theirs}", row))
        lines.append(_header("largest error"))
        for kind, errors in part["error"].items():
            for whose, error in errors.items():
                lines.append(f"{f'  {kind}, {whose}':52}{error:10.1e}")
        for field, value in part.items():
            if field.endswith("_bytes"):
                label = field.removesuffix("_bytes").replace("_", " ")
                lines.append(f"{f'  {label}':52}{value / 1e6:10.0f} MB")
        for package in part.get("not_installed", []):
            lines.append(f"  {package}: not installed")
    return "\n".join(lines)


def _header(title: str, *columns: str) -> str:
    return f"{title:52}" + "".join(f"{column:>10}" for column in columns)


def _row(name: str, row: dict[str, float]) -> str:
    return (
        f"{f'  {name}':52}{row['lower_quartile']:10.4g}{row['median']:10.4g}"
        f"{row['upper_quartile']:10.4g}"
    )


def plot_seconds(part: dict[str, Any], *, title: str) -> Figure:
    """Horizontal bars of the medians on a logarithmic axis, quartiles as whiskers."""
    rows = [
        (kind, whose, row)
        for kind, by_whom in part["seconds"].items()
        for whose, row in by_whom.items()
    ]
    # A gap between kinds: what stands together may be compared.
    kinds = list(part["seconds"])
    places = np.asarray(
        [i + 0.6 * kinds.index(kind) for i, (kind, *_) in enumerate(rows)]
    )
    medians = np.asarray([row["median"] for *_, row in rows])
    low = medians - [row["lower_quartile"] for *_, row in rows]
    high = np.asarray([row["upper_quartile"] for *_, row in rows]) - medians
    figure = Figure(figsize=(7.5, 1.1 + 0.28 * (places[-1] + 1)), layout="constrained")
    axes = figure.add_subplot()
    colours = [_OURS if is_ours(whose) else _THEIRS for _, whose, _ in rows]
    axes.barh(places, medians, height=0.75, color=colours)
    axes.errorbar(medians, places, xerr=[low, high], fmt="none", ecolor="0.2", lw=1)
    for place, median, (*_, row) in zip(places, medians, rows, strict=True):
        once = ", once" if row["rounds"] == 1 else ""
        axes.annotate(
            f"{median:.3g} s{once}",
            (row["upper_quartile"], place),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    names = [f"{kind}: {whose.replace('_', ' ')}" for kind, whose, _ in rows]
    axes.set_yticks(places, names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xscale("log")
    # Bars on a logarithmic axis have no zero to start from; room for the numbers.
    axes.set_xlim(medians.min() / 3, medians.max() * 6)
    axes.set_xlabel("seconds (median, quartiles)")
    axes.set_title(title, fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    return figure
