"""Who of a run's processes is still there: one that dies is named, and all end.

An exchange whose partner is dead fails with an address, or on some accelerators never
returns. So each process keeps one connection to process 0 open, which the system closes
whatever ends the process; process 0 tells the others whose it was. What cuts the
network and not the connection is left to JAX's own watch, after its heartbeat timeout.
"""

import json
import os
import selectors
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import jax

from e3dsnn_jax.orphans import end_at_once
from e3dsnn_jax.training.processes import LOST, told_by_first

GRACE_SECONDS = 5
"""How long a process may go on after another failed, to fail in the same way itself."""

_CONNECT_SECONDS = 30
_BYE = {"kind": "bye"}


@contextmanager
def roll_call(coordinator: str | None = None) -> Iterator[None]:
    """Watches over all processes of the run until the block ends; every process enters.

    Ends this process at once, with exit code 76 and a message on stderr that names the
    other, when another dies, and within 5 seconds when another leaves the block with
    an exception. Does nothing in a run of one process.

    Args:
      coordinator: host:port by which the processes found process 0, if known.
    """
    if jax.process_count() == 1:
        yield
        return
    server = _Server() if jax.process_index() == 0 else None
    port, host = told_by_first(lambda: [server and server.port, socket.gethostname()])
    hosts = [] if coordinator is None else [coordinator.rsplit(":", 1)[0]]
    call = server or _Client([*hosts, host], port)
    thread = threading.Thread(target=call.watch, name="roll call", daemon=True)
    thread.start()
    try:
        yield
    except BaseException as error:
        first_line = (str(error).splitlines() or [""])[0] or type(error).__name__
        call.leave({"kind": "failed", "why": first_line})
        raise
    call.leave(_BYE)


def _introduction() -> dict[str, Any]:
    return {
        "kind": "here",
        "process": jax.process_index(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
    }


def _name(who: dict[str, Any]) -> str:
    return (
        f"process {who['process']} of {jax.process_count()} (host {who['host']}, pid "
        f"{who['pid']})"
    )


def _send(connection: socket.socket, message: dict[str, Any]) -> None:
    with suppress(OSError):  # its owner is gone, which is told elsewhere
        connection.sendall(json.dumps(message).encode() + b"\n")


def _end(who: dict[str, Any], message: dict[str, Any], left: threading.Event) -> None:
    """Ends this process for what has become of another."""
    if message["kind"] == "failed":
        # It has printed its error; all that meet the same one leave by themselves.
        if left.wait(GRACE_SECONDS):
            return
        what = f"has failed: {message['why']}"
    else:
        what = "is gone: it was killed or has crashed"
    print(
        f"\n{_name(who)} {what}. Process {jax.process_index()} ends too; the same "
        "command resumes from the last checkpoint.",
        file=sys.stderr,
        flush=True,
    )
    end_at_once(LOST)


class _Server:
    """Process 0: hears of every other one, and tells them of each other."""

    def __init__(self):
        self._listener = socket.create_server(("", 0))
        self.port = self._listener.getsockname()[1]
        self._known: dict[socket.socket, dict[str, Any]] = {}
        self._left = threading.Event()

    def watch(self) -> None:
        """Reads what the others send, for as long as this process lives."""
        unread: dict[socket.socket, bytes] = {}
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    connection: Any = key.fileobj
                    if connection is self._listener:
                        accepted, _ = self._listener.accept()
                        selector.register(accepted, selectors.EVENT_READ)
                        unread[accepted] = b""
                        continue
                    data = _receive(connection)
                    *lines, unread[connection] = (unread[connection] + data).split(
                        b"\n"
                    )
                    said = [self._hear(connection, line) for line in lines]
                    if not data or "bye" in said:
                        selector.unregister(connection)
                        if "bye" not in said:
                            self._lose(connection)

    def _hear(self, connection: socket.socket, line: bytes) -> str:
        """Takes in one line, and returns what kind it is."""
        try:
            message = json.loads(line)
            kind = message["kind"]
        except (ValueError, LookupError, TypeError):
            return "nothing"  # a stranger, such as one who looks for open ports
        if kind == "here":
            self._known[connection] = message
        elif kind == "failed" and connection in self._known:
            self._pass_on(connection, message)
            return "bye"
        return kind

    def _lose(self, connection: socket.socket) -> None:
        if connection in self._known:
            self._pass_on(connection, {"kind": "gone"})

    def _pass_on(self, connection: socket.socket, message: dict[str, Any]) -> None:
        if not self._left.is_set():
            who = self._known[connection]
            self._tell({**message, "who": who})
            _end(who, message, self._left)

    def leave(self, message: dict[str, Any]) -> None:
        """Tells all others how this process leaves the run."""
        self._left.set()
        self._tell({**message, "who": _introduction()})

    def _tell(self, message: dict[str, Any]) -> None:
        for connection in list(self._known):
            _send(connection, message)


class _Client:
    """Any other process: hears of the others from process 0."""

    def __init__(self, hosts: list[str], port: int):
        self._left = threading.Event()
        self._connection, self._host = _connect(hosts, port)
        if self._connection is not None:
            _send(self._connection, _introduction())

    def watch(self) -> None:
        """Reads what process 0 sends, until this process leaves or process 0 does."""
        if self._connection is None:
            return
        reader = self._connection.makefile("r")
        while line := _read_line(reader):
            message = json.loads(line)
            if message["kind"] == "bye":
                return
            if not self._left.is_set():
                _end(message["who"], message, self._left)
        if not self._left.is_set():
            # JAX ends this process just now for the same reason; whoever is faster.
            first = {"process": 0, "host": self._host, "pid": "unknown"}
            _end(first, {"kind": "gone"}, self._left)

    def leave(self, message: dict[str, Any]) -> None:
        """Tells process 0 how this process leaves the run."""
        self._left.set()
        if self._connection is not None:
            _send(self._connection, message)


def _read_line(reader: Any) -> str:
    """The next line; empty when the connection is closed."""
    try:
        return reader.readline()
    except OSError:
        return ""


def _receive(connection: socket.socket) -> bytes:
    """What has been sent; empty when the connection is closed."""
    try:
        return connection.recv(4096)
    except OSError:
        return b""


def _connect(hosts: list[str], port: int) -> tuple[socket.socket | None, str]:
    for host in hosts:
        with suppress(OSError):
            found = socket.create_connection((host, port), timeout=_CONNECT_SECONDS)
            found.settimeout(None)
            return found, host
    where = f"{' or '.join(hosts)}, port {port}"
    print(
        f"Process {jax.process_index()} cannot reach process 0 at {where}: if one of "
        "them dies, only JAX will tell.",
        file=sys.stderr,
    )
    return None, hosts[-1]
