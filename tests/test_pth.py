import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from e3dsnn_jax.plain_pickle import Call, Global, Persistent, write_plain_pickle
from e3dsnn_jax.pth import read_pth, write_pth

GOLDEN = Path(__file__).parent / "golden"
REBUILD = "torch._utils _rebuild_tensor_v2"
DTYPES = {
    "float32": np.float32,
    "float64": np.float64,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "int64": np.int64,
    "int32": np.int32,
    "int16": np.int16,
    "int8": np.int8,
    "uint8": np.uint8,
    "bool": np.bool_,
    "complex64": np.complex64,
    "complex128": np.complex128,
}


def persistent(kind: str, key: str, count: Any) -> Persistent:
    return Persistent(("storage", Global(f"torch {kind}"), key, "cpu", count))


def tensor(offset: Any, size: Any, stride: Any, *, count=12, key="0") -> Call:
    storage = persistent("FloatStorage", key, count)
    return Call(REBUILD, (storage, offset, size, stride, False, OrderedDict()))


@pytest.fixture
def archive(tmp_path):
    """Writes an archive with a given pickle, as hostile as one likes."""

    def write(value: Any, raw: bytes | None = None, **files: bytes) -> Path:
        path = tmp_path / "net.pth"
        if raw is None:
            raw = np.arange(12, dtype=np.float32).tobytes()
        data = value if isinstance(value, bytes) else write_plain_pickle(value)
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("net/data.pkl", data)
            file.writestr("net/data/0", raw)
            for name, content in files.items():
                file.writestr(f"net/{name}", content)
        return path

    return write


@pytest.mark.parametrize("name", ["cls_tiny_seed0", "seg_tiny_seed0"])
def test_a_file_of_torch_holds_the_arrays_of_its_fixture(name):
    content = read_pth(GOLDEN / f"{name}.pth")
    assert content["epoch"] == 7
    assert content["best_metric_value"] == 0.5
    assert content["scheduler"]["milestones"] == {180: 1, 240: 1}
    with np.load(GOLDEN / f"{name}.npz") as fixture:
        expected = {n[6:]: fixture[n] for n in fixture if n.startswith("state/")}
    assert len(content["state_dict"]) == len(expected)
    for published, array in expected.items():
        found = content["state_dict"][f"backbone.{published}"]
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("name", DTYPES)
def test_round_trip_is_bit_exact(tmp_path, rng, name):
    values = rng.normal(size=(2, 3, 4)).astype(DTYPES[name])
    content = {
        "epoch": 3,
        "state_dict": OrderedDict(
            a=values,
            scalar=values[:1, 0, 0].reshape(()),
            empty=values[:, :0],
            transposed=values.T,
            strided=values[::2, 1, ::-1],
        ),
        "rest": [None, True, "text", (0.5, {"k": 2**40})],
    }
    write_pth(content, tmp_path / "a.pth")
    result = read_pth(tmp_path / "a.pth")
    assert (result["epoch"], result["rest"]) == (3, content["rest"])
    for key, array in content["state_dict"].items():
        found = result["state_dict"][key]
        assert (found.dtype, found.shape) == (array.dtype, array.shape)
        assert found.tobytes() == array.tobytes()


def test_jax_arrays_and_numpy_scalars_are_written(tmp_path):
    content = {"x": jnp.arange(3.0), "best": np.float64(0.25), "at": np.int64(7)}
    write_pth(content, tmp_path / "a.pth")
    result = read_pth(tmp_path / "a.pth")
    np.testing.assert_array_equal(result["x"], np.arange(3, dtype=np.float32))
    assert (result["best"], result["at"]) == (0.25, 7)


def test_equal_content_gives_equal_bytes_and_replaces_the_file(tmp_path):
    first, second = tmp_path / "a.pth", tmp_path / "b.pth"
    write_pth({"a": np.zeros(3)}, first)
    write_pth({"a": np.ones(3)}, second)
    assert first.read_bytes() != second.read_bytes()
    write_pth({"a": np.ones(3)}, first)
    assert first.read_bytes() == second.read_bytes()
    assert sorted(tmp_path.iterdir()) == [first, second]


def test_views_of_one_storage_share_memory(archive):
    value = {
        "whole": tensor(0, (12,), (1,)),
        "transposed": tensor(0, (4, 3), (1, 4)),
        "part": tensor(5, (2, 2), (4, 1)),
        "scalar": tensor(11, (), ()),
        "none": tensor(0, (0, 2**40), (1, 1)),
        "expanded": tensor(2, (3, 2), (0, 3)),
    }
    result = read_pth(archive(value))
    numbers = np.arange(12, dtype=np.float32)
    np.testing.assert_array_equal(result["whole"], numbers)
    np.testing.assert_array_equal(result["transposed"], numbers.reshape(3, 4).T)
    np.testing.assert_array_equal(result["part"], [[5, 6], [9, 10]])
    np.testing.assert_array_equal(result["scalar"], np.float32(11))
    np.testing.assert_array_equal(result["expanded"], [[2, 5]] * 3)
    assert result["none"].shape == (0, 2**40)
    assert np.shares_memory(result["whole"], result["part"])
    assert not result["whole"].flags.writeable


@pytest.mark.parametrize("byteorder", [b"little", b"big"])
def test_byte_order(archive, byteorder):
    numbers = np.array([1.5, -2.0, 3e-5, 7.0], np.float32)
    raw = numbers.astype(">f4" if byteorder == b"big" else "<f4").tobytes()
    path = archive(tensor(0, (4,), (1,), count=4), raw, byteorder=byteorder)
    np.testing.assert_array_equal(read_pth(path), numbers)


def test_big_endian_complex_numbers_swap_each_part(archive):
    numbers = np.array([1.5 - 2j, 3e-5 + 7j], np.complex64)
    storage = persistent("ComplexFloatStorage", "0", 2)
    value = Call(REBUILD, (storage, 0, (2,), (1,), False, OrderedDict()))
    path = archive(value, numbers.astype(">c8").tobytes(), byteorder=b"big")
    np.testing.assert_array_equal(read_pth(path), numbers)


def test_bytes_of_a_bool_storage_are_truth_values(archive):
    storage = persistent("BoolStorage", "0", 3)
    value = Call(REBUILD, (storage, 0, (3,), (1,), False, OrderedDict()))
    result = read_pth(archive(value, b"\x00\x01\x02"))
    assert result.tolist() == [False, True, True]


def test_types_without_a_storage_class_stand_with_the_tensor(archive):
    untyped = Persistent(
        ("storage", Global("torch.storage UntypedStorage"), "0", "", 4)
    )
    name = "torch._utils _rebuild_tensor_v3"
    arguments = (untyped, 1, (1,), (1,), False, OrderedDict(), Global("torch uint16"))
    result = read_pth(archive(Call(name, arguments), b"\x01\x00\x02\x01"))
    np.testing.assert_array_equal(result, np.array([258], np.uint16))


def test_parameters_and_numpy_scalars_are_read(archive):
    dtype = Call("numpy dtype", ("f8", False, True))
    raw = Call("_codecs encode", (struct.pack("<d", 0.75).decode("latin1"), "latin1"))
    value = {
        "weight": Call(
            "torch._utils _rebuild_parameter",
            (tensor(0, (2,), (1,)), True, OrderedDict()),
        ),
        "best": Call("numpy.core.multiarray scalar", (dtype, raw)),
        "shape": Call("torch Size", ((2, 3),)),
    }
    result = read_pth(archive(value))
    np.testing.assert_array_equal(result["weight"], np.array([0, 1], np.float32))
    assert result["best"] == 0.75
    assert result["shape"] == (2, 3)


def scalar(code: Any, text: str, codec: str = "latin1") -> Call:
    dtype = Call("numpy dtype", (code, False, True))
    encoded = Call("_codecs encode", (text, codec))
    return Call("numpy.core.multiarray scalar", (dtype, encoded))


REFUSED = {
    "another global": (Call("os system", ("true",)), "names the global 'os.system'"),
    "eval": (Call("builtins eval", ("1",)), "names the global 'builtins.eval'"),
    "past the end": (
        tensor(0, (13,), (1,)),
        r"size \(13,\) and strides \(1,\) at offset 0 reaches element 12 of storage "
        "net/data/0, which has 12",
    ),
    "past the end by offset": (tensor(12, (), ()), "reaches element 12"),
    "past the end by stride": (tensor(0, (2, 2), (11, 1)), "reaches element 12"),
    "past all memory": (tensor(0, (2**62, 2**62), (2**62, 1)), "reaches element"),
    "negative stride": (tensor(11, (12,), (-1,)), "must be whole numbers >= 0, got"),
    "negative size": (tensor(0, (-1,), (1,)), "must be whole numbers >= 0, got"),
    "fractional offset": (tensor(0.5, (1,), (1,)), "must be whole numbers >= 0, got"),
    "text as size": (tensor(0, "ab", (1, 1)), "must be whole numbers >= 0, got"),
    "fewer strides": (tensor(0, (2, 2), (1,)), "has 2 sizes and 1 strides"),
    "too many axes": (tensor(0, (1,) * 65, (1,) * 65), "has 65 sizes and 65 strides"),
    "repeats": (
        tensor(0, (2**40, 12), (0, 1)),
        r"repeats the 12 elements of storage net/data/0 to 52776558133248 bytes",
    ),
    "no storage": (
        Call(REBUILD, ("data", 0, (1,), (1,), False, None)),
        "a tensor is made of a str, no storage",
    ),
    "metadata": (
        Call(REBUILD, (persistent("FloatStorage", "0", 12), 0, (), (), 0, 0, {"n": 1})),
        "a tensor carries metadata that changes it: {'n': 1}",
    ),
    "missing": (tensor(0, (1,), (1,), key="7"), "storage net/data/7 is missing"),
    "other folder": (
        tensor(0, (1,), (1,), key="../data.pkl"),
        "storage net/data/../data.pkl is missing",
    ),
    "shorter": (
        tensor(0, (1,), (1,), count=13),
        "storage net/data/0 has 48 bytes, but 13 elements of float32 need 52",
    ),
    "longer": (
        tensor(0, (1,), (1,), count=1),
        "storage net/data/0 has 48 bytes, but 1 elements of float32 need 4",
    ),
    "two types": (
        [tensor(0, (1,), (1,)), persistent("IntStorage", "0", 12)],
        "torch FloatStorage of 12 elements in one place and torch IntStorage of 12",
    ),
    "unknown storage": (
        persistent("QInt8Storage", "0", 12),
        r"global 'torch\.QInt8Storage'",
    ),
    "no reference": (Persistent("0"), "not a reference to a storage: '0'"),
    "object type": (scalar("O8", "\0" * 8), "has type 'O8'; only numbers are read"),
    "wrong size": (scalar("f8", "\0" * 4), "a NumPy float64 has 4 bytes, not 8"),
    "codec": (scalar("f8", "\0" * 8, "zip"), "spelled as text in latin1, not 'zip'"),
    "no dtype": (
        Call("numpy.core.multiarray scalar", ("f8", "")),
        "a NumPy scalar needs a type and its bytes",
    ),
    "unknown dtype": (
        Call(
            "torch._utils _rebuild_tensor_v3",
            (persistent("FloatStorage", "0", 12), 0, (), (), 0, 0, "f8"),
        ),
        "a tensor has an unknown type: 'f8'",
    ),
    "filled dict": (
        Call("collections OrderedDict", ([["a", 1]],)),
        "takes 0 positional arguments",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_hostile_contents_are_refused(archive, name):
    value, message = REFUSED[name]
    path = archive(value)
    with pytest.raises(ValueError, match=message) as error:
        read_pth(path)
    assert str(error.value).startswith(f"{path}: ")


def test_a_missing_file_and_a_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pth"):
        read_pth(tmp_path / "none.pth")
    with pytest.raises(FileNotFoundError, match=r"a\.pth: there is no folder .*none"):
        write_pth({}, tmp_path / "none" / "a.pth")


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (b"", "the file is empty"),
        (
            b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.",
            "a bare pickle, not a zip archive",
        ),
        (b"\x89HDF\r\n", r"not a PyTorch checkpoint: it starts with b'\\x89HDF'"),
    ],
)
def test_other_formats_are_named(tmp_path, start, message):
    path = tmp_path / "a.pth"
    path.write_bytes(start)
    with pytest.raises(ValueError, match=message) as error:
        read_pth(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("kept", [0.02, 0.5, 0.99])
def test_a_cut_off_file(tmp_path, kept):
    data = (GOLDEN / "cls_tiny_seed0.pth").read_bytes()
    path = tmp_path / "a.pth"
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(ValueError, match=r"a\.pth: the zip archive is cut off"):
        read_pth(path)


def test_a_damaged_storage(tmp_path):
    data = bytearray((GOLDEN / "cls_tiny_seed0.pth").read_bytes())
    with zipfile.ZipFile(GOLDEN / "cls_tiny_seed0.pth") as file:
        entry = file.getinfo("cls_tiny_seed0/data/0")
    data[entry.header_offset + 500] ^= 1
    path = tmp_path / "a.pth"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.pth: Bad CRC-32 for file .*data/0"):
        read_pth(path)


def test_archives_that_torch_does_not_write(tmp_path, archive):
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("net/data.pkl", b"\x80\x02N.")
    with pytest.raises(ValueError, match=r"net/data\.pkl is compressed, which torch"):
        read_pth(path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("word/document.xml", b"<w/>")
    with pytest.raises(ValueError, match=r"0 files named data\.pkl in the archive"):
        read_pth(path)
    path = archive(None, byteorder=b"middle")
    with pytest.raises(ValueError, match="byteorder is b'middle', neither"):
        read_pth(path)


def test_entries_that_overlap_are_refused(tmp_path):
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("net/data.pkl", b"\x80\x02N.")
        file.writestr("net/data/0", bytes(1000))
        first = file.getinfo("net/data/0")
        for number in range(1, 50):
            entry = zipfile.ZipInfo(f"net/data/{number}")
            entry.file_size = entry.compress_size = 1000
            entry.header_offset, entry.CRC = first.header_offset, first.CRC
            file.filelist.append(entry)
            file.NameToInfo[entry.filename] = entry
    with pytest.raises(ValueError, match=r"entries claim 50004 of \d+ bytes"):
        read_pth(path)


def test_random_damage_is_refused_or_harmless(archive, rng):
    value = {"a": tensor(0, (3, 4), (4, 1)), "b": [1, "x", (2.5, None)], 3: True}
    good = np.frombuffer(write_plain_pickle(value), np.uint8)
    read, messages = 0, []
    for _ in range(300):
        damaged = good.copy()
        places = rng.integers(0, len(good), rng.integers(1, 4))
        damaged[places] = rng.integers(0, 256, len(places))
        path = archive(damaged.tobytes())
        try:
            read_pth(path)
            read += 1
        except ValueError as error:
            messages.append(str(error))
    assert read > 0
    assert len(messages) > 100
    assert all("net.pth: " in message for message in messages)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": [1, object()]}, r"content\['a'\]\[1\] is a object, which"),
        ({"a": np.array(["x"])}, r"content\['a'\]: PyTorch has no plain tensor of <U1"),
        ({"a": np.zeros(2, np.uint32)}, "no plain tensor of uint32"),
    ],
)
def test_contents_that_cannot_be_written(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        write_pth(content, tmp_path / "a.pth")
    assert not list(tmp_path.iterdir())


def test_torch_reads_what_is_written(tmp_path, rng):
    torch = pytest.importorskip("torch")
    arrays = {
        name: rng.normal(size=(3, 2)).astype(dtype) for name, dtype in DTYPES.items()
    }
    arrays |= {"scalar": np.array(2.5, np.float32), "empty": np.zeros((0, 3))}
    content = {"epoch": 2**35, "state_dict": OrderedDict(arrays), "best": [0.5, None]}
    write_pth(content, tmp_path / "a.pth")
    for mmap in (False, True):
        result = torch.load(tmp_path / "a.pth", weights_only=True, mmap=mmap)
        assert (result["epoch"], result["best"]) == (2**35, [0.5, None])
        assert type(result["state_dict"]) is OrderedDict
        for name, array in arrays.items():
            found = result["state_dict"][name]
            assert found.shape == array.shape
            bits = found.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
            assert bits == array.tobytes()


def test_reads_what_torch_writes(tmp_path):
    torch = pytest.importorskip("torch")
    numbers = torch.arange(24.0).view(2, 3, 4)
    norm = torch.nn.BatchNorm1d(3)
    tensors = {
        "plain": numbers,
        "transposed": numbers.permute(2, 0, 1),
        "slice": numbers[1, ::2, 1:3],
        "expanded": torch.ones(1, 2).expand(3, 2),
        "bfloat16": numbers.bfloat16(),
        "half": numbers.half(),
        "uint16": torch.tensor([1, 65535], dtype=torch.uint16),
        "float8": numbers.to(torch.float8_e4m3fn),
        "bool": numbers > 5,
        "complex": torch.tensor([1 + 2j]),
        "parameter": torch.nn.Parameter(numbers[0]),
    }
    content = {
        "state_dict": norm.state_dict(),
        "tensors": tensors,
        "best": np.float64(1),
    }
    for protocol in (2, 4):
        torch.save(content, tmp_path / "a.pth", pickle_protocol=protocol)
        result = read_pth(tmp_path / "a.pth")
        assert result["best"] == 1
        assert list(result["state_dict"]) == list(norm.state_dict())
        for name, expected in tensors.items():
            found = result["tensors"][name]
            assert found.shape == tuple(expected.shape)
            plain = expected.detach().to(torch.complex128).numpy()
            np.testing.assert_array_equal(found.astype(np.complex128), plain)


def test_reads_a_big_endian_file_of_torch(tmp_path):
    torch = pytest.importorskip("torch")
    serialization = pytest.importorskip("torch.serialization")
    numbers = torch.tensor([1.5, -2.25])
    swapped = numbers.clone()
    swapped.untyped_storage().byteswap(torch.float32)
    torch.save(swapped, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as file:
        parts = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(tmp_path / "b.pth", "w") as file:
        for name, raw in parts.items():
            file.writestr(name, b"big" if name.endswith("byteorder") else raw)
    assert serialization.load(tmp_path / "b.pth").tolist() == [1.5, -2.25]
    np.testing.assert_array_equal(read_pth(tmp_path / "b.pth"), numbers.numpy())


def test_an_old_file_of_torch_is_named(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "a.pth"
    torch.save({"a": torch.zeros(2)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"the format of PyTorch before 1\.6"):
        read_pth(path)
