"""A tokenizer by itself, of any kind, and the corpus encoded with it.

    python -m data.train_tokenizer --config=configs/tokenizer.py:unigram --workdir=runs/unigram \\
        --config.tokenizer.corpus=runs/quickstart-cpu/corpus
    python -m data.pack --config=configs/tokenizer.py:unigram --workdir=runs/unigram \\
        --config.pack.corpus=runs/quickstart-cpu/corpus

bpe         byte-level byte pairs, as all current models have
unigram     the unigram language model of SentencePiece
wordpiece   that of BERT, which does not keep white space
word        whole words, others unknown
character   characters, others unknown
byte        the 256 bytes, for models without a learned vocabulary

Each is trained on 20 MB of text; data/tokenizers/patterns.py lists ways to split and to normalise
it. All but bpe and byte need the extra `hf`.
"""

from ml_collections import ConfigDict

from configs.common import make_tokens, parse_variant

VOCABULARIES = {"bpe": 8192, "unigram": 8192, "wordpiece": 8192, "word": 8192, "character": 1024,
                "byte": 261}


def get_config(arg: str | None = None) -> ConfigDict:
    """The config of a kind."""
    kind = parse_variant(arg, tuple(VOCABULARIES))
    c = ConfigDict()
    c.update(make_tokens(vocab_size=VOCABULARIES[kind], tokenizer_bytes=20_000_000))
    c.tokenizer.kind = kind
    return c
