"""Sample texts cut into tokens, to be looked at side by side."""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from data.tokenizers.tokenizer import Tokenizer

SAMPLES: Mapping[str, str] = {
    "Prose": "The committee hadn't expected the lighthouse keeper's unbelievably thorough answer, "
             "but it re-examined every measurement from 1987 onwards.",
    "Code": "def mean_of(values, *, default=0.0):\n    if not values:\n        return default\n"
            "    total = sum(v for v in values)  # O(n)\n    return total / len(values)\n",
    "Markup": '<a href="https://example.org/?q=1&amp;r=2" class="link">x &lt; y</a>\n'
              '{"id": [1, 2]}',
    "Numbers": "7, 42, 365, 2048, 31415, 271828, 1234567; 3.14159, 1,000,000, 0xFF, 6.02e23, "
               "17:45, 2024-02-29, 12345678 + 87654321 = 99999999",
    "Formula": r"$\sum_{i=1}^{n} \alpha_i^2 \leq \left(\frac{1}{2}\right)^{n}$ and ∇·E = ρ/ε₀",
    "Typing errors": "Teh goverment definately recieved teh seperate langauge quesiton.",
    "German": "Die Geschwindigkeitsbegrenzung überraschte den Straßenbahnfahrer.",
    "French": "L’été dernier, l’élève s’est aperçu qu’il n’y avait plus d’œufs.",
    "Turkish": "Evlerimizdekilerden hangisi daha güzeldir?",
    "Russian": "Съешь ещё этих мягких французских булок, да выпей чаю.",
    "Arabic": "اللغة العربية جميلة ويتحدث بها ملايين الناس.",
    "Hindi": "सभी मनुष्य स्वतंत्र पैदा होते हैं।",
    "Chinese": "今天的天气很好，我们一起去公园散步吧。",
    "Japanese": "東京でおいしいラーメンを食べました。",
    "Korean": "도서관에서 책을 빌려 읽었습니다.",
    "Thai": "ฉันอยากไปเที่ยวทะเลในวันหยุด",
    "Emoji": "Great 😀👍🏿 👨‍👩‍👧 🇧🇷 ❤️ → ½ ™",
    "Spaces": "a  b   c    d\te\t\tf\n\n\ng \u00a0 h"}


class Piece(NamedTuple):
    """One token.

    Attributes:
        token: its id.
        text: the characters that it completes.
        part: hex digits of its bytes where it completes none, else "".
    """

    token: int
    text: str
    part: str


def view_text(tokenizer: Tokenizer, text: str) -> list[Piece]:
    """The tokens of a text with what they stand for."""
    ids = tokenizer.encode(text)
    return view_tokens(ids, list(tokenizer.stream(ids)))


def view_tokens(ids: Sequence[int], pieces: Sequence[bytes]) -> list[Piece]:
    """Tokens with the characters that they complete.

    Args:
        pieces: the bytes of each.
    """
    decoder, found = codecs.getincrementaldecoder("utf-8")("replace"), []
    for place, (token, piece) in enumerate(zip(ids, pieces)):
        text = decoder.decode(piece, final=place == len(ids) - 1)
        found.append(Piece(int(token), text, "" if text else piece.hex(" ").upper()))
    return found
