"""How to divide compute between parameters and tokens.

Published laws only: what is fitted to runs of one's own is another matter.
"""

from __future__ import annotations

import dataclasses
import math

from scipy.optimize import minimize_scalar

from core.errors import UserError

TRAINING_RATIO = 20.0       # tokens per parameter, arXiv 2203.15556: 1.4T tokens for 70B
# For a model that serves much. arXiv 2401.00448's example, the quality of 13B over 2T tokens of
# inference, has its optimum at 182.
INFERENCE_RATIO = 150.0


@dataclasses.dataclass(frozen=True)
class Law:
    """Loss in nats a token: L(N, D) = E + A / N^alpha + B / D^beta, at C = 6 N D."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, params: float, tokens: float) -> float:
        """L(N, D)."""
        return self.E + self.A / params**self.alpha + self.B / tokens**self.beta

    def tokens_for(self, loss: float, params: float) -> float:
        """Tokens with which a model of `params` reaches a loss; infinite if none does."""
        left = loss - self.E - self.A / params**self.alpha
        return (self.B / left) ** (1 / self.beta) if left > 0 else math.inf

    def optimum(self, flops: float) -> Allocation:
        """The least loss of some FLOPs: N = G (C/6)^(beta/(alpha+beta)) with
        G = (alpha A / beta B)^(1/(alpha+beta)); arXiv 2203.15556, equation 4."""
        params = self._balance() * (flops / 6) ** (self.beta / (self.alpha + self.beta))
        return Allocation(params, flops / 6 / params)

    def optimal_tokens(self, params: float) -> float:
        """The tokens at which a model of `params` is the optimum of its compute."""
        power = (self.alpha + self.beta) / self.beta
        return self.optimum(6 * (params / self._balance()) ** power).tokens

    def _balance(self) -> float:
        """G of `optimum`."""
        return (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))


@dataclasses.dataclass(frozen=True)
class Allocation:
    """Parameters and tokens of a run."""

    params: float
    tokens: float

    @property
    def flops(self) -> float:
        """6 N D."""
        return 6 * self.params * self.tokens


# arXiv 2203.15556, approach 3, by the constants in the source of the paper: those that it prints
# are rounded so far that the optimum moves by a quarter.
HOFFMANN = Law(E=math.exp(0.5267228), A=math.exp(6.0073404), B=math.exp(6.0179186),
               alpha=0.33917084, beta=0.2849083)


def by_ratio(flops: float, tokens_per_param: float) -> Allocation:
    """Parameters and tokens in a ratio, at 6 N D = `flops`."""
    params = math.sqrt(flops / 6 / tokens_per_param)
    return Allocation(params, tokens_per_param * params)


def lifetime_optimum(loss: float, inference_tokens: float, law: Law = HOFFMANN) -> Allocation:
    """The model that reaches a loss with the fewest FLOPs of its life: 6 N D + 2 N D_inference.

    Args:
        loss: nats a token, by `law`.
        inference_tokens: that the model will read and write in its life.

    Raises:
        UserError: no model reaches the loss.

    Source: arXiv 2401.00448, equations 2 and 3.
    """
    least_params = (law.A / (loss - law.E)) ** (1 / law.alpha) if loss > law.E else math.inf
    if not least_params < 1e18:
        raise UserError(f"loss {loss:.4g}", f"is not above the law's lowest, {law.E:.4g}",
                        "plan a smaller run")

    def flops(log_params: float) -> float:
        params = math.exp(log_params)
        return math.log(params * (6 * law.tokens_for(loss, params) + 2 * inference_tokens))

    low = math.log(least_params)
    found = minimize_scalar(flops, bounds=(low + 1e-6, low + 25), method="bounded",
                            options={"xatol": 1e-10})
    params = math.exp(found.x)
    return Allocation(params, law.tokens_for(loss, params))
