"""What pretraining takes from its config and a token folder, before anything is computed."""

from types import SimpleNamespace

import pytest

from configs.common import make_pretrain
from core.artifacts import write_json
from core.errors import UserError
from data.domains import by_domain
from data.tokenizers import bpe
from data.tokenizers.recipe import Recipe
from train.pretrain import make_evaluate, plan_phases
from train.start import Start

SIZES = {"Science & Tech.": 4000, "Arts/Music": 4000, "100%2E": 4000, "best": 2000}


@pytest.fixture
def tokens(tmp_path):
    """A token folder without held-out pages; only its description is read."""
    write_json(tmp_path / "tokens.json", {
        "domains": {name: {"tokens": size} for name, size in SIZES.items()}})
    return tmp_path


def _section(**changes):
    return make_pretrain(num_steps=10, batch_size=10, row_length=10, **changes)


def test_keys_of_a_config_name_any_domain(tokens):
    section = _section(mixture={"Science & Tech%2E": 2.0, "Arts/Music": 1.0, "100%252E": 1.0},
                       upweight={"Science & Tech%2E": 2.0}, anneal_frac=0.1,
                       anneal_mixture={"best": 1.0})
    mixed, annealed = plan_phases(section, tokens, Start(config=None))
    assert mixed.weights == pytest.approx(
        {"Science & Tech.": 2 / 3, "Arts/Music": 1 / 6, "100%2E": 1 / 6}, abs=0.01)
    assert annealed.weights["best"] == 1.0
    assert by_domain({"a%2Eb%2E": 1, "50%25": 2}) == {"a.b.": 1, "50%": 2}


def test_a_share_of_zero_may_name_a_domain_that_is_not_there(tokens):
    start = Start(config=None)
    [phase] = plan_phases(_section(mixture={"Arts/Music": 1.0, "code": 0.0}), tokens, start)
    assert phase.weights["Arts/Music"] == 1.0


@pytest.mark.parametrize("changes, line", [
    (dict(mixture={"Arts/Music": 1.0, "code": 0.1}),
     r"pretrain\.mixture\.code=0\.1: the tokens hold only 100%2E, .*--config\.pretrain\.mixture"),
    (dict(anneal_frac=0.1, anneal_mixture={"code": 1.0}),
     r"pretrain\.anneal_mixture\.code=1\.0: .*set --config\.pretrain\.anneal_mixture\.code=0"),
    (dict(anneal_frac=0.1, anneal_mixture={"code": 0.0, "best": 0.0}),
     r"pretrain\.anneal_mixture: gives no domain a share: .*--config\.pretrain\.anneal_frac=0$")])
def test_a_share_of_what_the_tokens_lack_is_refused_by_its_field(tokens, changes, line):
    with pytest.raises(UserError, match=line):
        plan_phases(_section(**changes), tokens, Start(config=None))


def test_shares_of_an_annealing_that_never_comes_do_not_matter(tokens):
    plan_phases(_section(anneal_mixture={"code": 1.0}), tokens, Start(config=None))


def test_without_held_out_pages_nothing_is_measured_on_them(tokens, capfd):
    bpe.train(["a b c d e f g"], Recipe(261)).save(tokens / "tokenizer")
    evaluate = make_evaluate(_section(), SimpleNamespace(config=None, execution=None),
                             {"tokens": tokens})
    assert evaluate(None) == {} and evaluate(None) == {}
    assert capfd.readouterr().err.count("no heldout_bpb") == 1
