"""The jraph view of a sparse convolution: voxels as nodes, kernel-map pairs as edges.

A submanifold convolution is message passing: node = active voxel, edge = pair of the
kernel map labelled by its offset k, message = `x_sender W_k`, aggregation = sum. This
literal form multiplies by a matrix an edge and is 4 to 20 times slower than
`sparse_conv`; it is here for people who think in graphs, for use with other graph
layers, and as an independent oracle in the tests.
"""

from typing import Any

import jax.numpy as jnp
import jraph
from jaxtyping import Array, Float

from e3dsnn_jax.kernel_map import KernelMap


def to_graphs_tuple(
    features: Float[Array, " voxels *channels"], kernel_map: KernelMap
) -> jraph.GraphsTuple:
    """A kernel map and its voxels as one graph.

    Strided maps are bipartite, with other rows at either end, and have no place in a
    `GraphsTuple` with its one set of nodes: submanifold maps only. The sum over edges
    cannot be reordered by `jraph.batch` without losing the sorting by offset.

    Args:
      features: Features of every row, padding rows included.
      kernel_map: Submanifold map over the same rows, without overflow.

    Returns:
      Nodes `features` and one more padding node; edges the kernel offset of every
      pair slot; empty slots are edges from the padding node to itself.
    """
    rows, channels = features.shape[0], features.shape[1:]
    pairs = kernel_map.senders.shape[1]
    nodes = jnp.concatenate([features, jnp.zeros((1, *channels), features.dtype)])
    senders = jnp.asarray(kernel_map.senders).reshape(-1)
    return jraph.GraphsTuple(
        nodes=nodes,
        edges=jnp.repeat(jnp.asarray(kernel_map.offset), pairs),
        senders=senders,
        receivers=jnp.asarray(kernel_map.receivers).reshape(-1),
        globals=None,
        n_node=jnp.array([rows + 1]),
        n_edge=jnp.array([senders.shape[0]]),
    )


def graph_conv(
    graph: jraph.GraphsTuple, kernel: Float[Array, "offsets c_in c_out"]
) -> Float[Array, "voxels c_out"]:
    """The submanifold convolution by `jraph.GraphNetwork`, a matrix an edge.

    Args:
      graph: From `to_graphs_tuple`, features `[voxels, c_in]`.
      kernel: One matrix an offset.

    Returns:
      The outputs of the rows given to `to_graphs_tuple`.
    """

    def message(edges, sent, received, globals_):
        del received, globals_
        return jnp.einsum("ei,eio->eo", sent, kernel[edges])

    def receive(nodes, sent, received, globals_):
        del nodes, sent, globals_
        return received

    network = jraph.GraphNetwork(message, receive)
    outputs: Any = network(graph).nodes
    return outputs[:-1]
