"""A procedural street, the laser sensor that drives through it, and its data sets.

Imports no JAX. Streets are written in the layouts of SemanticKITTI and of KITTI, so
that the readers, trainers and evaluators of real scans run with no download.
"""

from e3dsnn_jax.street.kitti import write_kitti as write_kitti
from e3dsnn_jax.street.plan import plan_street as plan_street
from e3dsnn_jax.street.scan import Scan as Scan
from e3dsnn_jax.street.scan import scan_street as scan_street
from e3dsnn_jax.street.scan import view_street as view_street
from e3dsnn_jax.street.semantic_kitti import (
    write_semantic_kitti as write_semantic_kitti,
)
from e3dsnn_jax.street.sensor import REDUCED as REDUCED
from e3dsnn_jax.street.sensor import Sensor as Sensor
