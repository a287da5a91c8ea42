"""Random texts, items made of them, and an encoder without meaning."""

import numpy as np

from data.contamination.task_files import Item

ALPHABET = np.array(list("abcdefghijklmnopqrstuvwxyz"))


def text_of(seed, count):
    """Random words of six letters."""
    letters = ALPHABET[np.random.default_rng(seed).integers(0, 26, (count, 6))]
    return " ".join("".join(row) for row in letters)


def items_of(*texts, task="a/b"):
    """An item of each text, or of each tuple of fields."""
    return [Item(task, number, (text,) if isinstance(text, str) else text)
            for number, text in enumerate(texts)]


class Letters:
    """An encoder of the words' first letters; it notes how many texts it is given at once."""

    def __init__(self):
        self.sizes = []

    def embed(self, texts):
        """Embeddings of length 1: [num_texts, 26]."""
        self.sizes.append(len(texts))
        found = np.zeros((len(texts), 26), np.float32)
        for row, text in zip(found, texts):
            for word in text.lower().split():
                row[ord(word[0]) % 26] += 1
        return found / np.linalg.norm(found, axis=1, keepdims=True)
