"""Checkpoints of PyTorch (`.pth`), read and written without PyTorch.

`torch.save` writes a zip archive: `data.pkl`, a pickle that describes the values, and
one file of raw bytes for each storage, `data/0`, `data/1`, .... Nothing is compressed.
A tensor is a view of a storage: an offset, a size and a stride for each axis, in
elements. The pickle is interpreted by `plain_pickle`, never executed, and every view
is checked against the bytes that are there before an array is made.

Source: the file format of `torch.serialization` (format version 1, zip archives).
"""

import reprlib
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from e3dsnn_jax.plain_pickle import (
    Call,
    Global,
    Persistent,
    read_plain_pickle,
    write_plain_pickle,
)
from e3dsnn_jax.whole_file import whole_file

# The storage class that torch names for each element type, and what it holds.
_STORAGES = {
    "torch FloatStorage": np.dtype(np.float32),
    "torch DoubleStorage": np.dtype(np.float64),
    "torch HalfStorage": np.dtype(np.float16),
    "torch BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch LongStorage": np.dtype(np.int64),
    "torch IntStorage": np.dtype(np.int32),
    "torch ShortStorage": np.dtype(np.int16),
    "torch CharStorage": np.dtype(np.int8),
    "torch ByteStorage": np.dtype(np.uint8),
    "torch BoolStorage": np.dtype(np.bool_),
    "torch ComplexFloatStorage": np.dtype(np.complex64),
    "torch ComplexDoubleStorage": np.dtype(np.complex128),
    # Bytes whose element type stands with the tensor.
    "torch.storage UntypedStorage": np.dtype(np.uint8),
}
# Element types without a storage class; their tensors name the type themselves.
_DTYPES = {
    "torch uint16": np.dtype(np.uint16),
    "torch uint32": np.dtype(np.uint32),
    "torch uint64": np.dtype(np.uint64),
    "torch float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "torch float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
}
# An expanded tensor (stride 0) may describe more elements than its storage holds.
# Views of more bytes than this are refused: copying one could fill any memory.
_EXPANDED_BYTES_LIMIT = 1 << 20
_MAX_AXES = 64
# Folder inside the archives that are written; any name will do.
_ROOT = "archive"


class _Storage(NamedTuple):
    name: str
    values: np.ndarray
    big_endian: bool


def read_pth(path: str | Path) -> Any:
    """Returns the content of a `.pth` file, tensors as read-only NumPy arrays.

    Tensors that share a storage in the file share memory in the result.

    Args:
      path: A file that `torch.save` wrote (its zip format, since PyTorch 1.6).

    Returns:
      The saved value; for a checkpoint, nested dicts of numbers, strings and arrays.

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If the file is in another format, cut off or damaged, or if it asks
        for anything but plain values and tensors. The message names the file.
    """
    path = Path(path)
    _check_is_zip(path)
    try:
        with zipfile.ZipFile(path) as archive:
            return _read_archive(archive, total_bytes=path.stat().st_size)
    except (
        zipfile.BadZipFile,
        NotImplementedError,
        RuntimeError,  # an encrypted entry
        EOFError,
        OSError,  # a place ahead of the start of the file
        struct.error,
        ValueError,
    ) as error:
        raise ValueError(f"{path}: {error}") from error


def _check_is_zip(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(4)
    if zipfile.is_zipfile(path):
        return
    if not start:
        reason = "the file is empty"
    elif start.startswith(b"PK\x03\x04"):
        reason = (
            "the zip archive is cut off: its table of contents, which stands at the "
            "end, is missing; copy or download the file again"
        )
    elif start.startswith(b"\x80"):
        reason = (
            "this is a bare pickle, not a zip archive: the format of PyTorch before "
            "1.6; load it in PyTorch and save it again with torch.save"
        )
    else:
        reason = f"not a PyTorch checkpoint: it starts with {start!r}, not b'PK'"
    raise ValueError(f"{path}: {reason}")


def _read_archive(archive: zipfile.ZipFile, *, total_bytes: int) -> Any:
    entries = {entry.filename: entry for entry in archive.infolist()}
    for entry in entries.values():
        if entry.compress_type != zipfile.ZIP_STORED:
            raise ValueError(
                f"{entry.filename} is compressed, which torch.save never does; "
                "unpack the archive and zip it again without compression"
            )
    # Entries may overlap in a hostile archive; then few bytes would fill any memory.
    claimed = sum(entry.file_size for entry in entries.values())
    if claimed > total_bytes:
        raise ValueError(f"its entries claim {claimed} of {total_bytes} bytes")
    roots = [name.removesuffix("data.pkl") for name in entries if _is_program(name)]
    if len(roots) != 1:
        raise ValueError(
            f"{len(roots)} files named data.pkl in the archive instead of 1: not a "
            "file that torch.save wrote"
        )
    root = roots[0]
    order = archive.read(f"{root}byteorder") if f"{root}byteorder" in entries else b""
    if order not in (b"", b"little", b"big"):
        raise ValueError(f"byteorder is {order!r}, neither 'little' nor 'big'")

    big_endian = order == b"big"
    storages: dict[str, tuple[str, _Storage]] = {}

    def storage(identity: Any) -> _Storage:
        kind, key, count = _check_identity(identity)
        if key not in storages:
            name = f"{root}data/{key}"
            if name not in entries:
                raise ValueError(f"storage {name} is missing from the archive")
            dtype = _STORAGES[kind]
            if entries[name].file_size != count * dtype.itemsize:
                raise ValueError(
                    f"storage {name} has {entries[name].file_size} bytes, but "
                    f"{count} elements of {dtype.name} need {count * dtype.itemsize}"
                )
            values = _decode(archive.read(name), dtype, big_endian=big_endian)
            storages[key] = kind, _Storage(name, values, big_endian)
        first_kind, found = storages[key]
        if (kind, count) != (first_kind, found.values.size):
            raise ValueError(
                f"storage {key} is {first_kind} of {found.values.size} elements in "
                f"one place and {kind} of {count} in another"
            )
        return found

    program = archive.read(f"{root}data.pkl")
    return read_plain_pickle(program, calls=_CALLS, persistent=storage)


def _is_program(name: str) -> bool:
    return name == "data.pkl" or name.endswith("/data.pkl")


def _check_identity(identity: Any) -> tuple[str, str, int]:
    match identity:
        case ("storage", Global(kind), str(key), str(), int(count)) if (
            kind in _STORAGES and count >= 0
        ):
            return kind, key, count
        case _:
            raise ValueError(f"not a reference to a storage: {reprlib.repr(identity)}")


def _decode(raw: bytes, dtype: np.dtype, *, big_endian: bool) -> np.ndarray:
    if big_endian:
        word = dtype.itemsize // (2 if dtype.kind == "c" else 1)
        raw = np.frombuffer(raw, np.uint8).reshape(-1, word)[:, ::-1].tobytes()
    if dtype == np.bool_:
        # A byte other than 0 and 1 would be an invalid NumPy bool.
        return np.frombuffer(raw, np.uint8) != 0
    return np.frombuffer(raw, dtype)


def _tensor(
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    requires_grad: Any = False,
    hooks: Any = None,
    metadata: Any = None,
) -> np.ndarray:
    """Returns the view of a storage that the arguments of a tensor describe."""
    del requires_grad, hooks
    if metadata:
        raise ValueError(
            f"a tensor carries metadata that changes it: {reprlib.repr(metadata)}"
        )
    if not isinstance(storage, _Storage):
        raise ValueError(f"a tensor is made of a {type(storage).__name__}, no storage")
    return _view(storage, storage.values, offset, size, stride)


def _tensor_with_dtype(
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    requires_grad: Any,
    hooks: Any,
    dtype: Any,
    metadata: Any = None,
) -> np.ndarray:
    """Like `_tensor`, of an untyped storage."""
    del requires_grad, hooks
    if not isinstance(dtype, Global) or dtype.name not in _DTYPES:
        raise ValueError(f"a tensor has an unknown type: {reprlib.repr(dtype)}")
    if metadata or not isinstance(storage, _Storage):
        raise ValueError("a tensor has metadata, or is made of something else")
    values = _decode(
        storage.values.tobytes(), _DTYPES[dtype.name], big_endian=storage.big_endian
    )
    return _view(storage, values, offset, size, stride)


def _view(
    storage: _Storage, values: np.ndarray, offset: Any, size: Any, stride: Any
) -> np.ndarray:
    numbers = (offset, *size, *stride)
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError(
            "offset, sizes and strides of a tensor must be whole numbers >= 0, got "
            f"{reprlib.repr(numbers)}"
        )
    if len(size) != len(stride) or len(size) > _MAX_AXES:
        raise ValueError(f"a tensor has {len(size)} sizes and {len(stride)} strides")
    # Python integers: these products cannot overflow.
    count = 1
    last = offset
    for length, step in zip(size, stride, strict=True):
        count *= length
        last += (length - 1) * step
    if count == 0:
        return np.empty(size, values.dtype)
    if last >= values.size:
        raise ValueError(
            f"a tensor of size {tuple(size)} and strides {tuple(stride)} at offset "
            f"{offset} reaches element {last} of storage {storage.name}, which has "
            f"{values.size}"
        )
    needed = count * values.itemsize
    if count > values.size and needed > _EXPANDED_BYTES_LIMIT:
        raise ValueError(
            f"a tensor of size {tuple(size)} repeats the {values.size} elements of "
            f"storage {storage.name} to {needed} bytes; save its .contiguous() copy"
        )
    strides = tuple(step * values.itemsize for step in stride)
    return np.lib.stride_tricks.as_strided(
        values[offset:], tuple(size), strides, writeable=False
    )


def _parameter(data: Any, requires_grad: Any, hooks: Any, state: Any = None) -> Any:
    del requires_grad, hooks, state
    return data


def _numpy_dtype(code: Any, align: Any = False, copy: Any = True) -> np.dtype:
    del align, copy
    dtype = np.dtype(code) if isinstance(code, str) else None
    if dtype is None or dtype.kind not in "biufc":
        raise ValueError(
            f"a NumPy value has type {reprlib.repr(code)}; only numbers are read"
        )
    return dtype


def _numpy_scalar(dtype: Any, raw: Any) -> Any:
    if not isinstance(dtype, np.dtype) or not isinstance(raw, bytes):
        raise ValueError("a NumPy scalar needs a type and its bytes")
    if len(raw) != dtype.itemsize:
        raise ValueError(f"a NumPy {dtype} has {len(raw)} bytes, not {dtype.itemsize}")
    return np.frombuffer(raw, dtype)[0]


def _encoded_bytes(text: Any, codec: Any) -> bytes:
    # How protocol 2 spells a bytes value.
    if not isinstance(text, str) or codec != "latin1":
        raise ValueError(
            f"bytes are spelled as text in latin1, not {reprlib.repr(codec)}"
        )
    return text.encode("latin1")


# Every name that a checkpoint may use; None: a name, not a function.
_CALLS: dict[str, Callable[..., Any] | None] = {
    "collections OrderedDict": lambda: OrderedDict(),
    "collections Counter": lambda counts: {**counts},
    "torch Size": lambda size: tuple(size),
    "torch._utils _rebuild_tensor": _tensor,
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_tensor_v3": _tensor_with_dtype,
    "torch._utils _rebuild_parameter": _parameter,
    "torch._utils _rebuild_parameter_with_state": _parameter,
    "numpy dtype": _numpy_dtype,
    "numpy.core.multiarray scalar": _numpy_scalar,
    "numpy._core.multiarray scalar": _numpy_scalar,
    "_codecs encode": _encoded_bytes,
    **dict.fromkeys(_STORAGES),
    **dict.fromkeys(_DTYPES),
}


def write_pth(content: Any, path: str | Path) -> None:
    """Writes a value as a file that `torch.load(path, weights_only=True)` reads.

    The file appears under its name only when it is complete. Equal content gives
    equal bytes.

    Args:
      content: Nested dicts, lists and tuples of None, bool, int, float, str and
        arrays (NumPy or JAX). Arrays become tensors, each with its own storage.
      path: Where to write.

    Raises:
      FileNotFoundError: If the folder of `path` does not exist.
      ValueError: If `content` holds a value or an element type that PyTorch has no
        plain form for; the message says where in `content`.
    """
    path = Path(path)
    storages: list[bytes] = []
    try:
        described = _describe(content, storages, where="content")
        program = write_plain_pickle(described, where="content")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    with (
        whole_file(path) as unfinished,
        zipfile.ZipFile(unfinished, "w", zipfile.ZIP_STORED) as archive,
    ):
        # ZipInfo, not a name: its date is fixed, so equal content is equal bytes.
        archive.writestr(zipfile.ZipInfo(f"{_ROOT}/data.pkl"), program)
        archive.writestr(zipfile.ZipInfo(f"{_ROOT}/byteorder"), b"little")
        for key, raw in enumerate(storages):
            archive.writestr(zipfile.ZipInfo(f"{_ROOT}/data/{key}"), raw)
        archive.writestr(zipfile.ZipInfo(f"{_ROOT}/version"), b"3\n")


def _describe(value: Any, storages: list[bytes], *, where: str) -> Any:
    """Returns `value` with every array replaced by the call that rebuilds it."""
    if isinstance(value, dict):
        items = {
            key: _describe(item, storages, where=f"{where}[{key!r}]")
            for key, item in value.items()
        }
        return OrderedDict(items) if isinstance(value, OrderedDict) else items
    if isinstance(value, list | tuple):
        items = [
            _describe(item, storages, where=f"{where}[{index}]")
            for index, item in enumerate(value)
        ]
        return items if isinstance(value, list) else tuple(items)
    if isinstance(value, np.generic):
        return value.item()
    if not hasattr(value, "__array__"):
        return value
    array = np.asarray(value)
    names = [
        name
        for name, dtype in _STORAGES.items()
        if dtype == array.dtype and name != "torch.storage UntypedStorage"
    ]
    if not names:
        raise ValueError(f"{where}: PyTorch has no plain tensor of {array.dtype}")
    key = str(len(storages))
    storages.append(array.tobytes())
    identity = ("storage", Global(names[0]), key, "cpu", array.size)
    # Strides in elements of the array laid out in C order, as `tobytes` does.
    strides = tuple(
        int(np.prod(array.shape[axis + 1 :], dtype=np.int64))
        for axis in range(array.ndim)
    )
    arguments = (Persistent(identity), 0, array.shape, strides, False, OrderedDict())
    return Call("torch._utils _rebuild_tensor_v2", arguments)
