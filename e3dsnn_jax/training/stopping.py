"""Stopping a run politely: the first signal is noted, the second one ends at once."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):
    """A run was stopped by a signal; the message says how to resume it."""

    def __init__(self, message: str, *, signal_number: int):
        super().__init__(message)
        self.exit_code = 128 + signal_number
        """What a shell calls this end: 130 after Ctrl-C."""


class StopRequest:
    """Whether a signal has asked the run to stop, and which."""

    def __init__(self):
        self.signal_number: int | None = None

    def __bool__(self) -> bool:
        return self.signal_number is not None


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Notes Ctrl-C and SIGTERM instead of ending in the middle of a step.

    Python delivers signals to the main thread only; elsewhere nothing is changed.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before: dict[int, Any] = {kind: signal.getsignal(kind) for kind in _SIGNALS}

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        request.signal_number = number
        # A second signal means now.
        signal.signal(number, before[number])

    for number in _SIGNALS:
        signal.signal(number, note)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
