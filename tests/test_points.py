import numpy as np
import pytest

from e3dsnn_jax.data.points import read_points_file
from tests.whole_datasets import normals_of

CUBE_OFF = """8 6 12
0 0 0
2 0 0
2 2 0
0 2 0
0 0 2
2 0 2
2 2 2
0 2 2
4 0 3 2 1
4 4 5 6 7
4 0 1 5 4
4 1 2 6 5
4 2 3 7 6
4 3 0 4 7
"""
TRIANGLE_PLY = """ply
format ascii 1.0
element vertex 3
property float x
property float y
property float z
element face 1
property list uchar int vertex_indices
end_header
0 0 0
1 0 0
0 1 0
3 0 1 2
"""
VERTICES_PLY = """ply
format ascii 1.0
element vertex 2
property float x
property float y
property float z
property float nx
property float ny
property float nz
end_header
1 2 3 0 0 1
4 5 6 0 1 0
"""
OBJ = "v 0 0 1\nv 1 0 1\nv 1 1 1\nv 0 1 1\nf 1 2 3 4\no other\nv 0 0 1\nf 1 3 5\n"


def write(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    return path


def check_cube(cloud, count):
    """Points on the faces of [0, 2]^3, normals of their faces, even over the area."""
    assert cloud.points.shape == cloud.normals.shape == (count, 3)
    assert cloud.points.dtype == cloud.normals.dtype == np.float32
    axis = np.abs(cloud.normals).argmax(axis=1)
    rows = np.arange(count)
    face = cloud.normals[rows, axis]
    np.testing.assert_allclose(cloud.points[rows, axis], 1 + face, atol=1e-5)
    sides = np.bincount(axis * 2 + (face > 0), minlength=6)
    assert np.abs(sides - count / 6).max() < 5 * np.sqrt(count / 6)


@pytest.mark.parametrize("header", ["OFF\n", "OFF", "OFF ", "# a cube\nOFF\n\n"])
def test_off_is_sampled_on_its_surface(tmp_path, header):
    path = write(tmp_path, "cube.OFF", header + CUBE_OFF)
    cloud = read_points_file(path, label=5)
    check_cube(cloud, 10_000)
    assert (cloud.label, cloud.name) == (5, str(path))


def test_the_seed_is_of_the_mesh_not_of_the_place(tmp_path):
    (tmp_path / "a").mkdir()
    first = read_points_file(write(tmp_path, "x.off", "OFF\n" + CUBE_OFF))
    same = read_points_file(write(tmp_path / "a", "y.off", "OFF\n" + CUBE_OFF))
    np.testing.assert_array_equal(first.points, same.points)
    bigger = CUBE_OFF.replace("2 2 2", "2 2 3")
    other = read_points_file(write(tmp_path, "z.off", "OFF\n" + bigger))
    assert (first.points != other.points).any()


def test_number_of_points_from_a_mesh(tmp_path):
    path = write(tmp_path, "cube.off", "OFF\n" + CUBE_OFF)
    check_cube(read_points_file(path, mesh_points=600), 600)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("8 6 12\n0 0 0\n", "does not begin with OFF"),
        ("", "does not begin with OFF"),
        ("OFF\neight six\n", "numbers of vertices and faces should follow"),
        ("OFF\n", "numbers of vertices and faces should follow"),
        (
            "OFF\n" + CUBE_OFF[:60],
            "8 vertices and 6 faces are announced but only .* cut short",
        ),
        ("OFF\n" + CUBE_OFF[:-4], "last face is cut short"),
        ("OFF\n" + CUBE_OFF.replace("2 2 2", "2 x 2"), "cannot be read as off"),
        ("OFF\n" + CUBE_OFF.replace("2 2 2", "2 nan 2"), "vertices are NaN"),
        ("OFF\n3 1 0\n0 0 0\n1 1 1\n2 2 2\n3 0 1 2\n", "1 triangles have no area"),
    ],
)
def test_broken_off(tmp_path, text, message):
    path = write(tmp_path, "broken.off", text)
    with pytest.raises(ValueError, match=f"broken.off: .*{message}"):
        read_points_file(path)


def test_ply_mesh(tmp_path):
    cloud = read_points_file(write(tmp_path, "t.ply", TRIANGLE_PLY), mesh_points=50)
    assert (cloud.points[:, :2].sum(axis=1) <= 1 + 1e-6).all()
    np.testing.assert_allclose(normals_of(cloud), np.tile([0, 0, 1], (50, 1)))


def test_ply_points_with_normals(tmp_path):
    cloud = read_points_file(write(tmp_path, "p.ply", VERTICES_PLY))
    np.testing.assert_array_equal(cloud.points, [[1, 2, 3], [4, 5, 6]])
    np.testing.assert_array_equal(cloud.normals, [[0, 0, 1], [0, 1, 0]])


def test_ply_points_without_normals(tmp_path):
    text = "\n".join(
        line for line in VERTICES_PLY.splitlines() if "property float n" not in line
    )
    text = text.replace("3 0 0 1", "3").replace("6 0 1 0", "6") + "\n"
    cloud = read_points_file(write(tmp_path, "p.ply", text))
    np.testing.assert_array_equal(cloud.points, [[1, 2, 3], [4, 5, 6]])
    assert cloud.normals is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TRIANGLE_PLY[:20], "no ply header"),
        (TRIANGLE_PLY[:150], "no ply header"),
        (TRIANGLE_PLY.replace("float x", "real x"), "cannot be read as ply geometry"),
        (TRIANGLE_PLY.replace("0 1 0\n3", "0 1 0\n4"), "the last face is cut short"),
    ],
)
def test_broken_ply(tmp_path, text, message):
    with pytest.raises(ValueError, match=f"t.ply: {message}"):
        read_points_file(write(tmp_path, "t.ply", text))


CUTS = ["the file is cut short", "the last face is cut short"]


@pytest.mark.parametrize(("lines", "message"), [(-1, CUTS[0]), (None, CUTS[1])])
def test_truncated_ply_in_text(tmp_path, lines, message):
    text = "\n".join(TRIANGLE_PLY.rstrip().splitlines()[:lines])
    text = text if lines else text.rsplit(" ", 1)[0]
    with pytest.raises(ValueError, match=f"t.ply: .*{message}"):
        read_points_file(write(tmp_path, "t.ply", text))


def test_ply_with_a_broken_header(tmp_path):
    text = TRIANGLE_PLY.replace("element vertex 3", "element vertex")
    with pytest.raises(ValueError, match=r"t.ply: an element without a count"):
        read_points_file(write(tmp_path, "t.ply", text))


def test_obj_whose_vertices_are_missing(tmp_path):
    text = "v 0 0 0\nv 1 0 0\nf 1 2 3\n"
    with pytest.raises(ValueError, match=r"s.obj: .*cut short"):
        read_points_file(write(tmp_path, "s.obj", text))


def test_obj_with_several_objects(tmp_path):
    cloud = read_points_file(write(tmp_path, "s.obj", OBJ), mesh_points=300)
    np.testing.assert_allclose(cloud.points[:, 2], 1)
    np.testing.assert_allclose(np.abs(normals_of(cloud)[:, 2]), 1)


def test_obj_without_geometry(tmp_path):
    with pytest.raises(ValueError, match=r"s.obj: holds neither triangles nor points"):
        read_points_file(write(tmp_path, "s.obj", "# nothing\n"))


@pytest.mark.parametrize(
    "text",
    [
        "1,2,3,0,0,1\n4,5,6,0,1,0\n",
        "1 2 3 0 0 1\n\n4 5 6 0 1 0\n",
        "x;y;z;nx;ny;nz\n1;2;3;0;0;1\n4;5;6;0;1;0",
    ],
)
@pytest.mark.parametrize("ending", ["txt", "xyz", "csv"])
def test_text(tmp_path, text, ending):
    cloud = read_points_file(write(tmp_path, f"p.{ending}", text))
    np.testing.assert_array_equal(cloud.points, [[1, 2, 3], [4, 5, 6]])
    np.testing.assert_array_equal(cloud.normals, [[0, 0, 1], [0, 1, 0]])
    assert cloud.points.dtype == np.float32


def test_text_without_normals(tmp_path):
    cloud = read_points_file(write(tmp_path, "p.txt", "1 2 3"))
    np.testing.assert_array_equal(cloud.points, [[1, 2, 3]])
    assert cloud.normals is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,2,3\n4,5\n", "p.txt, line 2: 2 columns, expected 3 as in line 1"),
        ("1,2,3\n\n4,five,6\n", "p.txt, line 3: 'five' is not a number"),
        ("1,2,3\n4,5,6,\n", "p.txt, line 2: 4 columns, expected 3"),
        ("1,2\n3,4\n", r"p.txt, line 1: 2 columns, expected 3 \(x, y, z\) or 6"),
        ("x y z w\n1 2 3 4\n", "p.txt, line 2: 4 columns"),
        ("", "p.txt: the file is empty"),
        (" \n\n", "p.txt: the file is empty"),
        ("x,y,z\n", "p.txt: names of columns, but no points"),
        ("1,2,nan\n1,2,3\n", "p.txt: 1 of 2 points are NaN or infinite"),
        ("1,2,3,0,0,255\n", "p.txt: 1 of 1 normals are not of length 1 but 255"),
    ],
)
def test_broken_text(tmp_path, text, message):
    path = write(tmp_path, "p.txt", text)
    with pytest.raises(ValueError, match=message):
        read_points_file(path)


def test_npy(tmp_path, rng):
    columns = rng.normal(size=(9, 6))
    columns[:, 3:] /= np.linalg.norm(columns[:, 3:], axis=1, keepdims=True)
    np.save(tmp_path / "p.npy", columns)
    cloud = read_points_file(tmp_path / "p.npy")
    np.testing.assert_allclose(cloud.points, columns[:, :3], rtol=1e-6)
    np.testing.assert_allclose(normals_of(cloud), columns[:, 3:], rtol=1e-5)
    np.save(tmp_path / "q.npy", columns[:, :3])
    assert read_points_file(tmp_path / "q.npy").normals is None


def test_broken_npy(tmp_path):
    np.save(tmp_path / "p.npy", np.zeros((9, 4)))
    with pytest.raises(ValueError, match=r"p.npy: has shape \(9, 4\), expected"):
        read_points_file(tmp_path / "p.npy")
    np.save(tmp_path / "q.npy", np.zeros((9, 3)))
    path = tmp_path / "q.npy"
    path.write_bytes(path.read_bytes()[:150])
    with pytest.raises(ValueError, match=r"q.npy: cannot be read as an npy file"):
        read_points_file(path)


def test_npz_of_floats_and_of_integers(tmp_path):
    np.savez(tmp_path / "f.npz", points=np.eye(3), normals=np.eye(3))
    integers = np.eye(3, dtype=np.int16)
    np.savez(
        tmp_path / "i.npz",
        points=32767 * integers,
        normals=np.int8(127) * np.int8(integers),
    )
    for name in ("f.npz", "i.npz"):
        cloud = read_points_file(tmp_path / name)
        np.testing.assert_array_equal(cloud.points, np.eye(3))
        np.testing.assert_array_equal(cloud.normals, np.eye(3))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"data": np.eye(3)}, "no array called points, only data"),
        ({}, "no array called points, only none at all"),
        ({"points": np.zeros((5, 9, 3))}, "holds 5 clouds, one was expected"),
        ({"points": np.zeros((5, 2))}, r"points have shape \(5, 2\)"),
        (
            {"points": np.eye(3), "normals": np.ones((2, 3))},
            r"normals have shape \(2, 3\) but points",
        ),
        ({"points": np.zeros((0, 3))}, "the cloud is empty"),
        ({"points": np.full((1, 3), np.inf)}, "NaN or infinite"),
    ],
)
def test_broken_npz(tmp_path, arrays, message):
    np.savez(tmp_path / "p.npz", **arrays)
    with pytest.raises(ValueError, match=f"p.npz: .*{message}"):
        read_points_file(tmp_path / "p.npz")


@pytest.mark.parametrize("keep", [0, 40, 300])
def test_truncated_npz(tmp_path, keep):
    path = tmp_path / "p.npz"
    np.savez(path, points=np.zeros((100, 3)))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"p.npz: cannot be read as an npz .*get it"):
        read_points_file(path)


def test_unknown_ending_and_absent_file(tmp_path):
    with pytest.raises(ValueError, match=r"cannot read .stl; known are .npz, .npy,"):
        read_points_file(tmp_path / "p.stl")
    with pytest.raises(ValueError, match="cannot read files without ending"):
        read_points_file(tmp_path / "p")
    for ending in ("npz", "npy", "txt", "off", "ply"):
        with pytest.raises(FileNotFoundError):
            read_points_file(tmp_path / f"absent.{ending}")


def test_real_meshes_and_text(shared):
    samples = shared / "data" / "modelnet_samples"
    if not samples.is_dir():
        pytest.skip(f"no folder {samples}")
    cloud = read_points_file(samples / "ModelNet40/airplane/train/airplane_0002.off")
    assert cloud.points.shape == (10_000, 3)
    np.testing.assert_allclose(np.linalg.norm(normals_of(cloud), axis=1), 1, atol=1e-5)
    text = samples / "modelnet40_normal_resampled/plant/plant_0001.txt"
    cloud = read_points_file(text)
    assert cloud.points.shape == (10_000, 3)
    np.testing.assert_allclose(cloud.points[0], [0.002457, -0.5583, -0.2696], atol=1e-7)
    np.testing.assert_allclose(
        normals_of(cloud)[0], [0.2593, 0.7181, 0.6458], atol=1e-4
    )


def test_a_header_glued_to_its_counts_changes_nothing(tmp_path, shared):
    mesh = shared / "data/modelnet_samples/ModelNet10/bathtub/train/bathtub_0002.off"
    if not mesh.exists():
        pytest.skip(f"no file {mesh}")
    glued = write(tmp_path, "glued.off", mesh.read_text().replace("OFF\n", "OFF", 1))
    np.testing.assert_array_equal(
        read_points_file(glued).points, read_points_file(mesh).points
    )
