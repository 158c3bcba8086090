"""Scans with a label a point: reading, cropping, augmenting, voxels. Imports no JAX."""

from e3dsnn_jax.scans.augment import ScanAugment as ScanAugment
from e3dsnn_jax.scans.augment import augment_scan as augment_scan
from e3dsnn_jax.scans.augment import mix_scans as mix_scans
from e3dsnn_jax.scans.crop import PUBLISHED_BOX as PUBLISHED_BOX
from e3dsnn_jax.scans.crop import Box as Box
from e3dsnn_jax.scans.folder import ScanFolder as ScanFolder
from e3dsnn_jax.scans.folder import open_scan_folder as open_scan_folder
from e3dsnn_jax.scans.scan import Scan as Scan
from e3dsnn_jax.scans.scan_files import read_scan_file as read_scan_file
from e3dsnn_jax.scans.scan_voxels import ScanVoxels as ScanVoxels
from e3dsnn_jax.scans.scan_voxels import voxelize_scan as voxelize_scan
from e3dsnn_jax.scans.semantic_kitti import SemanticKitti as SemanticKitti
from e3dsnn_jax.scans.semantic_kitti import open_semantic_kitti as open_semantic_kitti
