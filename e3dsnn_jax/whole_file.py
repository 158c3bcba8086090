"""Files that appear under their name only when they are complete."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Gives errors of the file system that name no file the name of this one."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Lends a name beside `path` to write to; the file gets its own name at the end.

    Whatever stops the writing, `path` is untouched then: it holds what it held. A
    process that is killed can leave the other file behind, `.<name>.<random>.tmp`.

    Args:
      path: The file to make or to replace, in a folder that exists.

    Raises:
      FileNotFoundError: If the folder does not exist.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}")
    # Random, so that two processes that write the same file do not share it.
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with naming(path):
            yield unfinished
            os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
