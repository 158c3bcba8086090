"""Processes started on this machine: how they end, and how that is told."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from e3dsnn_jax.training import launch
from e3dsnn_jax.training.config import Recipe, TrainCommand, TrainConfig
from e3dsnn_jax.training.launch import LaunchError, run_processes

CHILD = """
import os, signal, sys, time
number = int(os.environ["JAX_PROCESS_ID"])
print(number, os.environ["JAX_NUM_PROCESSES"], os.environ["JAX_NUM_CPU_DEVICES"])
action = sys.argv[1 + number] if len(sys.argv) > 1 + number else "end"
if action == "die":
    os.kill(os.getpid(), signal.SIGKILL)
if action == "hang":
    time.sleep(60)
if action == "notice":  # as the roll call ends it, before the launcher has looked
    sys.exit(76)
if action == "die late":
    time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGKILL)
if action.isdigit():
    sys.exit(int(action))
"""


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen]:
    """Runs the script above in place of the command; lists the processes."""
    made: list[subprocess.Popen] = []

    class Child(subprocess.Popen):
        def __init__(self, words: list[str], **options):
            super().__init__([words[0], "-c", CHILD, *words[3:]], **options)
            made.append(self)

    monkeypatch.setattr(launch.subprocess, "Popen", Child)
    monkeypatch.setattr(launch, "GRACE_SECONDS", 2)
    kinds = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = [signal.getsignal(kind) for kind in kinds]
    yield made
    for kind, handler in zip(kinds, handlers, strict=True):
        signal.signal(kind, handler)


def test_all_end_well(children: list[subprocess.Popen], capfd: pytest.CaptureFixture):
    launch.launch([], processes=3, batch_size=6)
    assert [child.returncode for child in children] == [0, 0, 0]
    lines = sorted(capfd.readouterr().out.splitlines())
    assert [line.split()[:2] for line in lines] == [["0", "3"], ["1", "3"], ["2", "3"]]


def test_killed_one_is_named_and_ends_the_others(children: list[subprocess.Popen]):
    with pytest.raises(
        LaunchError, match=r"process 1 of 3 \(pid \d+\) was killed by signal 9"
    ):
        launch.launch(["hang", "die", "hang"], processes=3, batch_size=6)
    assert [child.returncode for child in children] == [-9, -9, -9]


def test_those_that_noticed_are_not_the_cause(children: list[subprocess.Popen]):
    with pytest.raises(LaunchError, match=r"process 2 of 3 .* killed by signal 9"):
        launch.launch(["notice", "hang", "die late"], processes=3, batch_size=6)
    assert [child.returncode for child in children] == [76, -9, -9]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_are_passed_on(
    children: list[subprocess.Popen], number: signal.Signals
):
    def send() -> None:
        deadline = time.monotonic() + 20
        while len(children) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.5)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=send)
    thread.start()
    with pytest.raises(LaunchError, match="Each of 2 processes "):
        launch.launch(["hang", "hang"], processes=2, batch_size=4)
    thread.join()
    ended = {-number} if number != signal.SIGINT else {-number, 1, 130}
    assert {child.returncode for child in children} <= ended


def test_failed_one_is_named(children: list[subprocess.Popen]):
    with pytest.raises(LaunchError, match=r"process 0 of 2 .* ended with exit code 2"):
        launch.launch(["2", "hang"], processes=2, batch_size=6)
    assert [child.returncode for child in children] == [2, -9]


def test_all_failed_alike(children: list[subprocess.Popen]):
    with pytest.raises(LaunchError, match="Each of 2 processes ended with exit code 2"):
        launch.launch(["2", "2"], processes=2, batch_size=6)
    assert len(children) == 2


def test_nothing_to_start():
    assert not run_processes([], TrainCommand())
    assert not run_processes([], TrainCommand(processes=1))
    with pytest.raises(ValueError, match="--processes must be positive, got 0"):
        run_processes([], TrainCommand(processes=0))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (TrainConfig(recipe=Recipe(batch_size=15)), "15 clouds at a time cannot be"),
        (TrainConfig(devices=3), "3 devices cannot be shared equally by --processes 2"),
    ],
)
def test_what_processes_cannot_share(config: TrainConfig, message: str):
    with pytest.raises(ValueError, match=message):
        run_processes([], TrainCommand(config, processes=2))


def test_within_a_launcher(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost:1")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    monkeypatch.setenv("JAX_PROCESS_ID", "0")
    assert not run_processes([], TrainCommand(processes=2))
    with pytest.raises(ValueError, match="--processes 4, but JAX has started 2"):
        run_processes([], TrainCommand(processes=4))


def test_command_line_without_jax_in_the_parent(tmp_path: Path):
    # The parent starts no devices of its own: it would hold memory for nothing.
    words = ["train", "--processes", "2", "--recipe.batch-size", "0"]
    found = subprocess.run(
        [sys.executable, "-m", "e3dsnn_jax", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert found.returncode == 2
    assert "recipe.batch_size must be positive, got 0" in found.stderr
    assert "Each of 2 processes ended with exit code 2." in found.stderr
