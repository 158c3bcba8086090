"""What stands in a published checkpoint: state dict, kind of network, weight order.

The training code of the authors writes `{"state_dict": ...}` (classification and
segmentation) or `{"model_state": ...}` (detection), with names that carry the
prefixes of the modules around the network: `backbone.`, and `module.` ahead of it
where training was distributed.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from e3dsnn_jax.pth import read_pth

State = Mapping[str, np.ndarray]
"""Arrays by their names in the published code, prefixes stripped."""

_PREFIXES = ("module.", "backbone.")
_DETECTOR = re.compile(r"(backbone_[23]d|roi_head|dense_head|conv_input|conv1)\.")
_ANN_CONV = re.compile(r"(backbone_3d\.)?conv[1-4]\.0\.0\.weight")


def load_published(path: str | Path) -> dict[str, np.ndarray]:
    """Returns the state dict of a published checkpoint, by unprefixed names.

    Args:
      path: A `.pth` file that holds `{"state_dict": ...}`, `{"model_state": ...}` or
        the state dict itself.

    Returns:
      The arrays, named as in the network's own class: `stem.0.weight`, ....

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If the file cannot be read or holds no state dict.
    """
    content = read_pth(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, no state dict")
    keys = [key for key in ("state_dict", "model_state") if key in content]
    state = content[keys[0]] if keys else content
    where = f"its {keys[0]!r}" if keys else "the file (no 'state_dict', 'model_state')"
    if not isinstance(state, dict) or not state:
        raise ValueError(f"{path}: {where} is no dict of arrays, or an empty one")
    others = [key for key, value in state.items() if not _is_named_array(key, value)]
    if others:
        raise ValueError(
            f"{path}: {where} is no state dict: {len(others)} of its {len(state)} "
            f"entries are not arrays ({_names(others)})"
        )
    return _strip_prefixes(state, source=str(path))


def _is_named_array(key: object, value: object) -> bool:
    return isinstance(key, str) and isinstance(value, np.ndarray)


def _names(keys: list[object]) -> str:
    shown = ", ".join(repr(key) for key in keys[:5])
    return f"{shown}, ..." if len(keys) > 5 else shown


def _strip_prefixes(state: State, *, source: str) -> dict[str, np.ndarray]:
    named = dict(state)
    for prefix in _PREFIXES:
        stripped: dict[str, np.ndarray] = {}
        for name, array in named.items():
            short = name.removeprefix(prefix)
            if short in stripped:
                raise ValueError(
                    f"{source}: {short!r} is there with and without {prefix!r}"
                )
            stripped[short] = array
        named = stripped
    return named


def has_decoder(state: State) -> bool:
    """Whether the state dict is that of a segmentation network."""
    return any(name.startswith("dec.") for name in state)


def check_is_network(state: State, *, source: str) -> None:
    """Raises ValueError, with what it is instead, unless we have such a network.

    Those are the classifiers and the segmentation networks.

    Args:
      state: Arrays by unprefixed published names.
      source: What the message calls the file.
    """
    for name, array in state.items():
        if _ANN_CONV.fullmatch(name) and array.ndim == 5:
            raise ValueError(
                f"{source}: these are the weights of a non-spiking detector, as in "
                f"the public kitti.pth: {name} {array.shape} is a convolution that "
                "BatchNorm and ReLU follow (VoxelBackBone8x, "
                f"{_order_name(array)}). A spiking network has a neuron there; no "
                "such weights were published, and these fit none of its layers"
            )
    detector = [name for name in state if _DETECTOR.match(name)]
    if detector:
        raise ValueError(
            f"{source}: these are the weights of a detector ({detector[0]}, ...), not "
            "of a classifier or a segmentation network"
        )
    if "stem.0.weight" not in state:
        raise ValueError(
            f"{source}: this is no classifier or segmentation network of the published "
            f"code: there is no stem.0.weight among its {len(state)} arrays "
            f"({_names(list(state))})"
        )


def _order_name(kernel: np.ndarray) -> str:
    if _is_spconv1(kernel.shape):
        return "weight order of spconv 1.x, [k0, k1, k2, in, out]"
    return "weight order of spconv 2.x, [out, k0, k1, k2, in]"


def _is_cube(edges: tuple[int, ...]) -> bool:
    return len(set(edges)) == 1 and edges[0] in (1, 2, 3)


def _is_spconv1(shape: tuple[int, ...]) -> bool:
    """Whether a 5-D shape can only be [k, k, k, in, out]."""
    return _is_cube(shape[:3]) and not _is_cube(shape[1:4])


def _is_spconv2(shape: tuple[int, ...]) -> bool:
    """Whether a 5-D shape can only be [out, k, k, k, in]."""
    return _is_cube(shape[1:4]) and not _is_cube(shape[:3])


def from_spconv1(state: State, *, source: str) -> tuple[dict[str, np.ndarray], bool]:
    """Returns the state with every kernel in the order of spconv 2.x.

    The order of spconv 1.x is [k0, k1, k2, in, out]; that of spconv 2.x, in which the
    published networks run, is [out, k0, k1, k2, in]. The file as a whole has one
    order: a single kernel may fit both (three channels in and out). The 1x1x1 kernel
    is the exception to a plain transposition. spconv 2.x reads the buffer of
    [out, 1, 1, 1, in] as [in, out], so the buffer is kept and only its shape changes:
    the network then computes what spconv 1.x computed.

    Args:
      state: Arrays by unprefixed published names.
      source: What the message calls the file.

    Returns:
      The state, and whether it was in the order of spconv 1.x.

    Raises:
      ValueError: If some kernels have one order and some the other.
    """
    kernels = {name: array for name, array in state.items() if array.ndim == 5}
    old = [name for name, array in kernels.items() if _is_spconv1(array.shape)]
    new = [name for name, array in kernels.items() if _is_spconv2(array.shape)]
    if not old:
        return dict(state), False
    if new:
        raise ValueError(
            f"{source}: {len(old)} kernels are in the order of spconv 1.x (such as "
            f"{old[0]} {kernels[old[0]].shape}) and {len(new)} in that of spconv 2.x "
            f"(such as {new[0]} {kernels[new[0]].shape}); one file has one order"
        )
    converted = dict(state)
    for name, array in kernels.items():
        c_in, c_out = array.shape[3:]
        if array.shape[:3] == (1, 1, 1):
            converted[name] = array.reshape(c_out, 1, 1, 1, c_in)
        else:
            converted[name] = array.transpose(4, 0, 1, 2, 3)
    return converted, True
