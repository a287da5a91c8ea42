"""Every variant of every config: its model lowers, sharded three ways, without being compiled."""

import re

import jax
import pytest
from absl import flags
from marks import some_in_full
from ml_collections import ConfigDict

from configs import (
    align,
    classifier,
    constitution,
    curate,
    gpt2_124m,
    judge,
    ladder,
    llama3_8b,
    mixture,
    objectives,
    preset,
    pretrain,
    rl,
    rounds,
    self_instruct,
    synthesize,
)
from configs.common import REFERENCES, scale_by_depth
from configs.quickstart import get_config
from core.bounds import check_numbers, find_bounds
from core.entry import define_config_flags, flag_fault
from core.errors import UserError
from model.execution import make_execution
from model.families.registry import abstract_params
from model.section import read_section
from train.objective import batch_shapes
from train.pretrain import make_loss
from train.setup import RUN_FIELDS, make_setup
from train.trainer import make_step

# Of ml_collections, which loads configs.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

VARIANTS = ("cpu", "accelerator", "portable", "smoke")


CONFIGS = {**{variant: (get_config, variant) for variant in VARIANTS},
           "gpt2_124m": (gpt2_124m.get_config, None), "llama3_8b": (llama3_8b.get_config, None),
           "preset": (preset.get_config, None),
           "preset gemma": (preset.get_config, "gemma-3-1b"),
           **{name: (objectives.get_config, name) for name in objectives.VARIANTS},
           "ladder": (ladder.get_config, "accelerator,4,10"),
           "depth 6": (pretrain.get_config, "6"), "depth 3, cpu": (pretrain.get_config, "3,cpu")}


EVERY_CONFIG = {**CONFIGS, **{f"{module.__name__}:{variant}": (module.get_config, variant)
                              for module, variants in (
                                  (align, align.VARIANTS), (rl, rl.VARIANTS),
                                  (rounds, rounds.VARIANTS),
                                  (curate, ("local", "warc")),
                                  (ladder, ("cpu", "accelerator", "cpu,1,0.5", "cpu-transformer",
                                            "cpu-lstm", "cpu-experts,2,0.4")),
                                  (mixture, mixture.VARIANTS),
                                  (synthesize, ("default",)),
                                  (self_instruct, ("default",)), (judge, ("default",)),
                                  (constitution, constitution.VARIANTS),
                                  (objectives, objectives.VARIANTS),
                                  (classifier, ("reference", "scores", "labels", "toxicity")))
                              for variant in variants}}
HUGE = 1e300, 10**30
# Endings of fields at which 0 is a number like others, beside those whose bounds note its meaning.
ZERO_IS_A_NUMBER = (
    "seed", "answer.temperature", "critique.temperature", "judge.temperature",
    "self_instruct.temperature", "eval.temperature", "synthesize.temperature",
    "pretrain.temperature", "_frac", "_score",
    "mixture.pages", "mixture.code", "mixture.best", "b1", "b2", "momentum", "weight_decay",
    "_coef", "warmup_steps", "steps_back", "skip_batches", "max_retries", "min_margin", "min_words",
    "max_bad_words", "heldout.frac", "near_overlap", "min_jaccard", "max_jaccard",
    "max_containment", "min_passage_words", "backoff_secs")
NEGATIVE_IS_A_NUMBER = ("min_score", "max_score", "min_positive_score")
AT_MOST_1 = ("_frac", "heldout.frac", "b1", "b2", "momentum", "ema_decay", "top_p", "near_overlap",
             "jaccard", "max_containment", "max_similarity", "false_positive_rate",
             "languages.min_score")
NOT_BOUNDED = ("_bytes", "max_documents", "curate.limit")     # whole, and never put into 32 bits


def numbers_of(section, path=""):
    """(path, number) of every number in a config."""
    for name, value in section.items():
        where = f"{path}.{name}".lstrip(".")
        if isinstance(value, ConfigDict):
            yield from numbers_of(value, where)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield where, value


def refusal(field, value):
    """The line that refuses a value of a field; None if it is accepted."""
    path, _, name = field.rpartition(".")
    try:
        check_numbers({name: value}, path)
    except UserError as error:
        assert str(error).startswith(f"{field}={value!r}: must be a "), error
        assert f": set --config.{field}" in str(error) and "\n" not in str(error)
        return str(error)


@pytest.mark.parametrize("name", EVERY_CONFIG)
def test_no_field_of_any_config_takes_a_number_that_no_run_wants(name):
    make_config, variant = EVERY_CONFIG[name]
    config = make_config(variant)
    check_numbers(config)
    for field, given in numbers_of(config):
        _, bounds = find_bounds(field.split(".")) or pytest.fail(f"{field} has no bounds")
        for value in (float("nan"), float("inf"), -float("inf"), "3", None, True):
            assert refusal(field, value), (field, value)
        is_axis = field.startswith("mesh.")
        below = bounds.also == -1 or (field.endswith(NEGATIVE_IS_A_NUMBER)
                                      and field != "curate.languages.min_score")
        assert bool(refusal(field, type(given)(-1))) != below, field
        assert is_axis <= bool(refusal(field, type(given)(-2))), field
        zero = field.endswith(ZERO_IS_A_NUMBER + NEGATIVE_IS_A_NUMBER) or "0 " in bounds.note
        if field in ("pack.best_frac", "curate.keep_top_frac", "synthesize.max_frac",
                     "classifier.heldout_frac", "classifier.calibration_frac", "model.rope_frac"):
            zero = False
        assert bool(refusal(field, type(given)(0))) != zero, field
        if field.endswith(AT_MOST_1) and field != "synthesize.max_frac":
            assert refusal(field, 1.5), field
        if isinstance(given, int):
            assert refusal(field, 1.5), f"{field} counts something"
        if not field.endswith(NOT_BOUNDED):
            assert refusal(field, HUGE[isinstance(given, int)]), field


@pytest.mark.parametrize("name", EVERY_CONFIG)
def test_a_command_refuses_a_number_before_it_reads_or_writes_anything(name, tmp_path, monkeypatch):
    """By the flags of the command line; `flag_fault` is what every command asks first."""
    make_config, variant = EVERY_CONFIG[name]
    file = f"configs/{make_config.__module__.rpartition('.')[2]}.py"
    for field, given in [*numbers_of(make_config(variant))][::9]:
        value = "-5.5" if isinstance(given, float) and not field.endswith("score") else "-7"
        value = "nan" if field.endswith("score") else value
        values, argv = flags.FlagValues(), [
            "stage", f"--config={file}" + f":{variant}" * bool(variant),
            f"--workdir={tmp_path}/run", f"--config.{field}={value}"]
        define_config_flags(values, argv)
        fault = flag_fault(values, argv)
        assert fault.startswith(f"{field}={value}: must be a "), fault
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("argument, found", [
    ("mixture.web=1.0", lambda c: c.pretrain.mixture.to_dict() == dict(pages=1.0, code=0.0,
                                                                       web=1.0)),
    ("mixture['my-web']=2", lambda c: c.pretrain.mixture["my-web"] == 2.0),
    ("upweight.code=2.0", lambda c: c.pretrain.upweight.code == 2.0),
    ("optimizer.lr_multipliers.embed_VD=0.5", lambda c: (
        c.pretrain.optimizer.lr_multipliers.embed_VD == 0.5)),
    ("optimizer.lr_multipliers['embed*']=0.5", lambda c: (
        c.pretrain.optimizer.lr_multipliers["embed*"] == 0.5)),
    ("run.tasks.verifiable=7", lambda c: c.pretrain.run.tasks.verifiable == 7),
    ("mixture.web=-1.0", r"pretrain\.mixture\.web=-1\.0: must be a number, at least 0 and finite"),
    ("mixture.web=many", r"flag --config\.pretrain\.mixture\.web=many: could not convert"),
    ("mixtur.web=1.0", "no such field: 'mixtur'"),
    ("num_step=3", "no such field: 'num_step' Did you mean \"num_steps\""),
    ("mixture.web.more=1.0", "no such field: 'web'"),
    ("mixture[0]=1.0", "--config"),
    ("mixture.my-web=1.0", r"mixture\.my-web: a name that is no identifier stands in brackets: "
                           r"write --config\.pretrain\.mixture\['my-web'\]=VALUE"),
], ids=lambda value: "config" if callable(value) else str(value))
def test_a_flag_may_add_a_name_of_the_users_own(argument, found):
    values, argv = flags.FlagValues(), ["stage", "--config=configs/quickstart.py:smoke",
                                        f"--config.pretrain.{argument}"]
    define_config_flags(values, argv)
    fault = flag_fault(values, argv)
    if callable(found):
        assert not fault and found(values.config), fault
    else:
        assert re.search(found, fault), fault


def test_a_flag_may_add_a_domain_with_rules_of_its_own():
    values, argv = flags.FlagValues(), [
        "stage", "--config=configs/curate.py", "--config.curate.overrides.web.gopher_min_words=30",
        "--config.curate.presets.web=('gopher', 'fineweb')",
        "--config.curate.columns.license=meta.license"]
    define_config_flags(values, argv)
    assert not flag_fault(values, argv)
    section = values.config.curate
    assert section.overrides.web.gopher_min_words == 30
    assert section.presets.web == ("gopher", "fineweb")
    assert section.columns.license == "meta.license"


@pytest.mark.parametrize("name", some_in_full(
    CONFIGS, "accelerator", "preset gemma", "masked", "span", "experts", "lstm"))
def test_one_step_lowers_on_eight_devices(name):
    make_config, variant = CONFIGS[name]
    config = make_config(variant)
    section = config.pretrain
    model_config = read_section(config.model, config.tokenizer.vocab_size)
    setup = make_setup(model_config, section, {"data": 2, "fsdp": 4, "tensor": 1})
    make_first, step = make_step(make_loss(section), setup, section, num_steps=section.num_steps)
    state = make_first(abstract_params(setup.config))
    batch = batch_shapes(section)
    with jax.set_mesh(setup.mesh):
        lowered = step.lower(state, batch)
    after, metrics = lowered.out_info
    assert {"loss", "gradient_norm", "param_norm"} <= set(metrics)
    assert jax.tree.map(lambda leaf: leaf.shape, after) == jax.tree.map(lambda leaf: leaf.shape,
                                                                        state)
    assert "sharding" in lowered.as_text()


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_stage_with_a_model_says_how_it_runs(variant):
    config = get_config(variant)
    for name in ("pretrain", "sft", "dpo"):
        make_execution(config[name], also=RUN_FIELDS)
    for name in ("pairs", "eval"):
        make_execution(config[name], also=("batch_size",))


def test_an_unknown_field_of_run_is_refused():
    section = get_config("smoke").pretrain
    section.run.rematt = "full"
    with pytest.raises(UserError, match=r"base: run.rematt: is no field of this stage: choose"):
        make_execution(section, also=RUN_FIELDS)


def test_the_quickstart_is_depth_4_of_the_dial():
    quickstart, dial = get_config("cpu"), pretrain.get_config("4,cpu")
    assert quickstart.model == dial.model and quickstart.tokenizer == dial.tokenizer
    for field in ("row_length", "batch_size", "num_steps"):
        assert quickstart.pretrain[field] == dial.pretrain[field]
    assert quickstart.pretrain.optimizer.learning_rate == dial.pretrain.optimizer.learning_rate


def test_the_dial_gives_the_reference_at_its_depth_and_scales_around_it():
    scale, reference = scale_by_depth(12, "accelerator"), REFERENCES["accelerator"]
    assert (scale.model["D"], scale.model["H"], scale.model["F"]) == (768, 6, 2048)
    assert scale.batch_size * scale.row_length == reference.batch_tokens
    assert scale.learning_rate == pytest.approx(reference.learning_rate)
    assert scale.weight_decay == pytest.approx(reference.weight_decay)
    num_params = 12 * (4 * 768**2 + 3 * 768 * 2048) + 768 * 32_768
    assert scale.num_steps == round(12 * num_params / reference.batch_tokens)
    twice = scale_by_depth(24, "accelerator")   # batch 2 ** (0.383 log2 of 6.6) of it: twice
    assert twice.batch_size == 2 * scale.batch_size
    assert twice.learning_rate == pytest.approx(scale.learning_rate)    # sqrt 2 / sqrt 2
    horizon = twice.num_steps * twice.batch_size / (scale.num_steps * scale.batch_size)
    memory = [s.batch_size / (s.learning_rate * s.weight_decay) for s in (scale, twice)]
    assert memory[1] / memory[0] == pytest.approx(horizon, rel=1e-3)


@pytest.mark.parametrize("arg", ["deep", "0", "12,tpu", "-3"])
def test_what_is_no_depth_is_refused(arg):
    with pytest.raises(ValueError, match=r"is no depth with a platform: write --config=configs"):
        pretrain.get_config(arg)


def test_an_unknown_variant_is_refused():
    with pytest.raises(ValueError, match="is none of cpu, accelerator, portable, smoke"):
        get_config("huge")
