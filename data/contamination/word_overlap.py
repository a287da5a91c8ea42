"""Search for paraphrased texts by the rare words that they share with a document.

A paraphrase keeps names, numbers and nouns, but hardly any five successive words. Texts are
therefore compared as sets of words weighted by inverse document frequency, and only words that
occur close together in the document count.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

PIECE_WORDS = 128       # longer texts are split into pieces of this length
BLOCK_WORDS = 768       # of a document searched at once; successive blocks overlap by a third
REACH = 1.5             # maximum length of a match, in lengths of the text
MAX_TEXT_FRAC = 0.01    # a word in more of the texts than this is ignored ...
MAX_TEXTS = 100         # ... and in more than this many
MIN_RARE_WORDS = 10     # a text with fewer is not matched


class WordOverlap:
    """Indexes from words to the pieces of texts that contain them, and back.

    Args:
        words: [num_words] uint64, hashes of the words of all texts.
        offsets: [num_texts + 1] int64, start of each text.
        min_overlap: share of the weight of a text's rare words that must occur close together in
            a document.
        counts: whether each word is evidence; a piece has those that are so anywhere in it.
    """

    def __init__(self, words: np.ndarray, offsets: np.ndarray, min_overlap: float,
                 counts: np.ndarray):
        self._min_overlap = min_overlap
        sizes = np.diff(offsets)
        num_pieces = -(-sizes // PIECE_WORDS)
        text_of = np.repeat(np.arange(len(sizes)), sizes)
        place = np.arange(len(words)) - offsets[text_of]
        piece_of = (np.cumsum(num_pieces) - num_pieces)[text_of] + place // PIECE_WORDS
        self._text_of_piece = np.repeat(np.arange(len(sizes)), num_pieces)
        self._size = np.bincount(piece_of, minlength=len(self._text_of_piece))
        total = len(self._size)
        vocabulary, word_of = np.unique(words, return_inverse=True)
        pairs, place = np.unique(piece_of * len(vocabulary) + word_of, return_inverse=True)
        pieces, word_of = np.divmod(pairs, max(len(vocabulary), 1))
        is_evidence = np.bincount(place, counts, len(pairs)) > 0
        frequency = np.bincount(word_of, minlength=len(vocabulary))
        is_rare = frequency <= max(MAX_TEXT_FRAC * total, MAX_TEXTS)
        matters = is_rare[word_of] & is_evidence
        pieces, word_of = pieces[matters], (np.cumsum(is_rare) - 1)[word_of[matters]]
        self._words = vocabulary[is_rare]
        self._weight = np.log((total + 1) / (frequency[is_rare] + 0.5))
        self._needed = min_overlap * np.bincount(pieces, self._weight[word_of], total)
        self._needed[np.bincount(pieces, minlength=total) < MIN_RARE_WORDS] = np.inf
        # Pairs sorted by piece map pieces to words; sorted by word, words to pieces.
        self._words_of_piece = word_of
        self._piece_starts = np.searchsorted(pieces, np.arange(total + 1))
        order = np.argsort(word_of, kind="stable")
        self._pieces_of_word = pieces[order]
        self._word_starts = np.searchsorted(word_of[order], np.arange(len(self._words) + 1))

    def find(self, words: np.ndarray) -> Iterator[tuple[int, int, int, float]]:
        """Yields (text, first word, end of the last word, overlap) of each matching text.

        Args:
            words: hashes of the document's words.
        """
        if not len(self._words):
            return
        ids = np.minimum(np.searchsorted(self._words, words), len(self._words) - 1)
        places = np.flatnonzero(self._words[ids] == words)
        ids = ids[places]
        for start in range(0, len(words), BLOCK_WORDS * 2 // 3):
            first, last = np.searchsorted(places, [start, start + BLOCK_WORDS])
            for piece in self._candidates(np.unique(ids[first:last])):
                yield from self._best_window(piece, places[first:last], ids[first:last])

    def _candidates(self, ids: np.ndarray) -> list[int]:
        """Pieces that share enough weight with a set of words, in any position."""
        counts = self._word_starts[ids + 1] - self._word_starts[ids]
        ends = np.cumsum(counts)
        entries = np.arange(counts.sum()) + np.repeat(self._word_starts[ids] - ends + counts,
                                                      counts)
        held = np.bincount(self._pieces_of_word[entries], np.repeat(self._weight[ids], counts),
                           len(self._size))
        return np.flatnonzero(held >= self._needed).tolist()

    def _best_window(self, piece: int, places: np.ndarray,
                ids: np.ndarray) -> Iterator[tuple[int, int, int, float]]:
        """The window with the largest weight of a piece's words, if that is sufficient."""
        start, stop = self._piece_starts[piece:piece + 2]
        mine = np.isin(ids, self._words_of_piece[start:stop])
        places, ids = places[mine], ids[mine]
        stops = np.searchsorted(places, places + int(REACH * self._size[piece]))
        held = [self._weight[np.unique(ids[first:last])].sum()
                for first, last in enumerate(stops.tolist())]
        best = int(np.argmax(held))
        if held[best] >= self._needed[piece]:
            overlap = float(held[best] * self._min_overlap / self._needed[piece])
            yield (int(self._text_of_piece[piece]), int(places[best]),
                   int(places[stops[best] - 1]) + 1, overlap)
