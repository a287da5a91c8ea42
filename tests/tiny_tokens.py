"""A tokenizer of 98 tokens, as many as the tiny model has, and token folders written with it."""

import numpy as np

from core.artifacts import write_json
from data.tokenizers.bpe import BytePairTokenizer
from data.tokens.checked import write_sums

# 91 characters and two pairs, with the 5 special tokens.
TOKENIZER = BytePairTokenizer({bytes([b]): i for i, b in enumerate(range(32, 123))}
                              | {b"th": 91, b"er": 92})


def write_tokens(folder, domains):
    """Writes a token folder: of each domain its documents, lists of tokens."""
    folder.mkdir(parents=True)
    described = {}
    for name, documents in domains.items():
        whole = [[TOKENIZER.bos, *tokens, TOKENIZER.end] for tokens in documents]
        np.concatenate(whole).astype("<u2").tofile(folder / f"{name}.tokens")
        np.cumsum([len(each) for each in whole]).astype("<i8").tofile(folder / f"{name}.ends")
        for suffix in ("tokens", "ends"):
            write_sums(folder / f"{name}.{suffix}")
        described[name] = {"tokens": sum(map(len, whole))}
    TOKENIZER.save(folder / "tokenizer")
    write_json(folder / "tokens.json", {"dtype": "uint16", "vocab_size": 98,
                                        "domains": described})
