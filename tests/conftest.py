"""Settings and fixtures of every test.

Shapes and types of every call into the packages are checked. JAX runs on the CPU as
four virtual devices, and its two leniencies are off: mixing dtypes and mixing ranks
raise. Where a library fights that, a test asks for `lenient_promotion`.
"""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

# Before jax or numpy is imported: both read the environment once.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    # Parallel test processes share the cores instead of each taking all of them.
    threads = str(max(1, (os.cpu_count() or 1) // workers))
    for variable in ("NPROC", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(variable, threads)

import jax
import numpy as np
import pytest
from jaxtyping import install_import_hook

# Not by the option --jaxtyping-packages: it splits a list of several packages wrongly
# where the checker has arguments. Every element of a container is checked, not a
# random one, so that a failure repeats; an int passes as a float, as PEP 484 has it.
install_import_hook(
    ["e3dsnn_jax", "svcca_jax"],
    "beartype.beartype(conf=beartype.BeartypeConf("
    "strategy=beartype.BeartypeStrategy.On, is_pep484_tower=True))",
)

# A shell that starts tests in the background has them ignore Ctrl-C, which some send.
signal.signal(signal.SIGINT, signal.default_int_handler)

jax.config.update("jax_num_cpu_devices", 4)
# Tests compile far more than they run: optimised code would cost minutes.
jax.config.update("jax_disable_most_optimizations", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def getkey() -> Callable[[], jax.Array]:
    """A function that returns another PRNG key at every call, the same in every run."""
    state = jax.random.key(0)

    def next_key() -> jax.Array:
        nonlocal state
        state, key = jax.random.split(state)
        return key

    return next_key


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def lenient_promotion() -> Iterator[None]:
    """JAX's own defaults, for a test of a library that relies on them."""
    with (
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference fixtures and real data, which is not in the project."""
    root = Path(__file__).resolve().parents[1]
    folder = Path(os.environ.get("E3DSNN_SHARED", root.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}; E3DSNN_SHARED names it where it stands")
    return folder
