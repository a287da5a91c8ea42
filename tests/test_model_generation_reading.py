"""In what pieces prompts are read."""

from model.generation import reading


def test_a_piece_has_the_shape_that_costs_least(monkeypatch):
    monkeypatch.setattr(reading, "PIECES", (4, 8))
    monkeypatch.setattr(reading, "CALL_TOKENS", {"cpu": 8})
    limited, free = reading.list_shapes(16, 32), reading.list_shapes(16, None)
    assert limited == [(1, 4), (1, 8), (8, 4)] and {*free} == {
        (rows, length) for rows in (1, 8, 16) for length in (4, 8)}
    for missing, shapes, expected in (
            ([3] * 8, limited, (8, 4)), ([30], limited, (1, 8)), ([8] * 4, limited, (1, 8)),
            ([5], free, (1, 8)), ([4] * 12, free, (16, 4)), ([40] * 16, free, (16, 8)),
            ([4, 4], free, (1, 4)), ([1] * 7, free, (8, 4))):
        assert reading.choose_shape(missing, shapes) == expected, (missing, shapes)
