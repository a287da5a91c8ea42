"""Prompts of different lengths, whose greedy continuations `scripts.bench.generate` compares."""

from __future__ import annotations

QUESTIONS = (
    "What is the capital of France?", "Name three fruits.", "Why is the sky blue?",
    "Write a short poem about rain.", "How do I boil an egg?", "What is 17 + 25?",
    "Explain photosynthesis in one sentence.", "Who wrote Hamlet?",
    "List the planets of the solar system.", "What does a compiler do?",
    "Write a Python function that reverses a list.", "How far away is the moon?",
    "What is the difference between weather and climate?", "Translate 'good morning' to Spanish.",
    "Give me a name for a small bakery.", "Why do leaves change colour in autumn?",
    "How many days does a leap year have?", "What is the boiling point of water?",
    "Describe a lighthouse to a child.", "Summarise the text.")

PASSAGE = """The first lighthouses were fires on hills. Later they were lit on platforms, so that
ships could see them from farther away, and in the end towers were built for them. Wood and coal
gave way to oil, oil to gas, and gas to electric lamps. A lamp alone is weak: in the nineteenth
century a lens made of many rings of glass was invented, which bends the light of a lamp into one
narrow beam, and which weighs far less than a lens of one piece. Each tower has its own pattern of
flashes, printed on charts, by which sailors know where they are. Keepers lived in the towers with
their families; they carried oil up the stairs, cleaned the glass, wound the clockwork that turned
the lens, and wrote down the weather. Today nearly all lamps are switched on and off by a sensor,
and ships find their way by satellite, but the towers are kept: satellites can fail, and a light on
the coast needs no other machine on board than a pair of eyes."""


def make_texts(number: int) -> list[str]:
    """Questions, each after a longer part of a passage than the one before it; the first alone."""
    words = PASSAGE.split()
    step = len(words) // max(number - 1, 1)
    return [" ".join([*words[:step * index], QUESTIONS[index % len(QUESTIONS)]])
            for index in range(number)]
