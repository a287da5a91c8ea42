"""The page kit: escaping, ticks, labels and thresholds."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.page.charts import Line, Panel, draw_panel, nice_ticks, smooth, spread
from core.page.histograms import BinScale, Histogram, draw_histogram
from core.page.layout import render_page
from core.page.markup import escape, join, size, tag


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-0.37, 2.1), (3.001, 3.002), (0, 20_000)])
def test_ticks_are_round_within_and_not_too_many(low, high):
    ticks = nice_ticks(low, high, 5)
    gap = ticks[1] - ticks[0]
    assert 2 <= len(ticks) <= 6 and low - 1e-9 <= ticks[0] and ticks[-1] <= high + 1e-9
    assert round(gap / 10 ** math.floor(math.log10(gap) + 1e-9)) in (1, 2, 5)


def test_ticks_step_by_one_two_or_five():
    assert nice_ticks(0, 20_000, 5) == [0, 5_000, 10_000, 15_000, 20_000]


def test_labels_of_curves_do_not_overlap():
    assert spread([50, 52, 200], 26, 0, 220) == [50, 76, 200]
    assert spread([200, 210, 215], 26, 0, 220) == [168, 194, 220]


def test_running_mean_keeps_constants_and_ends_near_the_end():
    assert smooth([(x, 3.0) for x in range(9)], 2) == [(x, 3.0) for x in range(9)]
    assert smooth([(0, 0.0), (1, 3.0), (2, 9.0)], 1) == [(0, 1.5), (1, 4.0), (2, 6.0)]


def test_curve_ends_at_its_printed_value_and_equal_values_do_not_collapse_the_axis():
    panel = draw_panel(Panel("t", "u", [Line("a", [(1, 2.0), (2, 2.0)], "base")]))
    assert ">2.00<" in panel and panel.count("<circle") == 2 and "nan" not in panel


def test_a_long_exact_curve_has_no_running_mean_and_a_legend_replaces_names():
    points = [(step, float(step % 2)) for step in range(100)]
    smoothed, exact = (Line("a", points, "base", is_exact) for is_exact in (False, True))
    assert smoothed.last_value != 1.0 and exact.last_value == 1.0
    assert "raw" in draw_panel(Panel("t", "u", [smoothed]))
    assert "raw" not in draw_panel(Panel("t", "u", [exact]))
    assert 'class="name base"' in draw_panel(Panel("t", "u", [exact]))
    assert 'class="name base"' not in draw_panel(Panel("t", "u", [exact], labels=False))


def test_markup_escapes_all_but_markup():
    assert tag("p", "a<b", tag("b", "&"), None, class_='"x"') == (
        '<p class="&quot;x&quot;">a&lt;b<b>&amp;</b></p>')
    assert escape("a\x1b\ud800\u202e\n") == "a␛?⟨U+202E⟩\n"
    assert join(["x", ("y", 3)]) == "xy3"
    assert [size(n) for n in (9, 51_000_000, 999_960, 2.1e9)] == ["9 B", "51.0 MB", "1.00 MB",
                                                                "2.10 GB"]


COUNTS = Histogram("words", [0, 1, 10, 100, 1000], [1, 2, 3, 4], low=10, high=500)


def test_share_beyond_counts_whole_bins_and_marks_lower_bounds():
    assert COUNTS.beyond_frac() == (0.3, False)             # 500 lies inside the last bin
    assert Histogram("x", [0, 1, 2], [3, 1], low=1).beyond_frac() == (0.75, True)
    assert Histogram("x", [0, 1, 2], [3, 0], high=1.5).beyond_frac() == (0.0, True)
    # An upper bound is inclusive, so the bin that begins at it is not entirely beyond.
    assert Histogram("x", [0, 1, 2], [3, 1], high=1).beyond_frac() == (0.0, False)
    assert Histogram("x", [0, 1], [0]).beyond_frac() == (0.0, True)


@given(st.lists(st.floats(0, 1e6), min_size=2, max_size=20))
def test_bins_are_equally_wide_and_positions_are_monotonic(values):
    for edges in (COUNTS.edges, [0.0, 0.25, 0.5, 0.75, 1.0]):
        scale = BinScale(edges)
        widths = [scale(b) - scale(a) for a, b in itertools.pairwise(edges)]
        assert max(widths) - min(widths) < 0.05
        places = [scale(value) for value in sorted(values)]
        assert places == sorted(places) and scale(edges[0]) <= places[0]
        assert places[-1] <= scale(edges[-1])
        ticks = scale.ticks()
        assert len(ticks) >= 2 and edges[0] <= ticks[0] and ticks[-1] <= edges[-1] + 1e-9


def test_histogram_draws_thresholds_and_marks_what_is_beyond():
    drawn = draw_histogram(COUNTS)
    assert drawn.count('class="threshold"') == 2 and drawn.count('class="bin beyond"') == 2
    assert drawn.count('class="bin"') == 2 and "from 10 to 500 · ≥ 30.0 % beyond" in drawn
    cropped = draw_histogram(Histogram("x", [0, 1, 2, 3, 4], [0, 5, 0, 0], low=1))
    assert cropped.count("<rect") == 1 and "no threshold" not in cropped
    assert "no threshold" in draw_histogram(Histogram("x", [0, 1], [0]))


def test_a_page_runs_the_script_it_was_given_and_no_other():
    assert "script" not in render_page("t", tag("p", "text"))
    page = render_page("t", tag("p", "text"), script='const x = "</script><b>";')
    assert page.count("</script>") == 1 and '"<\\/script><b>"' in page
    assert page.count("sha256-") == 1 and page.index("text</p>") < page.index("<script>")
