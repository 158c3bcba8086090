"""Reading clouds on one core: packed records against text files and the cache.

    python -m experiments.benchmarks.records
    python -m experiments.benchmarks.records --texts DIR

Writes a data set in the layout of modelnet40_normal_resampled (10,000 points x 6
columns a cloud by default) into a temporary folder, packs it, and reads all clouds in
random order, read ahead, up to the cloud, and up to its voxels. `txt` reads the text
files, `cache` the memory-mapped rows that `open_dataset` keeps of them, `ours_records`
the records, and `ours_thinned` records with few points a voxel, which are other clouds.
Records must be at least 5 times as fast as text. The files have just been written: all
of them are read from memory, not from a disk.

The last line of stdout is one JSON object, the table goes to stderr.
"""

import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
import tyro

from e3dsnn_jax.data.clouds import PointCloud, ShapeDataset
from e3dsnn_jax.data.loader import voxelize_cloud
from e3dsnn_jax.data.open import find_source, open_dataset
from e3dsnn_jax.data.points import read_points_file
from e3dsnn_jax.data.records_pack import pack_dataset
from e3dsnn_jax.data.records_stream import stream_clouds
from e3dsnn_jax.data.records_writer import PackSettings
from e3dsnn_jax.data.shapes import ProceduralShapes
from e3dsnn_jax.voxels import VoxelCloud
from experiments.benchmarks.report import report, summarize
from experiments.benchmarks.timing import (
    Cases,
    describe_machine,
    interleave,
    is_busy,
    ratio,
)

DEMANDED_SPEEDUP = 5.0


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """Times the reading of clouds from text, from the cache and from records."""

    texts: Path | None = None
    """Folder with text files of six columns, at any depth, whose copies are read
    instead of the embedded shapes."""
    clouds: int = 64
    """Clouds that are read in a round; files of --texts are repeated."""
    points: int = 10_000
    """Points of an embedded shape."""
    voxel_size: float = 0.05
    """Edge of a voxel, in units of the normalised cloud."""
    points_per_voxel: int = 4
    """Most points of a voxel in `ours_thinned`."""
    repeats: int = 9
    """Timed rounds; every case runs once a round."""
    small: bool = False
    """Sizes that take seconds, to see that everything runs."""


@dataclasses.dataclass(frozen=True)
class TextClouds:
    """Text files that are parsed whenever a cloud is asked for; see `ShapeDataset`."""

    files: tuple[Path, ...]
    labels: tuple[int, ...]
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: SupportsIndex, /) -> PointCloud:
        return read_points_file(self.files[index], label=self.labels[index])


def run(config: Benchmark) -> dict[str, Any]:
    """Times every case on one core.

    Returns:
      Seconds, clouds a second, ratios in the same rounds, sizes of the files, and what
      all this depends on.

    Raises:
      ValueError: If the records give other voxels than the text files.
    """
    if config.small:
        config = dataclasses.replace(config, clouds=4, points=200, repeats=2)
    machine = describe_machine()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        datasets, sizes = _make_datasets(config, root)
        _check_equal(datasets["txt"], datasets["ours_records"], config)
        cases: Cases = {}
        for whose, dataset in datasets.items():
            cases["cloud", whose] = _reader(dataset, lambda cloud: cloud)
            cases["voxels", whose] = _reader(
                dataset, lambda cloud: _voxelize(cloud, config)
            )
        report("reading")
        cores = _use_cores(None)
        try:
            _use_cores({min(cores)} if cores else None)
            times = interleave(cases, repeats=config.repeats, warm_up=1)
        finally:
            _use_cores(cores)
        points = [len(datasets["txt"][index].points) for index in range(config.clouds)]
    speedup = {
        kind: ratio(times[kind, "txt"].wall, times[kind, "ours_records"].wall)
        for kind in ("cloud", "voxels")
    }
    return {
        "benchmark": "records",
        "data": "embedded" if config.texts is None else str(config.texts),
        "clouds": config.clouds,
        "points": float(np.mean(points)),
        "voxel_size": config.voxel_size,
        "points_per_voxel": config.points_per_voxel,
        "cores_used": 1 if cores else None,
        "bytes": sizes,
        **summarize(times),
        "clouds_per_second": {
            kind: {
                whose: 1e3 * config.clouds / float(np.median(times[kind, whose].wall))
                for whose in datasets
            }
            for kind in ("cloud", "voxels")
        },
        "speedup": speedup,
        "demanded_speedup": DEMANDED_SPEEDUP,
        "as_demanded": speedup["cloud"]["median"] >= DEMANDED_SPEEDUP,
        "busy": is_busy(machine["load_average"]),
        "load_average_after": describe_machine()["load_average"],
    } | machine


def _use_cores(cores: set[int] | None) -> set[int] | None:
    """Restricts this process to some cores; returns those that it may use."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    if cores:
        os.sched_setaffinity(0, cores)
    return os.sched_getaffinity(0)


def _make_datasets(
    config: Benchmark, root: Path
) -> tuple[dict[str, ShapeDataset], dict[str, int]]:
    """The same clouds from text, cache and records; and the bytes of each."""
    report(f"writing {config.clouds} clouds")
    text = root / "text"
    (text / "shape").mkdir(parents=True)
    names = [f"shape_{number:04}" for number in range(config.clouds)]
    (text / "modelnet40_shape_names.txt").write_text("shape\n")
    (text / "modelnet40_train.txt").write_text("\n".join(names))
    originals = [] if config.texts is None else sorted(config.texts.rglob("*_*.txt"))
    originals = [path for path in originals if not path.name.startswith("modelnet40")]
    if config.texts is not None and not originals:
        raise ValueError(f"{config.texts}: holds no text files called CLASS_NUMBER.txt")
    shapes = ProceduralShapes("train", config.clouds, points_per_cloud=config.points)
    for number, name in enumerate(names):
        path = text / "shape" / f"{name}.txt"
        if originals:
            path.write_bytes(originals[number % len(originals)].read_bytes())
        else:
            cloud = shapes[number]
            columns = np.concatenate([cloud.points, np.asarray(cloud.normals)], axis=1)
            np.savetxt(path, columns, "%.6f", delimiter=",")
    source = find_source(text, "train")
    settings = PackSettings(config.voxel_size)
    [packed] = pack_dataset(text, root / "records", ("train",), settings)
    thin = settings._replace(points_per_voxel=config.points_per_voxel)
    [thinned] = pack_dataset(text, root / "thinned", ("train",), thin)
    cache = open_dataset(text, "train")
    datasets: dict[str, ShapeDataset] = {
        "txt": TextClouds(source.files, source.labels, source.class_names),
        "cache": cache,
        "ours_records": packed.clouds,
        "ours_thinned": thinned.clouds,
    }
    cached = (text / ".e3dsnn_cache").iterdir()
    sizes = {
        "txt": packed.source_bytes or 0,
        "cache": sum(path.stat().st_size for path in cached),
        "ours_records": sum(packed.clouds.index.shard_bytes),
        "ours_thinned": sum(thinned.clouds.index.shard_bytes),
    }
    return datasets, sizes


def _reader(
    dataset: ShapeDataset, finish: Callable[[PointCloud], object]
) -> Callable[[], object]:
    def read() -> None:
        count = 0
        for cloud in stream_clouds(dataset, seed=0):
            finish(cloud)
            count += 1
        assert count == len(dataset)

    return read


def _voxelize(cloud: PointCloud, config: Benchmark) -> VoxelCloud:
    return voxelize_cloud(
        cloud,
        np.random.default_rng(0),
        voxel_size=config.voxel_size,
        normals=True,
        recipe=None,
    )


def _check_equal(text: ShapeDataset, records: ShapeDataset, config: Benchmark) -> None:
    for index in range(len(text)):
        ours, theirs = (_voxelize(part[index], config) for part in (records, text))
        if (
            not np.array_equal(ours.coords, theirs.coords)
            or ours.features.tobytes() != theirs.features.tobytes()
        ):
            raise ValueError(f"cloud {index} has other voxels in the records")


def format_table(result: dict[str, Any]) -> str:
    """The speeds and sizes as lines of text."""
    verdict = "as demanded" if result["as_demanded"] else "LESS THAN DEMANDED"
    faster = result["speedup"]["cloud"]["median"]
    lines = [
        f"{result['cores']} cores, {result['cores_used'] or 'all'} used, load "
        f"{result['load_average']:.1f} before and {result['load_average_after']:.1f} "
        "after",
        f"{result['clouds']} clouds of {result['points']:.0f} points, voxels of "
        f"{result['voxel_size']:g}: records are {faster:.3g} times as fast as text "
        f"({verdict}: {result['demanded_speedup']:g})",
    ]
    if result["busy"]:
        lines.append("BUSY: others used the cores. The times are too long.")
    lines.append(f"{'':24}{'MB':>10}{'clouds/s':>12}{'voxelised/s':>13}")
    speed = result["clouds_per_second"]
    for whose, size in result["bytes"].items():
        lines.append(
            f"{whose:24}{size / 1e6:10.1f}{speed['cloud'][whose]:12.0f}"
            f"{speed['voxels'][whose]:13.0f}"
        )
    quartiles = ("lower_quartile", "median", "upper_quartile")
    for kind, row in result["speedup"].items():
        numbers = "".join(f"{row[name]:9.3g}" for name in quartiles)
        lines.append(f"{f'txt / records, up to the {kind}':36}{numbers}")
    return "\n".join(lines)


def main() -> None:
    """Runs the benchmark of the command line."""
    result = run(tyro.cli(Benchmark))
    print(format_table(result), file=sys.stderr)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
