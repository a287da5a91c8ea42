"""The families of transformers that are read and written."""

from __future__ import annotations

from model.hf.families import bert, gemma, gpt, llama, t5
from model.hf.fields import Fields
from model.hf.tables import Layout

# In the order in which an export tries them.
LAYOUTS: tuple[Layout, ...] = (
    llama.LLAMA, llama.QWEN3, llama.MISTRAL, llama.MIXTRAL, llama.QWEN3_MOE, gemma.GEMMA,
    gemma.GEMMA2, gemma.GEMMA3, gpt.GPT2, gpt.OPT, gpt.GPT_NEOX, bert.BERT_MASKED,
    bert.BERT, t5.T5)


def find_layout(hf: Fields) -> Layout:
    """The family of a `config.json`; of several of one type, that of its architecture.

    Raises:
        UserError: a type that is not in the table, or weights that are not plain numbers.
    """
    if "quantization_config" in hf:
        hf.refuse("quantization_config", "weights that transformers quantised are not read")
    name = hf["model_type"]
    found = [layout for layout in LAYOUTS if layout.model_type == name]
    if not found:
        known = dict.fromkeys(layout.model_type for layout in LAYOUTS)
        hf.refuse("model_type", f"is none of {', '.join(known)}")
    given = hf.get("architectures", [])
    return next((layout for layout in found if layout.architecture in given), found[0])
