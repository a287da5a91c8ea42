
"""What all tests share: eight simulated devices, strict JAX, one compile cache, one tiny model."""

import os
import sys
from contextlib import suppress
from functools import partial

from core.artifacts import ROOT
from core.errors import UserError
from core.xla_flags import check_xla_flags

# Before jax is imported; subprocesses inherit all of it.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
os.environ["XLA_FLAGS"] = "--xla_cpu_parallel_codegen_split_count=1"
with suppress(UserError):   # of jaxlib 0.10: without them tiny programs compile in half the time
    older = f"{os.environ['XLA_FLAGS']} --xla_cpu_use_fusion_emitters=false"
    check_xla_flags({"XLA_FLAGS": older})
    os.environ["XLA_FLAGS"] = older
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # compiling is nearly all that tests do
# A folder per worker: JAX writes an entry in place, where another process could read half of it.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(
    ROOT / ".cache" / "jax" / os.environ.get("PYTEST_XDIST_WORKER", ""))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
# Workers share the cores: torch's threads would wait for each other at every operation.
os.environ["OMP_NUM_THREADS"] = "1"

import jax
import numpy as np
import pytest
from absl import flags
from hypothesis import settings

from data.batch import Batch, pack_examples, stack
from model.config import ModelConfig
from model.execution import Execution
from model.families.registry import Params, init

flags.FLAGS(sys.argv[:1])
settings.register_profile("house", deadline=None, database=None, derandomize=True)
settings.load_profile("house")

TINY = ModelConfig(V=98, D=32, N=2, H=4, G=2, K=8, F=64, embed_previous=True)


# These begin first, so that no worker is left alone with one of them at the end.
LONGEST_FILES = ("test_train_crash", "test_road", "test_data_curate", "test_train_resume",
                 "test_train_mesh", "test_train_trainer", "test_train_fit", "test_train_optimizer",
                 "test_train_step")


def pytest_collection_modifyitems(items):
    """Orders files by `LONGEST_FILES`, then as they were."""
    rank = {name: place for place, name in enumerate(LONGEST_FILES)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


@pytest.fixture(scope="session")
def config() -> ModelConfig:
    """The tiny model's sizes."""
    return TINY


@pytest.fixture(scope="session")
def execution() -> Execution:
    """How the tiny model runs by default: in float32."""
    return Execution()


@pytest.fixture(scope="session")
def params() -> Params:
    """The tiny model's parameters. Nothing may donate them."""
    return jax.jit(partial(init, TINY))(jax.random.key(0))


@pytest.fixture(scope="session")
def batch() -> Batch:
    """Eight packed rows of 24 inputs: several documents a row, some padding, uneven weights."""
    rng = np.random.default_rng(0)
    sizes = [5, 9, 11, 25, 7, 6, 12, 17, 3, 20, 8, 14, 10, 25, 4, 16, 9, 13]
    examples = [(rng.integers(0, TINY.V, n).tolist(), rng.integers(0, 3, n).tolist())
                for n in sizes]
    rows, _ = pack_examples(examples, row_length=24)
    return stack(rows[:8])
