"""Random models of transformers and the same weights as our parameters, for tests of parity."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from model.config import ModelConfig
from model.hf.fields import Fields
from model.hf.safetensors_files import open_safetensors
from model.hf.tables import Layout, load_params, write_params


def open_peer(folder: Path, layout: Layout) -> tuple[ModelConfig, Any]:
    """Our config and parameters of a folder that transformers wrote."""
    config = layout.read_config(Fields(json.loads((folder / "config.json").read_text())))
    return config, load_params(layout, open_safetensors(folder), config)


def save_random_peer(model: Any, folder: Path, std: float = 0.2, norm_mean: float = 1.0) -> Any:
    """Gives every weight of a torch model a random value, and writes the model.

    Args:
        norm_mean: of the weights of norms; 0 where these are 1 + w.
    """
    import torch

    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        mean = norm_mean if name.lower().endswith("norm.weight") else 0.0
        torch.nn.init.normal_(parameter, mean, std)
    model.eval().save_pretrained(folder)
    return model


def assert_same_bytes(layout: Layout, params: Any, config: ModelConfig, folder: Path) -> None:
    """Every tensor that we write equals the one that was read, and none is missing."""
    original = dict(open_safetensors(folder))
    for name, shape, dtype, read in write_params(layout, params, config, np.dtype("float32")):
        theirs, ours = original.pop(name).read(), read()
        assert (ours.shape, ours.dtype) == (shape, dtype) == (theirs.shape, theirs.dtype), name
        assert ours.tobytes() == theirs.tobytes(), name
    assert not original


def as_entries(layout: Layout, tree: Any, config: ModelConfig) -> dict[str, np.ndarray]:
    """A tree of the parameters' shape, such as their gradient, by the names of transformers."""
    tree = jax.device_get(tree)
    return {name: read() for name, _, _, read in write_params(layout, tree, config,
                                                              np.dtype("float32"))}
