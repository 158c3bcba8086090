"""Trained networks as functions of point clouds.

predict = e3dsnn_jax.load("runs/train")
prediction = predict(points, normals)
prediction.label, prediction.top(3)
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from e3dsnn_jax.capacity import Capacity
from e3dsnn_jax.data.clouds import PointCloud, check_cloud, unit_normals
from e3dsnn_jax.data.loader import voxelize_cloud
from e3dsnn_jax.data.sampling import thin_out
from e3dsnn_jax.pyramid import Level, find_levels, fit_capacity, fits, pack_levels
from e3dsnn_jax.spike import Neuron
from e3dsnn_jax.training.checkpoints import Which
from e3dsnn_jax.training.saved import (
    PUBLISHED_VOXEL_SIZE,
    SavedNetwork,
    load_run,
    load_weights,
)
from e3dsnn_jax.voxels import VoxelCloud, join_clouds, pad_features

MAX_CLOUDS = 16
"""Clouds that go through the network together, a power of two."""


class Prediction(NamedTuple):
    """What a network says of one cloud."""

    class_names: tuple[str, ...]
    probabilities: Float[np.ndarray, " classes"]
    """Probability of each class; they sum to 1."""

    @property
    def label(self) -> str:
        """Name of the most probable class."""
        return self.class_names[int(self.probabilities.argmax())]

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """The most probable classes with their probabilities, best first."""
        order = np.argsort(-self.probabilities, kind="stable")[:count]
        return [(self.class_names[k], float(self.probabilities[k])) for k in order]


class Predictor:
    """A callable network; from `load`.

    Clouds are padded to a few static shapes that are remembered, so that repeated
    calls compile nothing new.
    """

    def __init__(self, network: SavedNetwork):
        self.network = network
        # By number of clouds, smallest first; each is one compiled program.
        self._capacities: dict[int, list[Capacity]] = {}
        self._variables = jax.device_put(network.variables)
        self._run = jax.jit(
            functools.partial(_probabilities, network.model),
            static_argnames="num_clouds",
        )

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes that the network tells apart."""
        return self.network.class_names

    def __call__(
        self,
        points: Float[np.ndarray, "points 3"],
        normals: Float[np.ndarray, "points 3"] | None = None,
        *,
        votes: int | None = None,
    ) -> Prediction:
        """Predicts the class of one cloud.

        Args:
          points: Coordinates in any unit; the cloud is centred and scaled here.
          normals: Outward unit normals, needed if the network was trained with them.
          votes: Random voxelisations that are averaged; as trained if omitted.

        Raises:
          ValueError: On an empty cloud, a number that is not finite, missing normals
            or normals that are not of length 1.
        """
        points = np.asarray(points, np.float32)
        normals = None if normals is None else np.asarray(normals, np.float32)
        cloud = PointCloud(points, normals, -1, "the cloud")
        check_cloud(cloud)
        if normals is not None:
            cloud = cloud._replace(normals=unit_normals(normals, cloud.name))
        return self.predict_clouds([cloud], votes=votes)[0]

    def predict_clouds(
        self, clouds: Sequence[PointCloud], *, votes: int | None = None
    ) -> list[Prediction]:
        """Predicts the class of each cloud, several at a time.

        Args:
          clouds: The clouds; their labels are not looked at.
          votes: Random voxelisations that are averaged; as trained if omitted.

        Raises:
          ValueError: As for one cloud; the message names it.
        """
        votes = self.network.votes if votes is None else votes
        if votes < 1:
            raise ValueError(f"votes must be 1 or more, got {votes}")
        for cloud in clouds:
            check_cloud(cloud)
        data = self.network.data
        thinned = [thin_out(cloud, data.points_per_cloud) for cloud in clouds]
        summed = np.zeros((len(clouds), len(self.class_names)))
        for vote in range(votes):
            voxels = [self._voxelize(cloud, vote) for cloud in thinned]
            for first in range(0, len(voxels), MAX_CLOUDS):
                part = slice(first, first + MAX_CLOUDS)
                summed[part] += self._run_batch(voxels[part])
        return [Prediction(self.class_names, row / votes) for row in summed]

    def _voxelize(self, cloud: PointCloud, vote: int) -> VoxelCloud:
        data = self.network.data
        if data.normals and cloud.normals is None:
            raise ValueError(
                f"{cloud.name} has no normals, but {self.network.source} was trained "
                "with them: give normals too, or train a network with "
                "--data.no-normals"
            )
        # The same cloud gives the same answer, also in another batch.
        rng = np.random.default_rng(vote)
        return voxelize_cloud(
            cloud,
            rng,
            voxel_size=data.voxel_size,
            normals=data.normals,
            recipe=None,
        )

    def _run_batch(
        self, voxels: list[VoxelCloud]
    ) -> Float[np.ndarray, "clouds classes"]:
        num_clouds = 1 << (len(voxels) - 1).bit_length()
        coords, rows = join_clouds(voxels)
        found = find_levels(
            coords, num_levels=self.network.model.architecture.num_levels
        )
        known = self._capacities.setdefault(num_clouds, [])
        capacity = next((shape for shape in known if fits(found, shape)), None)
        if capacity is None:
            # Room for other clouds of this kind.
            capacity = fit_capacity([found], slack=1.5)
            known.append(capacity)
            known.sort(key=lambda shape: shape[0].voxels)
        features = pad_features(rows, rows=capacity[0].voxels)
        probabilities = self._run(
            self._variables,
            features,
            pack_levels(found, capacity),
            num_clouds=num_clouds,
        )
        found_probabilities = np.asarray(probabilities)[: len(voxels)]
        if not np.isfinite(found_probabilities).all():
            raise ValueError(
                f"{self.network.source} answers with numbers that are not finite: its "
                "weights are broken or its training has diverged"
            )
        return found_probabilities


def _probabilities(
    model, variables, features, levels: tuple[Level, ...], *, num_clouds: int
) -> Float[Array, "clouds classes"]:
    logits, _ = model.apply(
        variables, features, levels, num_clouds=num_clouds, train=False
    )
    return jax.nn.softmax(logits.astype(jnp.float32))


def load(
    source: str | Path,
    *,
    which: Which = "last",
    class_names: tuple[str, ...] | None = None,
    voxel_size: float = PUBLISHED_VOXEL_SIZE,
    neuron: Neuron | None = None,
) -> Predictor:
    """Returns the network of a run folder, or of a weights file, as a function.

    Args:
      source: Folder of a training run, or a `.pth` (published layout) or `.npz` file.
      which: For a run: the latest checkpoint, or the most accurate one.
      class_names: For a weights file: its classes; numbered if omitted.
      voxel_size: For a weights file: the edge of a voxel it was trained with.
      neuron: For a weights file: its neurons; the published ones if omitted.

    Raises:
      ValueError: If the source cannot be read; the message says why.
      FileNotFoundError: If there is no such weights file.
    """
    path = Path(source)
    if path.suffix in (".pth", ".npz"):
        network = load_weights(
            path, class_names=class_names, voxel_size=voxel_size, neuron=neuron
        )
    else:
        network = load_run(path, which=which)
    return Predictor(network)
