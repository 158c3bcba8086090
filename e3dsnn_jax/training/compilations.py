"""How many programs JAX has compiled in this process.

A training run compiles a handful at the start. A number that keeps growing means that
shapes change from batch to batch, and that most of the time goes into compiling.
"""

import jax.monitoring

_COMPILED = "/jax/core/compile/backend_compile_duration"
_durations: list[float] = []


def _record(event: str, duration_secs: float, **details: object) -> None:
    del details
    if event == _COMPILED:
        _durations.append(duration_secs)


jax.monitoring.register_event_duration_secs_listener(_record)


def programs_compiled() -> int:
    """Number of programs compiled since this module was imported.

    Programs read from the persistent compilation cache count too, and so do the small
    ones of operations outside `jit`.
    """
    return len(_durations)


def seconds_compiling() -> float:
    """Wall-clock seconds that XLA spent compiling since this module was imported."""
    return sum(_durations)
