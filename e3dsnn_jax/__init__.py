"""E-3DSNN in JAX: spiking networks on sparse 3-D voxels."""

from typing import TYPE_CHECKING, Any

from e3dsnn_jax.backbone import VARIANTS as VARIANTS
from e3dsnn_jax.backbone import Architecture as Architecture
from e3dsnn_jax.backbone import Backbone as Backbone
from e3dsnn_jax.classifier import Classifier as Classifier
from e3dsnn_jax.graph import to_graphs_tuple as to_graphs_tuple
from e3dsnn_jax.interop import convert as convert
from e3dsnn_jax.interop import import_published as import_published
from e3dsnn_jax.interop import read_weights as read_weights
from e3dsnn_jax.interop import write_weights as write_weights
from e3dsnn_jax.kernel_map import Kernel as Kernel
from e3dsnn_jax.kernel_map import KernelMap as KernelMap
from e3dsnn_jax.kernel_map import invert as invert
from e3dsnn_jax.kernel_map import make_kernel as make_kernel
from e3dsnn_jax.pyramid import Level as Level
from e3dsnn_jax.pyramid import build_pyramid as build_pyramid
from e3dsnn_jax.segmenter import SEMANTIC_KITTI as SEMANTIC_KITTI
from e3dsnn_jax.segmenter import Segmenter as Segmenter
from e3dsnn_jax.sparse_conv import sparse_conv as sparse_conv
from e3dsnn_jax.spike import Neuron as Neuron
from e3dsnn_jax.spike import integer_lif as integer_lif
from e3dsnn_jax.spike import integer_spike as integer_spike
from e3dsnn_jax.spike import lif as lif
from e3dsnn_jax.spike import unroll_spikes as unroll_spikes
from e3dsnn_jax.spike_driven import run_binary as run_binary
from e3dsnn_jax.voxels import join_clouds as join_clouds
from e3dsnn_jax.voxels import pad_features as pad_features
from e3dsnn_jax.voxels import voxelize as voxelize

if TYPE_CHECKING:
    from e3dsnn_jax.network_account import account as account
    from e3dsnn_jax.predictor import Prediction as Prediction
    from e3dsnn_jax.predictor import Predictor as Predictor
    from e3dsnn_jax.predictor import load as load


def __getattr__(name: str) -> Any:
    """Imports the predictor when it is asked for: checkpoints take a second to load."""
    if name == "account":
        from e3dsnn_jax import network_account

        return network_account.account
    if name in ("Prediction", "Predictor", "load"):
        from e3dsnn_jax import predictor

        return getattr(predictor, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
