"""The memory of a compiled step, told before it runs.

XLA plans all the memory of a program when it compiles it. On a CPU the system gives out
memory that it does not have and kills the process later, without a word, so the plan is
compared with what is free before the first step.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
from tqdm import tqdm

_CGROUP = Path("/sys/fs/cgroup")


class StepMemory(NamedTuple):
    """Bytes that a program takes on each of its devices."""

    arguments: int
    """State and batch, which exist before it runs."""
    working: int
    """What it takes beside those: intermediate results, and outputs that do not take
    the place of an argument."""


def step_memory(compiled: jax.stages.Compiled) -> StepMemory | None:
    """Memory that XLA planned for a program; None where a platform does not tell."""
    plan: Any = compiled.memory_analysis()
    if plan is None:
        return None
    own_outputs = plan.output_size_in_bytes - plan.alias_size_in_bytes
    return StepMemory(
        arguments=plan.argument_size_in_bytes,
        working=plan.temp_size_in_bytes + max(own_outputs, 0),
    )


def free_memory(device: Any) -> int | None:
    """Bytes that are free for programs of a device; None where that is unknown.

    The devices of a CPU share the memory of the process, which its container may limit
    further. Memory that holds cached files counts as free.
    """
    if device.platform != "cpu":
        stats = device.memory_stats() or {}
        if "bytes_limit" not in stats:
            return None
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return None
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    free = 1024 * int(lines["MemAvailable"].split()[0])
    limit = _read_number(_CGROUP / "memory.max")
    if limit is not None:
        used = _read_number(_CGROUP / "memory.current") or 0
        free = min(free, limit - used + _cached_in_container())
    return free


def _cached_in_container() -> int:
    """Bytes of files that count as used in a container, and are given up on demand."""
    path = _CGROUP / "memory.stat"
    rows = (
        [line.split() for line in path.read_text().splitlines()]
        if path.exists()
        else []
    )
    return sum(int(n) for name, n in rows if name in ("active_file", "inactive_file"))


def _read_number(path: Path) -> int | None:
    text = path.read_text().strip() if path.exists() else ""
    return int(text) if text.isdigit() else None


def describe_memory(step: StepMemory, free: int | None, *, sharing: int) -> str:
    """One line on what a training step needs, and what to do if that is too much.

    Args:
      step: Memory on each device.
      free: Bytes that are free; None if unknown.
      sharing: Devices that share the free bytes: all of a CPU's, one accelerator.
    """
    working, arguments = sharing * step.working / 1e9, sharing * step.arguments / 1e9
    need = f"A training step takes {working:.2f} GB beside {arguments:.2f} GB of state"
    need += " and batch"
    if free is None:
        return f"{need}."
    if sharing * step.working <= free:
        return f"{need}; {free / 1e9:.1f} GB are free."
    return (
        f"WARNING: {need}, but only {free / 1e9:.2f} GB are free: it will probably "
        "fail. Start a run in another folder (--run) with a smaller "
        "--recipe.batch-size, a larger --recipe.accumulate, or --model.rematerialise."
    )


class AnnouncedStep:
    """A jitted step that is compiled once a shape, and tells its memory before it runs.

    The first program is always described, a later one only if it does not fit.

    Args:
      step: A jitted function of state and batch.
      devices: The devices of the mesh in this process.
    """

    def __init__(self, step: Callable[..., Any], devices: list[Any]):
        self._step: Any = step
        self._devices = devices
        self._programs: dict[Any, jax.stages.Compiled] = {}

    def __call__(self, state: Any, batch: Any) -> Any:
        """The step's result."""
        shapes = tuple(leaf.shape for leaf in jax.tree.leaves(batch))
        if shapes not in self._programs:
            compiled = self.lower(state, batch).compile()
            self._announce(compiled)
            self._programs[shapes] = compiled
        return self._programs[shapes](state, batch)

    def lower(self, state: Any, batch: Any) -> jax.stages.Lowered:
        """The step for arguments of these shapes, before it is compiled."""
        return self._step.lower(state, batch)

    def _announce(self, compiled: jax.stages.Compiled) -> None:
        step = step_memory(compiled)
        if step is None:
            return
        free = free_memory(self._devices[0])
        on_cpu = self._devices[0].platform == "cpu"
        sharing = len(self._devices) if on_cpu else 1
        line = describe_memory(step, free, sharing=sharing)
        first = jax.process_index() == 0 and not self._programs
        if first or line.startswith("WARNING"):
            tqdm.write(line, file=sys.stderr)
