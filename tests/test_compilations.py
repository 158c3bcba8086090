"""The count of compiled programs."""

import jax
import jax.numpy as jnp

from e3dsnn_jax.training.compilations import programs_compiled, seconds_compiling


def test_every_new_shape_counts_once():
    function = jax.jit(lambda x: x * 2 + 1)
    inputs = [jnp.ones(3), jnp.ones(5)]
    before, seconds = programs_compiled(), seconds_compiling()
    function(inputs[0])
    assert programs_compiled() == before + 1
    function(inputs[0])
    assert programs_compiled() == before + 1
    function(inputs[1])
    assert programs_compiled() == before + 2
    assert seconds_compiling() > seconds
