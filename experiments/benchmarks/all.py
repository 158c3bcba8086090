"""All benchmarks one after another, each in a process of its own, and one table.

    python -m experiments.benchmarks.all
    python -m experiments.benchmarks.all --small
    python -m experiments.benchmarks.all --only kernel_map training_step --data DIR

Each benchmark's JSON line goes to `NAME.json` in `--out`, what it says on stderr, its
table last, to `NAME.txt`, and its figures to the folder `NAME`. One that fails does not
keep the others from running; the exit code is then 1.

The last line of stdout is one JSON object; a Markdown table of the headline numbers
goes to stderr and to `table.md`.
"""

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import tyro

from experiments.benchmarks.headlines import format_headlines
from experiments.benchmarks.report import report
from experiments.benchmarks.timing import describe_machine, is_busy

Name = Literal[
    "sparse_conv",
    "kernel_map",
    "training_step",
    "neurons",
    "memory",
    "similarity",
    "records",
]
NAMES: tuple[Name, ...] = get_args(Name)


class Options(NamedTuple):
    """Which settings a benchmark takes."""

    scan: bool = False
    data: bool = False
    out: bool = True
    small: tuple[str, ...] = ("--small",)
    """What makes it take seconds."""


OPTIONS: dict[Name, Options] = {
    "sparse_conv": Options(scan=True),
    "kernel_map": Options(scan=True, data=True),
    "training_step": Options(
        data=True,
        out=False,
        small=("--clouds", "4", "--voxels", "60", "--repeats", "1"),
    ),
    "neurons": Options(),
    "memory": Options(),
    "similarity": Options(),
    # Of texts alone, which the data of the others need not be.
    "records": Options(out=False),
}


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """Runs every benchmark."""

    only: tuple[Name, ...] = NAMES
    """Which ones, in this order."""
    scan: Path | None = None
    """A real scan (.bin of SemanticKITTI or KITTI) for those that take one."""
    data: Path | None = None
    """Dataset for those that take one."""
    small: bool = False
    """Sizes that take seconds, to see that everything runs."""
    out: Path = Path("runs/benchmarks")
    """Folder of the results."""
    settle: float = 120.0
    """Longest wait in seconds before each benchmark for the load of the one before to
    fade, so that "busy" speaks of others; with --small there is none."""


def list_arguments(name: Name, config: Benchmark) -> list[str]:
    """The settings of one benchmark as words of a command line."""
    options = OPTIONS[name]
    words = list(options.small) if config.small else []
    if options.scan and config.scan is not None:
        words += ["--scan", str(config.scan)]
    if options.data and config.data is not None:
        words += ["--data", str(config.data)]
    if options.out:
        words += ["--out", str(config.out / name)]
    return words


def run_in_process(name: Name, arguments: list[str], *, log: Path) -> dict[str, Any]:
    """Runs one benchmark in a new process.

    Args:
      name: Of the benchmark.
      arguments: Of its command line.
      log: File for what it says on stderr.

    Returns:
      The JSON object that it printed last.

    Raises:
      ValueError: If it failed or printed something else.
    """
    with open(log, "w") as file:
        done = subprocess.run(
            [sys.executable, "-m", f"experiments.benchmarks.{name}", *arguments],
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
        )
    if done.returncode:
        raise ValueError(f"{name} ended with exit code {done.returncode}, see {log}")
    try:
        return json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        raise ValueError(f"the last line of {name} is no JSON object") from None


def settle(seconds: float) -> None:
    """Waits until the machine is idle by its load average, at most so long."""
    end = time.monotonic() + seconds
    while is_busy(describe_machine()["load_average"]) and time.monotonic() < end:
        time.sleep(min(5.0, seconds))


def run(config: Benchmark) -> dict[str, Any]:
    """Runs every benchmark and writes the files.

    Returns:
      Why benchmarks failed, by name, and the seconds that each one took.
    """
    config.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, dict[str, Any]] = {}
    failed: dict[str, str] = {}
    seconds: dict[str, float] = {}
    for name in config.only:
        log, line = (config.out / f"{name}.{kind}" for kind in ("txt", "json"))
        report(f"{name}, log in {log}")
        # An earlier run's result must not stand for one that fails.
        line.unlink(missing_ok=True)
        settle(0.0 if config.small else config.settle)
        start = time.perf_counter()
        try:
            arguments = list_arguments(name, config)
            results[name] = run_in_process(name, arguments, log=log)
            line.write_text(json.dumps(results[name]) + "\n")
        except ValueError as error:
            failed[name] = str(error)
            report(f"FAILED: {error}")
        seconds[name] = time.perf_counter() - start
    table = config.out / "table.md"
    table.write_text(format_headlines(results) + "\n")
    return {
        "benchmark": "all",
        "small": config.small,
        "out": str(config.out),
        "table": str(table),
        "failed": failed,
        "seconds": seconds,
    }


def main() -> None:
    """Runs the benchmarks of the command line."""
    result = run(tyro.cli(Benchmark))
    print(Path(result["table"]).read_text(), file=sys.stderr)
    for problem in result["failed"].values():
        print(f"FAILED: {problem}", file=sys.stderr)
    print(json.dumps(result))
    if result["failed"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
