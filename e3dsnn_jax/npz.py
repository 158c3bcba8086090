"""Reading npz files so that no damage passes for other numbers."""

import zipfile
from pathlib import Path
from typing import BinaryIO

import numpy as np


def load_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an npz file.

    Raises:
      ValueError: If the file is broken or cut short, with its path.
    """
    try:
        # Opened here, because np.load forgets to close a file that it cannot read.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            _check_entries(file, archive.zip)
            arrays = dict(archive)
    except FileNotFoundError:
        raise
    except Exception as error:  # zip and header parsers fail in many ways
        raise broken_file(path, "an npz file", error) from error
    others = [name for name, array in arrays.items() if not hasattr(array, "shape")]
    if others:
        raise ValueError(f"{path}: {others[0]!r} in it is no array; get the file again")
    return arrays


def _check_entries(file: BinaryIO, archive: zipfile.ZipFile) -> None:
    """Raises ValueError if the table of contents lacks an entry or bytes have changed.

    The table may have swallowed one of its entries as the comment of another, and what
    a header asks for may be less than the entry whose checksum is known.
    """
    position = file.tell()
    file.seek(max(file.seek(0, 2) - (1 << 16) - 22, 0))
    tail = file.read()
    end = tail.rfind(b"PK\5\6")
    announced = int.from_bytes(tail[end + 10 : end + 12], "little")
    file.seek(position)
    if announced not in (len(archive.infolist()), 0xFFFF):
        raise ValueError(f"{len(archive.infolist())} of {announced} entries are listed")
    if (bad := archive.testzip()) is not None:
        raise ValueError(f"{bad} does not have its checksum")


def broken_file(path: Path, kind: str, error: Exception) -> ValueError:
    """Returns the error of a file that its parser has refused."""
    return ValueError(
        f"{path}: cannot be read as {kind}: {error or type(error).__name__}; it may be "
        "cut short, get it again"
    )
