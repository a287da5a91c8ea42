"""A loaded model with its tokenizer."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

from jax.sharding import Mesh

from core.artifacts import read_lineage
from data.tokenizers.load import load_tokenizer
from data.tokenizers.tokenizer import Tokenizer
from eval.respond.kept import Kept
from model.adapters.lora import Adapter, Lora, apply_lora, load_lora, stack_adapters
from model.adapters.quantization import quantize, weight_bytes
from model.config import ModelConfig
from model.directory import load_params, read_description
from model.execution import Execution
from model.families.registry import Params, check_generates
from model.generation.weights import add_adapters, unstack


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model in memory.

    Attributes:
        params: parameters; of `only_generating`, as generation reads them.
        config: the architecture.
        execution: how it runs here.
        tokenizer: the tokenizer that it was trained with.
        chat: whether it is a chat model; a base model continues text.
        context_tokens: length of the rows it was trained on.
        name: for records: its folder's name and fingerprint.
        between_batches: called before each batch of a measurement, which it may end by raising.
        scores, answers: what is known already of continuations and of prompts; None keeps nothing.
    """

    params: Params
    config: ModelConfig
    execution: Execution
    tokenizer: Tokenizer
    chat: bool
    context_tokens: int
    name: str = ""
    between_batches: Callable[[], None] = lambda: None
    scores: Kept | None = None
    answers: Kept | None = None

    @functools.cached_property
    def weights(self) -> Params:
        """The parameters as generation reads them; a second copy, if they are not held so."""
        is_unstacked = isinstance(self.params["blocks"], tuple)
        return self.params if is_unstacked else unstack(self.params, self.execution)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the parameters as they are held."""
        return weight_bytes(self.params)


def load_model(folder: Path, execution: Execution, mesh: Mesh | None = None, *,
               weights: str = "float32", adapter: Path | None = None) -> LoadedModel:
    """Opens a model directory.

    Args:
        mesh: to shard the parameters over; without one they are on one device.
        weights: what they are held in: float32, or a kind of `model.adapters.quantization`.
        adapter: folder of an adapter of this model, which is added to it.

    Raises:
        UserError: it is no model directory, is damaged, its tokenizer does not match, it is a
            model that does not continue text, or the adapter is another model's.
    """
    folder = Path(folder)
    described = read_description(folder)
    check_generates(described.config, str(folder))
    params = load_params(folder, described.config, mesh)
    if weights != "float32":
        params = quantize(params, weights)
    if adapter is not None:
        params = apply_lora(params, *load_lora(adapter, folder, mesh))
    return LoadedModel(
        params, described.config, execution,
        load_tokenizer(folder / "tokenizer"), described.chat, described.context_tokens,
        f"{folder.name}@{read_lineage(folder)['fingerprint']}")


def only_generating(model: LoadedModel,
                    adapters: Sequence[tuple[Adapter, Lora]] = ()) -> LoadedModel:
    """The model without the copy of its parameters that measurements read.

    Args:
        adapters: of the model, among which each request chooses; see `Request.adapter`.
    """
    weights = add_adapters(model.weights, stack_adapters(adapters)) if adapters else model.weights
    return dataclasses.replace(model, params=weights)


def keeping(model: LoadedModel, folder: Path) -> LoadedModel:
    """The model with what it has scored and answered before, kept in a folder."""
    e = model.execution
    described = {"model": model.name, "weights": model.weight_bytes, "matmul": e.matmul,
                 "compute_dtype": e.compute_dtype, "kv_cache": e.kv_cache,
                 "tokenizer": model.tokenizer.fingerprint, "context": model.context_tokens}
    return dataclasses.replace(model, scores=Kept(folder, described, "scores"),
                               answers=Kept(folder, described, "answers"))
