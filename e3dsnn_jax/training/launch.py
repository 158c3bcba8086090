"""Starting the processes of a run on this machine, for trial: `--processes N`."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

from e3dsnn_jax.orphans import WITH_PARENT
from e3dsnn_jax.training.config import TrainCommand
from e3dsnn_jax.training.devices import largest_divisor, num_cores
from e3dsnn_jax.training.processes import LOST, find_launch

GRACE_SECONDS = 10
"""What the others get to end by themselves, once a process has ended with an error."""


class LaunchError(RuntimeError):
    """A process of the run ended before its time; the message says which and how."""

    exit_code = 1


def run_processes(words: Sequence[str], command: TrainCommand) -> bool:
    """Starts the processes that a command asks for, and waits for them.

    Args:
      words: The whole command; the processes get the same.
      command: What it says.

    Returns:
      Whether they were started here: not if one process is asked for, nor within one
      that a launcher has started.

    Raises:
      ValueError: If a launcher has started another number of them.
      LaunchError: As `launch`.
    """
    if command.processes is None:
        return False
    if command.processes < 1:
        raise ValueError(f"--processes must be positive, got {command.processes}")
    found = find_launch(os.environ)
    if found is not None:
        if found.processes not in (None, command.processes):
            raise ValueError(
                f"--processes {command.processes}, but {found.launcher} has started "
                f"{found.processes}: leave the option out"
            )
        return False
    if command.processes == 1:
        return False
    recipe, devices = command.config.recipe, command.config.devices
    at_once = recipe.batch_size // max(recipe.accumulate, 1)
    for what, number in (("clouds at a time", at_once), ("devices", devices)):
        if number is not None and number % command.processes:
            raise ValueError(
                f"{number} {what} cannot be shared equally by --processes "
                f"{command.processes}"
            )
    launch(words, processes=command.processes, batch_size=at_once, devices=devices)
    return True


def launch(
    words: Sequence[str], *, processes: int, batch_size: int, devices: int | None = None
) -> None:
    """Runs `e3dsnn` with these words in several processes, and waits for them.

    The cores are shared among them, as one virtual device each unless there are more
    cores than processes. Ctrl-C and SIGTERM are passed on to all.

    Args:
      words: Command and options.
      processes: How many.
      batch_size: Clouds at a time, which all devices of all processes share equally.
      devices: Devices of all processes, if they are asked for.

    Raises:
      LaunchError: If one of them was killed or ended with an error; the others are
        ended.
    """
    share = max(num_cores() // processes, 1)
    own_devices = largest_divisor(max(batch_size // processes, 1), at_most=share)
    if devices is not None:
        own_devices = max(devices // processes, 1)
    environ = os.environ | {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}",
        "JAX_NUM_PROCESSES": str(processes),
        WITH_PARENT: "1",
    }
    # Processes that share a GPU would each take its memory; who has several GPUs trains
    # in one process on all of them.
    environ.setdefault("JAX_PLATFORMS", "cpu")
    environ.setdefault("JAX_NUM_CPU_DEVICES", str(own_devices))
    started: list[subprocess.Popen] = []
    asked = _pass_on_signals(started)
    try:
        for number in range(processes):
            own = environ | {"JAX_PROCESS_ID": str(number)}
            command = [sys.executable, "-m", "e3dsnn_jax", *words]
            # Of their own group: the terminal's Ctrl-C reaches them through us alone.
            started.append(
                subprocess.Popen(
                    command, env=own, stdin=subprocess.DEVNULL, start_new_session=True
                )
            )
        _watch(started, asked)
    finally:
        # All before any is waited for: one that outlives process 0 complains of it.
        for process in reversed(started):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with its workers
        for process in started:
            process.wait()


def free_port() -> int:
    """A port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _pass_on_signals(started: list[subprocess.Popen]) -> list[int]:
    """Hands Ctrl-C and SIGTERM to the processes; returns the list of those received."""
    received: list[int] = []

    def hand_on(number: int, frame: object) -> None:
        del frame
        received.append(number)
        for process in started:
            if process.poll() is None:
                process.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, hand_on)
    return received


# How processes end because another one has: they notice, or JAX ends them.
_CONSEQUENCES = (LOST, -signal.SIGABRT)


def _watch(started: list[subprocess.Popen], asked: list[int]) -> None:
    """Returns when all have ended well; raises when one has not."""

    def codes() -> list[int | None]:
        return [process.poll() for process in started]

    def causes() -> list[int]:
        return [n for n, code in enumerate(codes()) if code not in (None, 0)]

    while not causes():
        if all(code == 0 for code in codes()):
            return
        time.sleep(0.1)
    # The cause of it all may be seen later than what it led to, and those that meet the
    # same error by themselves need a moment. One that was killed leaves others hanging.
    deadline = time.monotonic() + GRACE_SECONDS
    while time.monotonic() < deadline and None in codes():
        if any((codes()[number] or 0) < 0 for number in causes()):
            deadline = min(deadline, time.monotonic() + 2)
        time.sleep(0.1)
    ended = codes()
    first = min(causes(), key=lambda number: ended[number] in _CONSEQUENCES)
    code = ended[first] or 0
    error = LaunchError(
        f"process {first} of {len(started)} (pid {started[first].pid}) "
        f"{_describe_end(code)}. The others were ended. The same command resumes from "
        "the last checkpoint"
    )
    if asked or all(each == code for each in ended):
        # All ended in the same way, and process 0 has said why.
        error = LaunchError(f"Each of {len(started)} processes {_describe_end(code)}.")
        error.exit_code = code if code > 0 else 128 - code
    raise error


def _describe_end(code: int) -> str:
    if code > 0:
        return f"ended with exit code {code}"
    return f"was killed by signal {-code} ({signal.Signals(-code).name})"
