"""Pretraining text in the updates of reinforcement learning, and online DPO as a stage with it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rl_stage import (
    LETTERS,
    TOKENIZER,
    iterations_of,
    make_config,
    on_one_device,
    plant_reward,
    run_stage,
    write_parents,
    write_tokens,
)

from align.losses.policy import PolicyBatch
from align.rl import loop as loops
from align.rl.algorithms import num_examples, read_algorithm
from align.rl.pretraining import Pretraining, open_pretraining, with_pretraining
from align.rl.update import UpdateBatch
from core.artifacts import read_json
from core.errors import UserError
from data.tokenizers.bpe import BytePairTokenizer
from train import setup as setups
from train.loss import next_token_loss
from train.step import accumulate
from train.watch.compilation import Compilations


@pytest.fixture(scope="module")
def parents(tmp_path_factory, params, config):
    """The tiny model as a chat model, a file of questions, and tokens."""
    root = tmp_path_factory.mktemp("parents")
    write_parents(root, params, config)
    write_tokens(root / "tokens")
    return root


def ptx_config(parents, variant="grpo", **changes):
    changes = dict(num_iterations=4, num_samples=8, ptx_coef=0.5, kl_coef=0.1) | changes
    return make_config(parents, variant, **changes)


def open_text(parents, section, tokenizer=TOKENIZER):
    algorithm, settings, _ = read_algorithm(section)
    return open_pretraining(section, parents / "tokens", tokenizer, algorithm, settings)


def make_update(section, mask_BL):
    """Answers of an update, of which only the mask matters."""
    return UpdateBatch(None, PolicyBatch(mask_BL, mask_BL, mask_BL))


def test_the_rows_follow_from_the_step_and_the_shares(parents):
    section = ptx_config(parents).rl
    mask_BL = np.ones((32, section.row_length), np.float32)
    batches = [open_text(parents, section).add(make_update(section, mask_BL), step).text
               for step in (0, 3, 7, 3)]
    assert batches[0].tokens_BL.shape == (32, section.row_length)
    np.testing.assert_array_equal(batches[1].tokens_BL, batches[3].tokens_BL)
    assert not np.array_equal(batches[0].tokens_BL, batches[1].tokens_BL)
    for shares, expected in ((dict(), 16), (dict(code=1.0), 32), (dict(code=1.0, pages=3.0), 8)):
        with section.unlocked():
            section.mixture = shares
        text = open_text(parents, section).add(make_update(section, mask_BL), 5).text
        is_code_B = np.any(text.tokens_BL == TOKENIZER.encode("z")[0], axis=1)
        assert abs(is_code_B.sum() - expected) <= 1, shares


@pytest.mark.parametrize("variant", ["grpo", "dapo", "dr_grpo"])
def test_the_term_is_the_mean_loss_of_the_text_however_the_batch_is_cut(
        parents, params, config, execution, variant):
    """Answers differ in length, and the rows of text in their targets."""
    section = ptx_config(parents, variant, ptx_coef=2.5, kl_coef=0.0, num_prompts=2,
                         num_samples=4, num_minibatches=2).rl
    mask_BL = (np.arange(section.row_length) < np.array([1, 3, 9, 16])[:, None]).astype(np.float32)
    update = make_update(section, mask_BL)
    text = open_text(parents, section).add(update, 1).text
    text.loss_weights_BL[0, 3:] = 0
    batch = Pretraining([text], read_algorithm(section)[1]).add(update, 0)
    by_token = variant == "dapo"

    def learned_loss(tree, batch, *, key, frozen=None, **model):
        num = jnp.sum(batch.known.mask_BL) if by_token else jnp.float32(len(batch.known.mask_BL))
        return jnp.zeros(()), {"loss": (jnp.zeros(()), num)}

    bound = dict(config=config, execution=execution, key=None)
    loss_fn = with_pretraining(learned_loss, section.ptx_coef, None)

    def value(tree, batch):
        loss_sum, metrics = loss_fn(tree, batch, **bound)
        return loss_sum, metrics

    loss_sum, metrics = jax.jit(lambda tree, batch: accumulate(value, tree, batch, 2))(
        {"model": params}, batch)
    text_sum, found = next_token_loss(params, batch.text, **bound)
    mean = float(text_sum / found["loss"][1])
    assert loss_sum / metrics["loss"][1] == pytest.approx(2.5 * mean, rel=1e-5)
    assert metrics["ptx_loss"][0] / metrics["ptx_loss"][1] == pytest.approx(mean, rel=1e-5)


def test_without_a_coefficient_no_text_is_opened(parents):
    section = ptx_config(parents, ptx_coef=0.0).rl
    algorithm, settings, _ = read_algorithm(section)
    assert open_pretraining(section, None, TOKENIZER, algorithm, settings) is None


def test_tokens_of_another_tokenizer_are_refused(parents):
    section = ptx_config(parents).rl
    other = BytePairTokenizer({bytes([b]): i for i, b in enumerate(range(33, 126))})
    with pytest.raises(UserError, match=r"^grpo.tokens='.*tokens': was made by tokenizer"):
        open_text(parents, section, other)


# Online DPO with pretraining text, as a stage -----------------------------------------------------

def online_config(parents, planted):
    return ptx_config(parents, "online_dpo", num_epochs=2, rewards=planted)


@pytest.fixture(scope="module")
def planted():
    with pytest.MonkeyPatch.context() as patch:
        yield plant_reward(patch)


@pytest.fixture(scope="module")
def trained(parents, planted, tmp_path_factory):
    """A run: its folder, the rows of its metrics, and the number of programs compiled until the
    end of each iteration."""
    folder, counts = tmp_path_factory.mktemp("run") / "online_dpo", []
    with pytest.MonkeyPatch.context() as patch, Compilations() as compilations:
        patch.setattr(setups, "make_mesh", on_one_device)
        report = loops.OnPolicyLoop._report

        def count(self, *arguments):
            counts.append(compilations.summary()["num_programs_compiled"])
            report(self, *arguments)

        patch.setattr(loops.OnPolicyLoop, "_report", count)
        _, rows = run_stage(folder, online_config(parents, planted), parents,
                            tokens=parents / "tokens")
    return folder, rows, counts


def test_it_learns_a_planted_reward_and_the_text(trained):
    rewards = [row["reward"] for row in iterations_of(trained[1])]
    assert rewards[-1] > rewards[0] + 0.05
    steps = [row for row in trained[1] if "loss" in row]
    assert len(steps) == 16
    assert steps[0]["loss"] == pytest.approx(np.log(2), abs=1e-5)
    assert steps[0]["ptx_loss"] > np.log(len(LETTERS)) and (
        steps[-1]["ptx_loss"] < steps[0]["ptx_loss"] - 0.5)
    assert iterations_of(trained[1])[0]["groups/usable"] == 8


def test_nothing_is_compiled_after_the_second_iteration(trained):
    counts = trained[2]
    assert len(counts) == 4 and counts[0] > 0 and counts[1:] == counts[1:2] * 3, counts


def test_a_killed_run_ends_bit_for_bit_the_same(trained, parents, planted, tmp_path, monkeypatch):
    """Killed after the first of the four updates of the second iteration."""
    monkeypatch.setattr(setups, "make_mesh", on_one_device)
    update, faults = loops.OnPolicyLoop._update, [(1, 0)]

    def faulty(self, state, experience, iteration, number):
        state = update(self, state, experience, iteration, number)
        if (iteration, number) in faults:
            faults.clear()
            raise ZeroDivisionError
        return state

    monkeypatch.setattr(loops.OnPolicyLoop, "_update", faulty)
    config, folder = online_config(parents, planted), tmp_path / "online_dpo"
    for _ in range(2):
        try:
            run_stage(folder, config, parents, tokens=parents / "tokens")
        except ZeroDivisionError:
            continue
    assert not faults
    assert (folder / "metrics.jsonl").read_bytes() == (trained[0] / "metrics.jsonl").read_bytes()
    first, second = (read_json(place / "model.json")["arrays"] for place in (trained[0], folder))
    assert first == second, "digests of all arrays"


def test_an_update_has_as_many_pairs_as_prompts(parents, planted):
    section = online_config(parents, planted).rl
    assert num_examples(section, read_algorithm(section)[0]) == section.num_prompts
