"""The schedules' numbers at named steps."""

import optax
import pytest
from ml_collections import ConfigDict

from configs.common import make_optimizer as make_section
from core.errors import UserError
from train.optimizer.schedules import SCHEDULES, make_schedule


@pytest.mark.parametrize("schedule, warmup_steps, decay_frac, final_frac, expected", [
    ("wsd", 4, 0.4, 0.0, {0: .25, 1: .5, 3: 1, 4: 1, 11: 1, 12: 1, 16: .5, 20: 0}),
    ("wsd", 0, 0.5, 0.0, {0: 1, 10: 1, 15: .5, 20: 0}),
    ("wsd", 0, 0.5, 0.2, {0: 1, 10: 1, 15: .6, 20: .2, 30: .2}),
    ("wsd", 3, 0.0, 0.0, {0: 1 / 3, 2: 1, 3: 1, 19: 1}),
    ("wsd", 10, 0.5, 0.0, {0: .1, 8: .9, 9: 1, 10: 1, 15: .5, 20: 0}),
    ("cosine", 4, 0.0, 0.0, {0: .25, 2: .75, 4: 1, 8: .853553, 12: .5, 20: 0}),
    ("cosine", 4, 0.0, 0.1, {0: .25, 4: 1, 8: .868198, 12: .55, 20: .1}),
    ("linear", 4, 0.0, 0.0, {0: .25, 2: .75, 4: 1, 8: .75, 12: .5, 20: 0}),
    ("linear", 0, 0.0, 0.5, {0: 1, 10: .75, 20: .5}),
    ("constant", 5, 0.0, 0.0, {0: .2, 1: .4, 4: 1, 5: 1, 19: 1}),
    ("constant", 1, 0.0, 0.0, {0: 1, 19: 1}),
    ("constant", 0, 0.0, 0.0, {0: 1, 19: 1}),
])
def test_golden_values(schedule, warmup_steps, decay_frac, final_frac, expected):
    section = ConfigDict(make_section(schedule=schedule, warmup_steps=warmup_steps,
                                      decay_frac=decay_frac, final_frac=final_frac))
    multiplier = make_schedule(section, num_steps=20)
    assert {step: float(multiplier(step)) for step in expected} == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("warmup_steps", [1, 2, 7])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_warmup_begins_where_the_ramp_from_zero_stands_at_its_second_step(schedule, warmup_steps):
    section = ConfigDict(make_section(schedule=schedule, warmup_steps=warmup_steps, decay_frac=0.3))
    multiplier = make_schedule(section, num_steps=20)
    ramp = optax.linear_schedule(0.0, 1.0, warmup_steps)
    found = [float(multiplier(step)) for step in range(warmup_steps)]
    assert found == pytest.approx([float(ramp(step + 1)) for step in range(warmup_steps)])
    assert min(found) > 0 and float(multiplier(warmup_steps)) == 1


@pytest.mark.parametrize("changes, line", [
    ({"warmup_steps": 20}, "optimizer.warmup_steps=20: must be below num_steps=20"),
    ({"schedule": "wsd", "warmup_steps": 12, "decay_frac": 0.5},
     "optimizer.warmup_steps=12: and 10 steps of decay exceed num_steps=20"),
    ({"schedule": "step"}, "optimizer.schedule='step': is none of constant, linear, cosine, wsd"),
], ids=str)
def test_impossible_schedules_are_refused(changes, line):
    with pytest.raises(UserError, match=line):
        make_schedule(ConfigDict(make_section(**changes)), num_steps=20)
