"""Which cases of a test run by default."""

import pytest


def some_in_full(names, *always):
    """Each compiles a model of its own: most run with `--full` alone."""
    return [name if name in always else pytest.param(name, marks=pytest.mark.full)
            for name in names]
