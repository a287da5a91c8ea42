"""Shares of domains by small runs: a mixture for pretraining, and one for annealing.

    python -m train.mixture regmix --config=configs/mixture.py:cpu --parents=runs/quickstart-cpu \\
        --out=runs/regmix

regmix: trains a small model on each of `regmix.num_mixtures` sampled mixtures, fits their losses
over the shares, and takes the mixture of the lowest predicted loss; it then trains on that and on
the natural shares, so that the gain is measured (RegMix, arXiv 2407.01492).

doremi: trains a reference on the natural shares, then a proxy that weighs the domains by how much
it is behind the reference in each, and takes the mean of these weights (DoReMi, arXiv 2305.10429);
checks them as regmix does. A reference that was killed goes on, a proxy begins anew.

anneal: from `anneal.base`, or a small model trained for it, short runs that end on a share of each
domain; takes shares for `pretrain.anneal_mixture` by what each gains (arXiv 2407.21783, section
3.1.3; arXiv 2406.03476).

The loss is `--metric` of a run's evaluation, by default bits per byte of the pages held out; the
tokens have one such pool, so a search is for the text in it. `--dry_run` prints the runs. The same
command again trains what is not finished. `mixture.json` in `--out` has the shares, the losses, the
quality of the fit, and `flags`, which give the shares to a run of train.pretrain.
"""

from __future__ import annotations

import sys
from typing import Any

import jax
from absl import flags

from core import entry
from core.errors import UserError
from core.overrides import define_config_flag
from train.mixture.anneal import anneal
from train.mixture.doremi import doremi
from train.mixture.regmix import regmix

COMMANDS = {"regmix": regmix, "doremi": doremi, "anneal": anneal}


def main(words: list[str]) -> dict[str, Any]:
    """Runs the command given by `words`."""
    name = " ".join(words)
    if name not in COMMANDS:
        raise UserError(name or "no command", "is not a command of train.mixture",
                        f"write one of {', '.join(COMMANDS)}")
    jax.config.update("jax_platforms", "cpu")   # devices are for the processes that train
    return COMMANDS[name](flags.FLAGS)


if __name__ == "__main__":
    define_config_flag()
    flags.DEFINE_string("parents", None, "Workdir of the tokens that the runs read.")
    flags.DEFINE_string("out", None, "Folder that is written.")
    flags.DEFINE_string("metric", "heldout_bpb", "Loss of a run, of its last evaluation.")
    flags.DEFINE_bool("dry_run", False, "Prints the runs, and trains none.")
    flags.DEFINE_integer("parallel", 1, "Runs at once.", lower_bound=1)
    command = list(sys.argv[1:])
    positional = [word for word in command if not word.startswith("-")]
    sys.argv[1:] = [word for word in command if word.startswith("-")]
    entry.run(lambda: main(positional))
