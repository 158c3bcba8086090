"""Processes that end with the one that started them, however it ended."""

import multiprocessing
import os
import threading
import time
from typing import NoReturn

WITH_PARENT = "E3DSNN_END_WITH_PARENT"
"""Environment variable of processes that shall end when their parent does."""


def end_with_parent() -> None:
    """Ends this process within a second of its parent's end.

    A parent that is killed cannot end its children, which would work on or wait for
    ever, and hold their memory.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def end_at_once(code: int) -> NoReturn:
    """Ends this process and its worker processes without any more words."""
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(code)
