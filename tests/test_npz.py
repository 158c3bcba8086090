"""Npz files whose damage could pass for other numbers."""

import zipfile

import numpy as np
import pytest

from e3dsnn_jax.npz import load_npz


@pytest.fixture
def path(tmp_path, rng):
    path = tmp_path / "a.npz"
    np.savez(path, points=rng.standard_normal((3000, 3)), label=np.arange(3))
    return path


def test_arrays_come_back(path):
    arrays = load_npz(path)
    assert arrays.keys() == {"points", "label"}
    np.testing.assert_array_equal(arrays["label"], [0, 1, 2])
    with pytest.raises(FileNotFoundError):
        load_npz(path.with_name("b.npz"))


def test_a_header_that_asks_for_fewer_rows(path):
    path.write_bytes(path.read_bytes().replace(b"(3000, 3)", b"(1000, 3)"))
    with pytest.raises(ValueError, match=r"a.npz: .*points.npy .* checksum"):
        load_npz(path)


def test_a_table_that_lists_fewer_entries(path):
    content = bytearray(path.read_bytes())
    first = content.index(b"PK\1\2")
    second = content.index(b"PK\1\2", first + 1)
    end = content.index(b"PK\5\6")
    # The first entry's comment swallows the second entry.
    content[first + 32 : first + 34] = (end - second).to_bytes(2, "little")
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match=r"a.npz: .*1 of 2 entries are listed"):
        load_npz(path)


def test_entries_that_are_no_arrays(path):
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("notes.txt", "of the measurement")
    with pytest.raises(ValueError, match=r"a.npz: 'notes.txt' in it is no array"):
        load_npz(path)
