"""The planner: published runs within their printed digits, and what is refused or noted."""

import dataclasses
import math

import pytest
from absl import flags

from core.errors import UserError
from model.config import ModelConfig
from model.flops import matmul_params, peak_flops, train_flops_per_token
from model.presets import PRESETS
from train.plan.__main__ import make_plan
from train.plan.allocation import HOFFMANN, Law, by_ratio, lifetime_optimum
from train.plan.cost import (
    PF_DAY_FLOPS,
    Rates,
    expect_interruptions,
    fewest_chips,
    flops_of_hours,
    make_bill,
    whole_hosts,
)
from train.plan.report import rows_of
from train.plan.request import Request, define_flags
from train.plan.solve import solve
from train.plan.tables import TABLES, chip_peak_flops

# Arithmetic of papers: no interruptions, no overhead of the data centre.
PAPER = Rates(989.5e12, 400e12 / 989.5e12, 2.0, 700, 1.0, 0.24, 1.0, 50_677, 5, 600)
GPT3 = ModelConfig(V=50_257, D=12_288, N=96, H=96, G=96, K=128, F=49_152, norm="layer",
                   positions="learned", max_positions=2048, qk_norm=False, mlp="gelu", tied=True)
PALM = ModelConfig(V=256_000, D=18_432, N=118, H=48, G=1, K=256, F=73_728, residual="parallel",
                   qk_norm=False, tied=True)


def six(active):
    return 6 * active


def run(rates=PAPER, chips_per_host=8, **given):
    return solve(Request(**given), rates, chips_per_host, six)


def plan(**given):
    """The command's result; a flag that is not given has its default."""
    values = flags.FlagValues()
    define_flags(values)
    for name in ("preset", "model", "config"):
        flags.DEFINE_string(name, None, "", flag_values=values)
    values(["plan", *(f"--{name}={value}" for name, value in given.items())])
    return make_plan(values)


# name, parameters of a token, tokens, FLOPs as printed, source
PUBLISHED = [
    ("GPT-3", 174.6e9, 300e9, "3.14e+23", "arXiv 2005.14165, table D.1"),
    ("Gopher", 280e9, 300e9, "5.04e+23", "arXiv 2203.15556, table 1: 6 N D"),
    ("Chinchilla", 70e9, 1.4e12, "5.88e+23", "arXiv 2203.15556, table 1; 5.8e23 in 2204.02311"),
    ("PaLM 540B", 540e9, 780e9, "2.5272e+24", "arXiv 2204.02311, table 20: 2527.2 zettaFLOP"),
    ("Llama 3 405B", 405e9, 15.6e12, "3.8e+25", "arXiv 2407.21783, section 1"),
    ("Llama 3.1 8B", 8.03e9, 15e12, "7.23e+23", "6 N D of the model card"),
    ("Llama 3.1 70B", 70.6e9, 15e12, "6.35e+24", "6 N D of the model card"),
    ("DeepSeek-V3", 37e9, 14.8e12, "3.29e+24", "arXiv 2412.19437, by 37B of a token")]


@pytest.mark.parametrize("name, params, tokens, printed, source", PUBLISHED,
                         ids=[row[0] for row in PUBLISHED])
def test_flops_of_published_runs(name, params, tokens, printed, source):
    digits = len(printed.split("e")[0].replace(".", ""))
    assert f"{run(params=params, tokens=tokens).flops:.{digits - 1}e}" == printed, source


def test_gpt3_in_pf_days():
    """3.64e3 PF-days, arXiv 2005.14165, table D.1."""
    assert run(params=174.6e9, tokens=300e9).flops / PF_DAY_FLOPS == pytest.approx(3637.5, abs=0.05)


@pytest.mark.parametrize("attention, more", [("causal", 0.014), ("full", 0.028)])
def test_exact_flops_of_gpt3(attention, more):
    assert matmul_params(GPT3) / 1e9 == pytest.approx(174.56, abs=0.005)
    exact = 300e9 * train_flops_per_token(GPT3, 2048, attention)
    assert exact / (6 * 300e9 * matmul_params(GPT3)) - 1 == pytest.approx(more, abs=5e-4)
    assert attention == "full" or exact == pytest.approx(3.186e23, rel=2e-4)


def test_gopher_and_chinchilla_lie_by_their_budget():
    """Both spent about 5.76e23 FLOPs by their authors' exact count, arXiv 2203.15556, section 4."""
    for params, tokens in ((280e9, 300e9), (70e9, 1.4e12)):
        assert run(params=params, tokens=tokens).flops == pytest.approx(5.76e23, rel=0.13)


@pytest.mark.parametrize("layers, width, hidden, heads, size, ratio", [
    (10, 640, 2560, 10, 64, 1.025), (20, 1024, 4096, 16, 64, 1.10),
    (24, 1280, 5120, 10, 128, 1.083), (26, 1792, 7168, 14, 128, 1.044)])
def test_exact_flops_of_chinchilla_table_a4(layers, width, hidden, heads, size, ratio):
    """arXiv 2203.15556, table A4: exact FLOPs of the layers over 6 N D. Its N has the table of
    32,000 tokens and Transformer-XL's positions; its FLOPs have softmax, which we do not count."""
    vocabulary, row = 32_000, 2048
    config = ModelConfig(V=vocabulary, D=width, N=layers, H=heads, G=heads, K=size, F=hidden,
                         mlp="gelu", tied=True)
    exact = train_flops_per_token(config, row, "full") - 6 * width * vocabulary
    exact += 3 * 3 * heads * row * layers
    params = matmul_params(config) + layers * width**2
    assert exact / (6 * params) == pytest.approx(ratio, abs=0.003)


def test_palm_speed_and_mfu():
    """238.3k tokens a second on 6,144 TPU v4 are 45.7 % MFU, 46.2 % with attention; the whole run
    took 8,404,992 chip-hours (arXiv 2204.02311, section 4.1, table 3 and appendix B)."""
    rates = dataclasses.replace(PAPER, peak_flops=chip_peak_flops("tpu-v4"), mfu=0.457)
    bill = run(rates, params=540e9, tokens=780e9, num_chips=6144).bill
    assert 780e9 / (bill.days * 86_400) == pytest.approx(238.3e3, rel=2e-4)
    exact = 238.3e3 * train_flops_per_token(PALM, 2048, "full") / (275e12 * 6144)
    assert exact == pytest.approx(0.462, abs=6e-4)
    hours = 6144 * 1200 + 3072 * 336
    assert hours == 8_404_992  # 1,200 hours of two pods, 336 of one
    assert flops_of_hours(hours, 6144, dataclasses.replace(rates, mfu=0.3037)) == pytest.approx(
        2.5272e24, rel=1e-3)


def test_llama3_405b_hours_days_money_and_carbon():
    """arXiv 2407.21783, section 3.3: 38 to 43 % MFU, 400 TFLOP/s; Stanford CS229's lecture on
    building such models (2024): 26M hours, about 70 days, $52M and $25M of salaries, 4,000 t."""
    done = run(params=405e9, tokens=15.6e12, num_chips=16_000)
    assert done.flops == pytest.approx(3.791e25, rel=1e-4)
    assert done.flops / 1e26 == pytest.approx(0.379, abs=5e-4)
    assert done.bill.chip_hours / 1e6 == pytest.approx(26.3, abs=0.05)
    assert done.bill.days == pytest.approx(68.6, abs=0.05)
    assert done.bill.usd / 1e6 == pytest.approx(52.6, abs=0.06)
    assert done.bill.usd / 1e6 + 50 * 0.5 == pytest.approx(77.7, abs=0.06)
    assert done.bill.kwh / 1e6 == pytest.approx(18.4, abs=0.05)
    assert done.bill.co2e_tonnes == pytest.approx(4423, abs=0.5)
    assert pytest.approx(0.404, abs=5e-4) == 400e12 / 989.5e12


@pytest.mark.parametrize("flops, hours, mfu, tonnes", [
    (3.7908e25, 30.84e6, 0.345, 8930), (7.23e23, 1.46e6, 0.139, 420), (6.35e24, 7.0e6, 0.2546,
                                                                       2040)])
def test_the_account_of_llama31(flops, hours, mfu, tonnes):
    """Hours and tonnes of Llama 3.1's model card: 405B, 8B, 70B, each at 700 W. For 405B 30.84M
    hours are 21.6 GWh and 0.414 kg a kWh."""
    rates = dataclasses.replace(PAPER, mfu=mfu, kg_per_kwh=0.4136)
    bill = make_bill(flops, 16_384, rates)
    assert bill.chip_hours == pytest.approx(hours, rel=2e-3)
    assert bill.kwh == pytest.approx(0.7 * hours, rel=2e-3)
    assert bill.co2e_tonnes == pytest.approx(tonnes, rel=9e-3)
    assert pytest.approx(0.414, abs=5e-4) == 8930 / (0.7 * 30.84e3)


def test_exact_flops_of_llama3_405b():
    config = PRESETS["llama-3.1-405b"]
    total = matmul_params(config) + config.V * config.D + (2 * config.N + 1) * config.D
    assert total / 1e9 == pytest.approx(405.85, abs=0.005)
    exact = 15.6e12 * train_flops_per_token(config, 8192)
    assert exact == pytest.approx(3.94e25, rel=1e-3)
    assert exact / (6 * total * 15.6e12) - 1 == pytest.approx(0.036, abs=5e-4)


def test_a_70b_model_on_a_pod_of_tpu_v5p():
    """15T tokens at 40 % of 8,960 chips: 44 days, "How to scale your model", on training."""
    rates = dataclasses.replace(PAPER, peak_flops=chip_peak_flops("tpu-v5p"), mfu=0.4)
    assert run(rates, params=70e9, tokens=15e12, num_chips=8960).bill.days == pytest.approx(
        44.3, abs=0.05)


@pytest.mark.parametrize("peak, mfu", [(1513e12, 0.216), (1979e12, 0.165)])
def test_deepseek_v3_by_its_hours(peak, mfu):
    """2.79M hours of H800 (arXiv 2412.19437, table 1). "How to scale your model" takes the fp8 peak
    of the PCIe card, 1,513 TFLOP/s; the SXM card that was used has 1,979."""
    rates = dataclasses.replace(PAPER, peak_flops=peak, mfu=mfu)
    bill = run(rates, params=671e9, active_params=37e9, tokens=14.8e12, num_chips=2048).bill
    assert bill.chip_hours / 1e6 == pytest.approx(2.79, abs=0.015)
    assert chip_peak_flops("h800", "fp8") == 1979e12


def test_hoffmanns_law_at_its_budget():
    """By the paper's unrounded constants; the rounded ones it prints give another optimum."""
    best = HOFFMANN.optimum(5.76e23)
    assert (best.params / 1e9, best.tokens / 1e12) == pytest.approx((40.4, 2.38), abs=0.05)
    assert best.flops == pytest.approx(5.76e23)
    assert best.tokens / best.params == pytest.approx(58.9, abs=0.1)
    rounded = Law(1.69, 406.4, 410.7, 0.34, 0.28).optimum(5.76e23)
    assert (rounded.params / 1e9, rounded.tokens / 1e12) == pytest.approx((32.2, 2.98), abs=0.05)
    for factor in (0.8, 1.25):
        assert HOFFMANN.loss(best.params * factor, best.tokens / factor) > HOFFMANN.loss(
            best.params, best.tokens)
    assert HOFFMANN.optimal_tokens(best.params) == pytest.approx(best.tokens)


def test_the_cheapest_life_of_a_13b_model():
    """arXiv 2401.00448, section 3: with 2T tokens of inference, 7B is trained instead of 13B, which
    saves 17 %; by the unrounded constants 16.3 %, and the optimum is 7.12B."""
    tokens = HOFFMANN.optimal_tokens(13e9)
    loss = HOFFMANN.loss(13e9, tokens)
    assert (tokens, loss) == (pytest.approx(6.17e11, rel=1e-3), pytest.approx(2.0238, abs=5e-5))
    longer = HOFFMANN.tokens_for(loss, 7e9)
    assert longer == pytest.approx(1.33e12, rel=1e-3)
    life_13b, life_7b = (6 * n * d + 2 * n * 2e12 for n, d in ((13e9, tokens), (7e9, longer)))
    assert life_13b - life_7b == pytest.approx(1.63e22, rel=2e-3)
    assert 1 - life_7b / life_13b == pytest.approx(0.163, abs=5e-4)
    best = lifetime_optimum(loss, 2e12)
    assert best.params / 1e9 == pytest.approx(7.12, abs=0.005)
    assert HOFFMANN.loss(best.params, best.tokens) == pytest.approx(loss, abs=1e-9)
    almost_none = lifetime_optimum(loss, 1e6)
    assert (almost_none.params, almost_none.tokens) == pytest.approx((13e9, tokens), rel=1e-3)
    with pytest.raises(UserError, match="is not above the law's lowest"):
        lifetime_optimum(1.69, 1e12)


def test_a_ratio_divides_compute():
    best = by_ratio(5.88e23, 20)
    assert (best.params, best.tokens) == (pytest.approx(70e9), pytest.approx(1.4e12))


@pytest.mark.parametrize("given", [
    dict(params=7e9, tokens=2e12), dict(params=7e9, compute=8.4e22), dict(params=7e9, days=10.0),
    dict(tokens=2e12, compute=8.4e22), dict(params=7e9, num_chips=512), dict(compute=8.4e22),
    dict(tokens=2e12, budget_usd=2e5), dict(budget_usd=2e5, num_chips=64), dict(tokens=1e12),
    dict(days=3.0, num_chips=64), dict(params=7e9, days=3.0, num_chips=64), dict(budget_usd=1e6),
    dict(params=7e9, tokens=2e12, num_chips=256), dict(params=7e9, tokens=2e12, days=20.0),
    dict(compute=1e22, num_chips=64), dict(compute=1e22, days=9.0), dict(budget_usd=1e5, days=9.0)])
def test_what_is_not_given_follows(given):
    """Whatever is given is met, and all quantities agree with each other."""
    rates = dataclasses.replace(PAPER, goodput=None)
    done = run(rates, **given)
    found = dict(params=done.params, tokens=done.tokens, compute=done.flops,
                 budget_usd=done.bill.usd, num_chips=done.num_chips)
    for name, value in given.items():
        if name != "days":
            assert found[name] == pytest.approx(value), name
    assert done.flops == pytest.approx(6 * done.params * done.tokens)
    days = given.get("days", 30.0)
    assert done.bill.days <= days * (1 + 1e-9) or "num_chips" in given
    if "days" in given and "num_chips" in given:
        assert done.bill.days == pytest.approx(days)
    sizes = {"params", "tokens"} & set(given)
    if len(sizes) + bool({"compute", "budget_usd"} & set(given)) + (
            {"days", "num_chips"} <= set(given)) < 2:
        assert done.tokens / done.params == pytest.approx(20)
        assert "20 tokens a parameter" in done.chosen.values()
    else:
        assert not {"params", "tokens"} & set(done.chosen)


@pytest.mark.parametrize("given, message", [
    (dict(), "--params: nothing says how large the run is"),
    (dict(days=3), "nothing says how large the run is"),
    (dict(params="1e9", tokens="2e10", compute="1e20"), "--params, --tokens, --compute: two of "
     "them decide the third: leave out --compute"),
    (dict(compute="1e22", budget_usd=3000), "--compute and --budget_usd: each decides the FLOPs"),
    (dict(params="1e9", tokens="2e10", days=3, num_chips=8), "leave out --days"),
    (dict(compute=3640), "if these are PF-days, write --compute=3.14496e+23"),
    (dict(compute="nan"), "--compute=nan: must be a number, at least 1e+12"),
    (dict(compute="inf"), "--compute=inf: must be a number"),
    (dict(params=70), "70 billion are --params=70e9"), (dict(params=-7e9), "--params=-7e+09"),
    (dict(tokens=15), "15 trillion are --tokens=15e12"), (dict(params=0), "--params=0"),
    (dict(params="1e9", mfu=40), "40 % are --mfu=0.4"), (dict(params="1e9", mfu=0), "--mfu=0"),
    (dict(params="1e9", goodput=95), "95 % are --goodput=0.95"),
    (dict(params="1e9", num_chips=7.5), "--num_chips=7.5: must be a whole number"),
    (dict(params="1e9", num_chips=0), "--num_chips=0"), (dict(params="1e9", days=0), "--days=0"),
    (dict(params="1e9", watts=0.7), "0.7 kW are --watts=700"),
    (dict(params="1e9", grid=369), "369 grams are --grid=0.369"),
    (dict(params="1e9", grid="franse"), "--grid='franse': is none of the grids of "
     "train/plan/tables.json: name one of france"),
    (dict(params="1e9", chip="h1000"), "name one of h100"),
    (dict(params="1e9", chip="tpu-v5p", dtype="fp8"), "has no known peak on tpu-v5p"),
    (dict(params="1e9", active_params="2e9"), "cannot be more of them"),
    (dict(active_params="2e9", tokens="1e12"), "cannot be more of them"),
    (dict(preset="gpt2", params="1e9"), "--params: is what --preset decides: leave out --params"),
    (dict(budget_usd=1e6, price_usd=0), "a budget buys any number of hours at no price"),
    (dict(params="1e13", tokens="1e13", days=1), "--days=1: no number of these chips finishes"),
    (dict(params="1e9", num_chips=2_000_000), "one fails before a restart has paid off"),
    (dict(compute="1e13", params="1e12"), "--tokens: 1.67 follow: no run is of such a size")])
def test_what_cannot_be_is_refused_in_one_line(given, message):
    with pytest.raises(UserError) as error:
        plan(**given)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("given, note", [
    (dict(params="1e9", tokens="1e14"), "if they are bytes, about 2.2e+13 tokens"),
    (dict(params="1e12", tokens="1e10"), "are they exchanged?"),
    (dict(params="1e9", tokens="2e13"), "the law's loss is an extrapolation"),
    (dict(params="1e9", mfu=0.7), "above what is published"),
    (dict(params="1e10", tokens="2e12", num_chips=8), "days: more chips, or a smaller run"),
    (dict(params="1e10", tokens="1e12", num_chips=100_000), "interruptions leave"),
    (dict(params="1e9", chip="tpu-v5e"), "energy and carbon are unknown without --watts"),
    (dict(params="4e11", tokens="1.6e13"), "general-purpose AI model (EU), systemic risk (EU)"),
    (dict(params="6.7e11"), "without a shape, memory and exact FLOPs are unknown")])
def test_what_is_odd_is_noted(given, note, monkeypatch):
    """The size's own shape is left out: it costs seconds, and decides none of these."""
    monkeypatch.setattr("train.plan.__main__.stand_in_subject", lambda params, row_length: None)
    result = plan(**given)
    assert any(note in text for text in result["notes"])
    assert all(name and text for name, text in rows_of(result))
    usual = plan(params="8e9", tokens="1e12", num_chips=1024)["notes"]
    assert not any(note in text for text in usual) or "without a shape" in note


def test_interruptions_lose_least_at_the_interval():
    """Goodput of Llama 3's 16,384 GPUs was above 90 % (arXiv 2407.21783, section 3.3.4)."""
    rates = dataclasses.replace(PAPER, goodput=None)
    found = expect_interruptions(16_384, rates)
    assert 54 * 24 / found.mean_hours == pytest.approx(419, abs=0.5)
    assert 0.90 < found.goodput < 0.95
    mean = 3600 * found.mean_hours

    def goodput(every):     # the formula's own words
        lost = (rates.restart_secs + (every + rates.save_secs) / 2) / mean
        return (1 - lost) / (1 + rates.save_secs / every)

    assert found.goodput == pytest.approx(goodput(found.save_every_secs))
    for factor in (0.5, 2.0):
        assert goodput(factor * found.save_every_secs) < found.goodput
    assert expect_interruptions(16_384, PAPER).goodput == 1.0
    assert make_bill(1e24, 1_000_000, rates).days == math.inf


def test_hours_and_flops_are_inverse():
    rates = dataclasses.replace(PAPER, goodput=None)
    bill = make_bill(1e24, 5000, rates)
    assert flops_of_hours(bill.paid_chip_hours, 5000, rates) == pytest.approx(1e24)
    assert bill.paid_chip_hours * bill.failures.goodput == pytest.approx(bill.chip_hours)


@pytest.mark.parametrize("days", [1.0, 7.5, 90.0])
def test_fewest_chips_are_enough_and_one_less_is_not(days):
    rates = dataclasses.replace(PAPER, goodput=None)
    count = fewest_chips(1e24, days, rates)
    assert make_bill(1e24, count, rates).days <= days < make_bill(1e24, count - 1, rates).days


def test_whole_hosts():
    assert [whole_hosts(n, 8) for n in (0.2, 1, 3, 8, 9, 33, 100, 2700, 15_000)] == [
        1, 1, 4, 8, 16, 40, 112, 3072, 16_384]


def test_every_row_of_the_tables_is_complete():
    """Each has a source and a date; each chip's peak is one that MFU is measured against."""
    for name, row in TABLES["chips"].items():
        assert all(row[field] for field in ("source", "date", "price_source", "price_date")), name
        assert chip_peak_flops(name) == peak_flops(row["device_kind"])
        assert 0 < row["usd_per_hour"] < 20 and row["memory_gb"] >= 16
        assert row["watts"] is None or 50 < row["watts"] < 2000
    assert all(0 < row["kg_per_kwh"] < 1 and row["date"] for row in TABLES["grids"].values())
    assert {1e25, 1e26} <= {row["flops"] for row in TABLES["thresholds"]}
    assert all(row["source"] and row["date"] for row in TABLES["thresholds"])
    assert {row["params"] * row["tokens"] * 6 for row in TABLES["runs"]} >= {405e9 * 15.6e12 * 6}
