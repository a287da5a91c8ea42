"""Windows of a document: each token is scored once, and rules of the field cut alike."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import UserError
from eval.measures.windows import RULES, Window, WindowRule


@st.composite
def rules(draw) -> WindowRule:
    name = draw(st.sampled_from(RULES))
    size = draw(st.integers(2, 12))
    return WindowRule(size, name, draw(st.integers(1, size - 1)) if name == "strided" else 0)


@given(rules(), st.integers(0, 60))
def test_every_token_but_the_first_is_scored_exactly_once_and_in_order(rule, num_tokens):
    windows = list(rule.cut(num_tokens))
    scored = [target for window in windows for target in range(window.first, window.stop)]
    assert scored == list(range(1, num_tokens))
    for window in windows:
        assert 0 <= window.start < window.first < window.stop <= num_tokens
        assert 1 <= window.num_inputs <= rule.window_tokens


@given(st.integers(2, 12), st.integers(2, 60))
def test_the_context_is_that_of_the_rule(size, num_tokens):
    for name, stride in (("disjoint", 0), ("half", 0), ("strided", 1 + size // 3)):
        if name == "strided" and stride >= size:
            continue
        *_, last = windows = list(WindowRule(size, name, stride).cut(num_tokens))
        for number, window in enumerate(windows[1:], start=1):
            context = window.first - window.start
            if name == "half":
                assert context >= size - size // 2
            elif name == "strided":
                assert (window.start, context) == (number * stride, size - stride)
            elif window is last:
                assert window.num_inputs == size, "the last is moved back to be full"
            else:
                assert context == 1


def test_windows_by_hand():
    """Seven tokens, the first of which is context alone."""
    assert list(WindowRule(3).cut(8)) == [(0, 1, 4), (3, 4, 7), (4, 7, 8)]
    assert list(WindowRule(4, "half").cut(8)) == [(0, 1, 5), (2, 5, 7), (4, 7, 8)]
    assert list(WindowRule(4, "strided", 1).cut(7)) == [
        (0, 1, 4), (1, 4, 5), (2, 5, 6), (3, 6, 7)]
    assert list(WindowRule(3).cut(1)) == list(WindowRule(3).cut(0)) == []
    assert (Window(4, 7, 8).num_inputs, Window(4, 7, 8).num_scored) == (3, 1)


@pytest.mark.parametrize("arguments, message", [
    ((8, "sliding"), "rule='sliding': is none of disjoint, strided, half"),
    ((0,), "window_tokens=0: is too small"),
    ((1, "strided", 1), "window_tokens=1: is too small"),
    ((8, "strided", 8), "stride=8: is not from 1 to 7"),
    ((8, "strided"), "stride=0: is not from 1 to 7"),
    ((8, "half", 4), "stride=4: is not part of the rule half")])
def test_impossible_rules_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        WindowRule(*arguments)
