"""Kills, damaged files, full disks and extreme clouds: nothing may be lost or wrong.

    python -m experiments.faults
    python -m experiments.faults --part mutations clouds --mutations 200
    python -m experiments.faults --kills 20 --mutations 200 --seed 1 --out runs/faults

A training run is killed again and again and resumed; a valid file of every format is
damaged and read; caches, weights and runs are written where there is no room; clouds of
extreme shapes go through the network. Outcomes are counted in a table on stderr, with
the first findings of each kind below it. The last line of stdout is JSON; the exit code
is 1 if any outcome is worse than a refusal that names the file.
"""

import dataclasses
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Literal

import tyro

from experiments.faults.outcomes import (
    Campaign,
    format_findings,
    format_table,
    to_json,
)

Part = Literal["kills", "mutations", "disk", "clouds"]


@dataclasses.dataclass(frozen=True)
class Config:
    """A campaign of faults."""

    part: tuple[Part, ...] = ("kills", "mutations", "disk", "clouds")
    """What to try."""
    kills: int = 100
    """How often training runs are killed."""
    mutations: int = 1000
    """Damaged files of each format."""
    seed: int = 0
    """Chooses the moments of the kills and the damage to files."""
    out: Path | None = None
    """Folder for the runs, and for damaged files that were read wrongly; deleted at
    the end if omitted."""


def main(config: Config) -> int:
    """Runs the campaign, prints its table, and returns the exit code."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        out = config.out or Path(temporary)
        out.mkdir(parents=True, exist_ok=True)
        parts: dict[str, Campaign] = {}
        for part in config.part:
            print(f"{part} ...", file=sys.stderr)
            parts[part] = _run(part, config, out / part)
    print(format_table(parts), file=sys.stderr)
    print(format_findings(parts), file=sys.stderr)
    result = to_json(parts, seconds=time.monotonic() - began)
    print(json.dumps(result))
    return 0 if result["ok"] else 1


def _run(part: Part, config: Config, folder: Path) -> Campaign:
    """Runs one part; each imports only what it needs."""
    if any(folder.glob("*")):
        raise SystemExit(f"{folder} is not empty; name another folder with --out")
    folder.mkdir(exist_ok=True)
    if part == "kills":
        from experiments.faults.kills import run_kills

        return run_kills(folder, kills=config.kills, seed=config.seed)
    if part == "mutations":
        from experiments.faults.mutations import run_mutations

        return run_mutations(folder, mutations=config.mutations, seed=config.seed)
    if part == "disk":
        from experiments.faults.disk import run_disk

        return run_disk(folder)
    from experiments.faults.clouds import run_clouds

    return run_clouds()


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Config)))
