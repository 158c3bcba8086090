"""Data sets of shapes: reading, caching, sampling, augmenting. Imports no JAX."""

from e3dsnn_jax.data.augment import Augment as Augment
from e3dsnn_jax.data.clouds import PointCloud as PointCloud
from e3dsnn_jax.data.clouds import ShapeDataset as ShapeDataset
from e3dsnn_jax.data.clouds import Split as Split
from e3dsnn_jax.data.clouds import take_fraction as take_fraction
from e3dsnn_jax.data.open import open_dataset as open_dataset
from e3dsnn_jax.data.points import read_points_file as read_points_file
