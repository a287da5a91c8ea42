"""Pairs and rankings of sampled answers."""

from align.pairs import describe_pairs, make_pairs, make_rankings
from data.chat import ask
from data.preferences import Preference
from data.tokenizers.bpe import BytePairTokenizer

TOKENIZER = BytePairTokenizer({bytes([b]): i for i, b in enumerate(range(32, 125))})


def scored(question, *answers):
    return [{"task": "t", "family": "f", "question": question,
             "messages": [{"role": "user", "content": question}], "completion": completion,
             "score": score, "finish": "".join(finish) or "stop"}
            for completion, score, *finish in answers]


def test_a_cut_answer_is_preferred_only_where_none_is_whole():
    rows = (scored("q1", ("whole", 0.5), ("cut", 0.9, "length"), ("bad", 0.1, "length"))
            + scored("q2", ("cut", 0.9, "length"), ("none", 0.0, "refused"), ("a", 0.1, "length"))
            + scored("q3", ("whole", 0.5), ("none", 0.0, "refused"), ("other", 0.2))
            + scored("q4", *[("none", 0.0, "refused")] * 3))
    pairs, left_out = make_pairs(rows, num_samples=3, min_margin=0.1)
    assert [(pair.responses, pair.finishes) for pair in pairs] == [
        (("whole", "bad"), ("stop", "length")), (("cut", "a"), ("length", "length")),
        (("whole", "other"), ("stop", "stop"))]
    assert left_out == {"equal": 1, "too_close": 0}
    described = describe_pairs(pairs, TOKENIZER)
    assert (described["cut_chosen"], described["cut_rejected"]) == (1, 2)


def test_pairs_are_best_against_worst_and_close_ones_are_left_out():
    rows = scored("q1", ("mid", 0.5), ("bad", 0.1), ("good", 0.9)) + scored(
        "q2", ("x", 0.4), ("y", 0.4), ("z", 0.45)) + scored("q3", ("a", 0), ("a", 0), ("b", 0))
    pairs, left_out = make_pairs(rows, num_samples=3, min_margin=0.1)
    assert pairs == [Preference(
        ask("q1"), ("good", "bad"), (1, 2), "t", {"family": "f"}, ("stop", "stop"), (0.9, 0.1))]
    assert left_out == {"equal": 1, "too_close": 1}
    pairs, left_out = make_pairs(rows, num_samples=3, min_margin=0.0)
    assert len(pairs) == 2, "a tie has no order"
    assert left_out == {"equal": 1, "too_close": 0}


def test_pairs_are_described_by_scores_lengths_and_empty_answers():
    pairs, _ = make_pairs(scored("a", ("good one", 1.0), ("bad", 0.0))
                          + scored("b", ("ok", 0.5), (" ", 0.25)), num_samples=2, min_margin=0)
    assert describe_pairs(pairs, TOKENIZER) == {
        "chosen_score": 0.75, "rejected_score": 0.125, "chosen_tokens_mean": 5.0,
        "rejected_tokens_mean": 2.0, "empty_chosen": 0, "empty_rejected": 1,
        "cut_chosen": 0, "cut_rejected": 0,
        "longer_chosen_frac": 1.0}


def test_a_ranking_holds_all_answers_in_the_order_of_their_scores():
    rows = (scored("q1", ("mid", 0.5), ("bad", 0.1, "length"), ("good", 0.9), ("same", 0.5))
            + scored("q2", ("x", 0.4), ("y", 0.4), ("none", 0.0, "refused"), ("z", 0.4)))
    assert make_rankings(rows, num_samples=4) == [Preference(
        ask("q1"), ("mid", "bad", "good", "same"), (2, 3, 1, 2), "t", {"family": "f"},
        ("stop", "length", "stop", "stop"), (0.5, 0.1, 0.9, 0.5))]
