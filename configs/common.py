"""What all configs share: a strict parser of the part behind the colon."""

from __future__ import annotations


def parse_variant(arg: str | None, variants: tuple[str, ...]) -> str:
    """Returns the variant named by `--config=file.py:variant`; the first one when none is named.

    Raises:
        ValueError: the name is none of `variants`.
    """
    variant = arg or variants[0]
    if variant not in variants:
        raise ValueError(f"config variant {variant!r}: is none of {', '.join(variants)}: "
                         f"write --config=configs/NAME.py:{variants[0]}")
    return variant
