"""How well a tokenizer compresses texts, and how evenly it uses its vocabulary."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data.tokenizers.tokenizer import Tokenizer
from data.vocabularies.sample import Domain, english_name
from data.writing import count_words, is_unspaced

ALPHA = 2.5         # of the Rényi entropy, which arXiv 2306.16842 found best
UNKNOWN = ("<unk>", "[UNK]", "<|unk|>", "<|unknown|>")


def unknown_id(tokenizer: Tokenizer) -> int | None:
    """Id of the token that stands for text without tokens; None where there is none."""
    names = (tokenizer.named.get("unk_token"), *UNKNOWN)
    return next((tokenizer.special(name) for name in names if name in tokenizer.specials), None)


def measure_domain(tokenizer: Tokenizer, domain: Domain) -> tuple[dict[str, Any], np.ndarray]:
    """Encodes a domain's sample.

    Returns:
        `tokens`, `bytes_per_token`, `characters_per_token`, `tokens_per_word`, `whole_words_frac`
        (share of the words, as often as they occur, that are one token), `unknown_tokens` and
        `round_trip_frac` (share of documents that decoding restores); and how often each id is
        used: [V] int64.
    """
    ids = tokenizer.encode_batch(domain.texts)
    counts_V = np.bincount(np.fromiter((i for own in ids for i in own), np.int64),
                           minlength=tokenizer.vocab_size)
    restored = sum(tokenizer.decode(own) == text for own, text in zip(ids, domain.texts))
    unknown, tokens = unknown_id(tokenizer), max(int(counts_V.sum()), 1)
    return {"tokens": tokens, "bytes_per_token": domain.num_bytes / tokens,
            "characters_per_token": domain.num_characters / tokens,
            "tokens_per_word": tokens / max(domain.num_words, 1),
            "whole_words_frac": whole_words_frac(tokenizer, domain.words),
            "unknown_tokens": 0 if unknown is None else int(counts_V[unknown]),
            "round_trip_frac": restored / len(domain.texts)}, counts_V


def whole_words_frac(tokenizer: Tokenizer, words: Mapping[str, int]) -> float | None:
    """Share of words that are one token after a space, or after a letter in scripts without spaces.

    Args:
        words: how often each occurs.

    Returns:
        None where there is no word.
    """
    if not words:
        return None
    before = len(tokenizer.encode("a"))
    encoded = tokenizer.encode_batch([f"a{'' if is_unspaced(word) else ' '}{word}"
                                      for word in words])
    whole = sum(number for number, ids in zip(words.values(), encoded) if len(ids) - before == 1)
    return whole / sum(words.values())


def join_domains(parts: Sequence[tuple[Domain, Mapping[str, Any]]]) -> dict[str, Any]:
    """The measures of `measure_domain` over all domains together."""
    tokens = sum(own["tokens"] for _, own in parts)
    words = sum(domain.words.total() for domain, _ in parts)
    whole = sum((own["whole_words_frac"] or 0.0) * domain.words.total() for domain, own in parts)
    restored = sum(own["round_trip_frac"] * len(domain.texts) for domain, own in parts)
    return {"tokens": tokens,
            "bytes_per_token": sum(domain.num_bytes for domain, _ in parts) / tokens,
            "characters_per_token": sum(domain.num_characters for domain, _ in parts) / tokens,
            "tokens_per_word": tokens / max(sum(domain.num_words for domain, _ in parts), 1),
            "whole_words_frac": whole / words if words else None,
            "unknown_tokens": sum(own["unknown_tokens"] for _, own in parts),
            "round_trip_frac": restored / sum(len(domain.texts) for domain, _ in parts)}


def measure_evenness(counts_V: np.ndarray, num_ordinary: int) -> dict[str, float | None]:
    """Entropies of the distribution of tokens over that of an even use of the vocabulary.

    The efficiency of arXiv 2306.16842, section 4: H_alpha(p) / log V with H_alpha(p) =
    log(sum p^alpha) / (1 - alpha), and Shannon's entropy for alpha = 1.

    Args:
        counts_V: how often each id is used.
        num_ordinary: ids that are no special tokens.

    Returns:
        `shannon_efficiency`, `renyi_efficiency`, and `entropy_bits` of a token; the efficiencies
        are None for a vocabulary of one token.
    """
    p = counts_V[counts_V > 0] / counts_V.sum()
    shannon = -float((p * np.log(p)).sum())
    renyi = math.log(float((p ** ALPHA).sum())) / (1 - ALPHA)
    even = math.log(num_ordinary) if num_ordinary > 1 else math.nan
    return {"entropy_bits": shannon / math.log(2), "shannon_efficiency": shannon / even,
            "renyi_efficiency": renyi / even}


def measure_languages(tokenizer: Tokenizer, texts: Mapping[str, str]) -> dict[str, Any]:
    """Tokens of translations of one text (arXiv 2305.15425).

    Returns:
        `languages`: for each its `tokens`, `tokens_per_word`, `tokens_per_character` and `premium`,
        the tokens over those of the English text; and over all languages but English
        `median_premium`, `mean_premium`, `worst` and `worst_premium`.
    """
    english = english_name(texts)
    tokens = dict(zip(texts, map(len, tokenizer.encode_batch(list(texts.values())))))
    languages = {name: {"tokens": tokens[name],
                        "tokens_per_word": tokens[name] / max(count_words(text), 1),
                        "tokens_per_character": tokens[name] / len(text),
                        "premium": tokens[name] / tokens[english]}
                 for name, text in texts.items()}
    premiums = {name: own["premium"] for name, own in languages.items() if name != english}
    result: dict[str, Any] = {"english": english, "languages": languages}
    if premiums:
        worst = max(premiums, key=premiums.__getitem__)
        result |= {"median_premium": statistics.median(premiums.values()),
                   "mean_premium": statistics.fmean(premiums.values()),
                   "worst": worst, "worst_premium": premiums[worst]}
    return result


def measure_cost(width: int, vocab_size: int, bytes_per_token: float) -> dict[str, float]:
    """What the vocabulary costs in a model.

    Args:
        width: of the residual stream, D.

    Returns:
        `embedding_params` of the input, as many again for a head that is not tied to it, and
        `head_flops_per_byte` of the forward pass: 2 V D FLOPs a token.
    """
    return {"embedding_params": vocab_size * width,
            "head_flops_per_byte": 2 * vocab_size * width / bytes_per_token,
            "tokens_per_byte": 1 / bytes_per_token}
