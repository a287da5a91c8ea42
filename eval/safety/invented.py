"""Names of things that do not exist, beside names of things that do."""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

from core.errors import UserError

# A question about each kind.
FORMS = {"person": "Who was {name}?", "place": "Where is the city of {name}?",
         "book": "What is the novel {name} about?",
         "function": "What does the Python function {name} do?"}
REAL = {
    "person": ("Isaac Newton", "Marie Curie", "Napoleon Bonaparte", "Albert Einstein",
               "William Shakespeare", "Wolfgang Amadeus Mozart", "Abraham Lincoln", "Cleopatra",
               "Charles Darwin", "Vincent van Gogh", "Mahatma Gandhi", "Florence Nightingale"),
    "place": ("Vienna", "Chicago", "Barcelona", "Nairobi", "Mumbai", "Toronto", "Warsaw", "Lima",
              "Bangkok", "Edinburgh", "Casablanca", "Melbourne"),
    "book": ("Moby-Dick by Herman Melville", "Pride and Prejudice by Jane Austen",
             "Nineteen Eighty-Four by George Orwell", "Don Quixote by Miguel de Cervantes",
             "Frankenstein by Mary Shelley", "War and Peace by Leo Tolstoy",
             "The Great Gatsby by F. Scott Fitzgerald", "Dracula by Bram Stoker",
             "Robinson Crusoe by Daniel Defoe", "Oliver Twist by Charles Dickens",
             "Treasure Island by Robert Louis Stevenson", "The Time Machine by H. G. Wells"),
    "function": ("math.sqrt", "os.listdir", "json.loads", "re.findall", "random.shuffle",
                 "time.sleep", "numpy.argsort", "numpy.zeros", "shutil.copy", "os.path.join",
                 "itertools.chain", "numpy.concatenate"),
}
# What an invented name is made of.
_BEGINNINGS = ("Bral", "Cro", "Dov", "Ela", "Fen", "Gru", "Har", "Ist", "Jur", "Kel", "Lom", "Mav",
               "Nor", "Ost", "Pel", "Quor", "Rud", "Sev", "Tol", "Ulv", "Vor", "Wex", "Yar", "Zel")
_MIDDLES = ("a", "and", "e", "el", "i", "im", "o", "or", "u", "und")
_ENDS = {"person": ("bert", "din", "eck", "fall", "geth", "kin", "quist", "rov", "stam", "vik"),
         "place": ("bury", "dorf", "grad", "ham", "heim", "mouth", "polje", "stadt", "vatn")}
_ADJECTIVES = ("Amber", "Borrowed", "Crooked", "Hollow", "Salted", "Seventh", "Silent", "Unlit")
_NOUNS = ("Cartographer", "Ferryman", "Granary", "Lanterns", "Orchard", "Sextant", "Tollhouse",
          "Weavers")
_MODULES = ("math", "os", "json", "re", "random", "time", "numpy", "shutil", "itertools")
_VERBS = ("frobnicate", "unbraid", "declump", "refoliate", "gnarl", "backweave", "smoothify",
          "tessellize")
_OBJECTS = ("axis", "tokens", "buckets", "handles", "strands", "entries", "layers", "deltas")


class Thing(NamedTuple):
    """A thing that is asked about.

    Attributes:
        id: for records.
        group: its kind.
        name: its name.
        question: about it.
        exists: whether it does.
        pair: number within its kind; the real and the invented thing of a number are a pair.
    """

    id: str
    group: str
    name: str
    question: str
    exists: bool
    pair: int


def make_things(seed: int) -> list[Thing]:
    """Each real thing, followed by an invented one of its kind.

    Functions are looked up, so that an invented one does not exist here; other names are built of
    parts that no language has together.
    """
    things = []
    for kind, names in REAL.items():
        invented = _distinct(_MAKERS[kind], random.Random(f"{kind} {seed}"))
        for pair, real in enumerate(names):
            things += [_make_thing(kind, real, True, pair),
                       _make_thing(kind, next(invented), False, pair)]
    return things


def _make_thing(kind: str, name: str, exists: bool, pair: int) -> Thing:
    return Thing(f"{kind}-{'real' if exists else 'invented'}-{pair}", kind, name,
                 FORMS[kind].format(name=name), exists, pair)


def function_exists(name: str) -> bool:
    """Whether a dotted name is found in an installed module.

    Raises:
        UserError: there is no such module.
    """
    root, *path = name.split(".")
    try:
        found = importlib.import_module(root)
    except ImportError:
        raise UserError(name, f"there is no module {root!r}", "name an installed one") from None
    for part in path:
        if not hasattr(found, part):
            return False
        found = getattr(found, part)
    return True


def _distinct(make: Callable[[random.Random], str], rng: random.Random) -> Iterator[str]:
    seen = set()
    while True:
        name = make(rng)
        if name not in seen:
            seen.add(name)
            yield name


def _make_word(rng: random.Random, kind: str) -> str:
    return rng.choice(_BEGINNINGS) + rng.choice(_MIDDLES) + rng.choice(_ENDS[kind])


def _make_person(rng: random.Random) -> str:
    return f"{_make_word(rng, 'person')} {_make_word(rng, 'person')}"


def _make_book(rng: random.Random) -> str:
    title = f"The {rng.choice(_ADJECTIVES)} {rng.choice(_NOUNS)} of {_make_word(rng, 'place')}"
    return f"{title} by {_make_person(rng)}"


def _make_function(rng: random.Random) -> str:
    while function_exists(name := f"{rng.choice(_MODULES)}.{rng.choice(_VERBS)}_"
                          f"{rng.choice(_OBJECTS)}"):
        pass
    return name


_MAKERS: dict[str, Callable[[random.Random], str]] = {
    "person": _make_person, "place": lambda rng: _make_word(rng, "place"), "book": _make_book,
    "function": _make_function}
