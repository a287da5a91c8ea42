"""The fields of a `config.json`: none that decides the computation is passed over in silence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from core.errors import UserError, quote

# Fields that decide nothing in a forward pass: names, the start of training, output, generation.
NEUTRAL = frozenset({
    "architectures", "model_type", "transformers_version", "torch_dtype", "dtype",
    "_name_or_path", "use_cache", "initializer_range", "initializer_factor", "init_std",
    "bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "sep_token_id",
    "cls_token_id", "attention_dropout", "hidden_dropout", "dropout", "classifier_dropout",
    "hidden_dropout_prob", "attention_probs_dropout_prob", "resid_pdrop", "embd_pdrop",
    "attn_pdrop", "layerdrop", "activation_dropout", "dropout_rate", "router_aux_loss_coef",
    "router_jitter_noise", "output_router_logits", "router_z_loss_coef", "summary_type",
    "summary_use_proj", "summary_activation", "summary_proj_to_labels", "summary_first_dropout",
    "task_specific_params", "gradient_checkpointing", "pretraining_tp", "return_dict",
    "output_hidden_states", "output_attentions", "problem_type", "id2label", "label2id",
    "chunk_size_feed_forward", "cache_implementation", "_attn_implementation",
    "attn_implementation", "reorder_and_upcast_attn", "max_position_embeddings", "n_positions",
    "n_ctx", "is_llama_config", "transformers.js_config", "unsloth_version", "prefix",
    "finetuning_task",
})


class Fields(Mapping[str, Any]):
    """The fields of a JSON object, each checked as it is read; null counts as absent.

    Args:
        values: the object.
        where: the file, for messages.
    """

    def __init__(self, values: Mapping[str, Any], where: str = "config.json"):
        self._values = {name: value for name, value in values.items() if value is not None}
        self._where, self._read = where, set[str]()

    def __getitem__(self, name: str) -> Any:
        self._read.add(name)
        if name not in self._values:
            raise UserError(f"{self._where}, {name}", "is missing, and the computation depends on "
                            "it", "give the file that belongs to the weights")
        return self._values[name]

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def get(self, name: str, default: Any = None) -> Any:
        """The value, or the default where the field is absent."""
        return self[name] if name in self._values else default

    def refuse(self, name: str, rule: str) -> NoReturn:
        """Raises the `UserError` of a field's value."""
        raise UserError(f"{self._where}, {name}={quote(self._values.get(name))}", rule,
                        "import a model that Heartwood has the parts for")

    def count(self, name: str, default: int | None = None) -> int:
        """A whole number of at least 1."""
        value = self[name] if default is None else self.get(name, default)
        if type(value) is not int or not 1 <= value < 1 << 31:
            self.refuse(name, "must be a whole number above 0")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A number of at least 0."""
        value = self[name] if default is None else self.get(name, default)
        if type(value) not in (int, float) or not 0 <= value < 1e30:
            self.refuse(name, "must be a number of at least 0")
        return value

    def flag(self, name: str, default: bool | None = None) -> bool:
        """True or false."""
        value = self[name] if default is None else self.get(name, default)
        if type(value) is not bool:
            self.refuse(name, "must be true or false")
        return value

    def choice(self, name: str, choices: Mapping[str, str]) -> str:
        """Our name of a value, which must be one of these."""
        value = self[name]
        if type(value) is not str or value not in choices:
            self.refuse(name, f"is none of {', '.join(choices)}")
        return choices[value]

    def inner(self, name: str) -> Fields:
        """The fields of an object; none where it is absent."""
        value = self.get(name, {})
        if not isinstance(value, Mapping):
            self.refuse(name, "must be an object")
        return Fields(value, f"{self._where}, {name}")

    def only(self, name: str, *values: Any) -> None:
        """Refuses other values than these; an absent field stands for the first."""
        value = self.get(name, values[0])
        if not any(type(value) is type(known) and value == known for known in values):
            self.refuse(name, f"is not {' or '.join(map(quote, values))}, all that we have")

    def pass_over(self, *names: str) -> None:
        """Marks fields as read that other fields make meaningless."""
        self._read.update(names)

    def unread(self) -> list[str]:
        """The fields that nobody has asked for, and that are not known to be neutral."""
        return sorted(self._values.keys() - self._read - NEUTRAL)
