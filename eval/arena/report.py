"""The report of an arena: ratings with intervals, and all that qualifies them, as plain data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from core.errors import UserError
from core.page.markup import visible
from eval.agreement import Bootstrap
from eval.arena.ballots import Ballots, count_ballots, find_extremes, split_components
from eval.arena.bradley_terry import CENTRE, Fit, Samples, bootstrap, fit
from eval.arena.elo import online_elo, ratings_over_time
from eval.arena.quality import describe_voters, find_repeated, measure_order, measure_voters
from eval.arena.sampling import information_gains, pair_probabilities
from eval.arena.style import MEASURES, Penalty, fit_style, style_differences
from eval.arena.votes import Votes

NUM_MARKS = 24          # points of the ratings over time
NUM_NEXT = 12           # pairs that are named as the next to show
VOTER_SAMPLES = 200     # of the bootstrap of the agreement

# `rate_some(kept) -> models, fit, shift`: see `_rate_some`.
RateSome = Callable[[np.ndarray], tuple[np.ndarray, Fit, float]]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides a report beside its votes.

    Attributes:
        penalty: of style control.
        anchors: rating that a model is given, by name; the models connected with it shift as much.
        num_samples, seed: of the bootstrap.
        instant_secs: votes that took less are instant.
    """

    penalty: Penalty = dataclasses.field(default_factory=Penalty)
    anchors: dict[str, float] = dataclasses.field(default_factory=dict)
    num_samples: int = 1000
    seed: int = 0
    instant_secs: float = 2.0


@dataclasses.dataclass(frozen=True)
class Component:
    """Models that votes connect: their numbers, ballots, fit, samples and shift of the ratings."""

    models: np.ndarray
    ballots: Ballots
    fit: Fit
    samples: Samples
    shift: float


def make_report(votes: Votes, settings: Settings) -> dict[str, Any]:
    """Everything that is measured.

    Returns:
        `models`: a row for each, best first within its component; `components`; `unrated`, models
        without a vote; `win_rates`, see `_win_rates`; `style`, `order`, `quality`, `categories`,
        `next_pairs` and `over_time`, see the functions that make them.

    Raises:
        UserError: an anchor is no rated model, or two are connected.
    """
    ballots, numbers = count_ballots(votes.first, votes.second, votes.scores, votes.votes,
                                     len(votes.models))
    components = _rate(votes, ballots, settings)
    ratings = np.full(len(votes.models), np.nan)
    for part in components:
        ratings[part.models] = part.fit.ratings() + part.shift
    rate_some = partial(_rate_some, ballots, numbers, ratings)
    over_time = _over_time(votes, ballots, numbers, ratings)
    style = _style(votes, ballots, numbers, components, settings.penalty)
    rows = _model_rows(votes, components, over_time.pop("elo_now"), style)
    return {
        "votes": votes.num_votes, "comparisons": len(votes.scores),
        "ties_frac": float(np.mean(votes.scores == 0.5)),
        "same_model": votes.num_same_model, "models": rows,
        "components": [_describe_component(votes, part) for part in components],
        "unrated": [votes.models[i] for i in np.flatnonzero(np.isnan(ratings))],
        "win_rates": _win_rates(votes, ballots, components), "style": style,
        "order": measure_order(votes), "quality": _quality(votes, rate_some, ratings, settings),
        "categories": _categories(votes, rate_some),
        "next_pairs": _next_pairs(votes, ballots, components), "over_time": over_time}


def _rate(votes: Votes, ballots: Ballots, settings: Settings) -> list[Component]:
    unknown = [name for name in settings.anchors if name not in votes.models]
    if unknown:
        raise UserError(f"--anchor={unknown[0]}", "no vote names this model",
                        f"choose among {visible(', '.join(votes.models[:8]))}")
    found, anchored = [], set()
    for models, part in split_components(ballots):
        fitted = fit(part)
        own = [name for name in settings.anchors if votes.models.index(name) in models]
        if len(own) > 1:
            raise UserError(f"--anchor={','.join(own)}", "votes connect these models",
                            "give one of them")
        shift = 0.0
        for name in own:
            place = int(np.flatnonzero(models == votes.models.index(name))[0])
            shift = settings.anchors[name] - float(fitted.ratings()[place])
        anchored.update(own)
        found.append(Component(models, part, fitted, bootstrap(
            part, fitted, num_samples=settings.num_samples, seed=settings.seed), shift))
    if lost := set(settings.anchors) - anchored:
        raise UserError(f"--anchor={sorted(lost)[0]}", "this model has no vote that counts",
                        "choose another")
    return found


def _describe_component(votes: Votes, part: Component) -> dict[str, Any]:
    """Models, votes, how the ratings were found, and who never lost, or never won, by groups."""
    extremes = dict(zip(("undefeated", "winless"), find_extremes(part.ballots)))
    return {"models": [votes.models[i] for i in part.models],
            "votes": round(part.ballots.counts.sum()), "interval": part.fit.interval,
            "prior_ties": part.fit.prior_ties, "samples_with_prior": part.samples.num_prior,
            **{name: [votes.models[part.models[i]] for i in found]
               for name, found in extremes.items()}}


def _model_rows(votes: Votes, components: Sequence[Component], elo: np.ndarray,
                style: dict[str, Any] | None) -> list[dict[str, Any]]:
    """A row for each rated model.

    `rank` is 1 plus the number of connected models whose interval lies above the model's
    (Chatbot Arena), so that models that cannot be told apart share it.
    """
    rows = []
    for number, part in enumerate(components):
        bounds, drawn = part.fit.bounds() + part.shift, part.samples.bounds() + part.shift
        ratings, games = part.fit.ratings() + part.shift, part.ballots.games()
        wins = part.ballots.wins().sum(axis=1)
        ranks = 1 + (bounds[:, 0] > bounds[:, 1][:, None]).sum(axis=1)
        for i in np.argsort(-ratings, kind="stable"):
            name = votes.models[part.models[i]]
            row = {"model": name, "component": number, "rank": int(ranks[i]),
                   "rating": ratings[i], "low": bounds[i, 0], "high": bounds[i, 1],
                   "bootstrap_low": drawn[i, 0], "bootstrap_high": drawn[i, 1],
                   "games": int(games[i]), "win_rate": wins[i] / games[i],
                   "elo": elo[part.models[i]]}
            if style is not None and name in style["ratings"]:
                row["style_rating"] = style["ratings"][name]["rating"]
            rows.append(row)
    return rows


def _win_rates(votes: Votes, ballots: Ballots,
               components: Sequence[Component]) -> dict[str, Any]:
    """Of all rated models: `models`, best first; `wins`, with half the ties, and `games` of the
    row against the column; `predicted`, the probability by the ratings, None between components."""
    order = np.concatenate([part.models[np.argsort(-part.fit.strengths, kind="stable")]
                            for part in components])
    predicted = np.full((len(votes.models),) * 2, np.nan)
    for part in components:
        predicted[np.ix_(part.models, part.models)] = part.fit.win_rates()
    wins = ballots.wins()
    return {"models": [votes.models[i] for i in order], "wins": wins[np.ix_(order, order)],
            "games": (wins + wins.T)[np.ix_(order, order)],
            "predicted": predicted[np.ix_(order, order)]}


def _style(votes: Votes, ballots: Ballots, numbers: np.ndarray, components: Sequence[Component],
           penalty: Penalty) -> dict[str, Any] | None:
    """Ratings at equal style within the component of most votes; None without counts of style.

    Returns:
        `comparisons` with counts; `penalty`, on strengths too where `fit` needs a prior;
        `coefficients` by measure and `ratings` by model, with intervals of the kind `interval`.
    """
    rows = np.flatnonzero(np.isfinite(votes.styles).all(axis=(1, 2)))
    if not len(rows):
        return None
    counts = np.bincount(numbers[np.unique(votes.votes[rows])], minlength=len(ballots.counts))
    models, part = split_components(ballots.recount(counts))[0]
    rows = rows[np.isin(votes.first[rows], models)]
    if prior_ties := fit(part).prior_ties:      # a tie has a curvature of 1/4
        scale = 1 if penalty.reduction == "sum" else len(rows)
        penalty = penalty._replace(strengths=max(penalty.strengths, prior_ties / 4 / scale))
    found = fit_style(np.searchsorted(models, votes.first[rows]),
                      np.searchsorted(models, votes.second[rows]), votes.scores[rows],
                      style_differences(votes.styles[rows, 0], votes.styles[rows, 1]),
                      len(models), penalty)
    shift = next((part.shift for part in components if models[0] in part.models), 0.0)
    return {"comparisons": len(rows), "penalty": penalty._asdict(),
            "interval": "posterior" if penalty.strengths else "sandwich",
            "coefficients": {name: {"value": value, "low": low, "high": high}
                             for name, value, (low, high) in zip(
                                 MEASURES, found.coefficients, found.coefficient_bounds)},
            "ratings": {votes.models[model]: {"rating": rating + shift, "low": low + shift,
                                              "high": high + shift}
                        for model, rating, (low, high) in zip(
                            models, found.ratings, found.bounds)}}


def _rate_some(ballots: Ballots, numbers: np.ndarray, ratings: np.ndarray,
               kept: np.ndarray) -> tuple[np.ndarray, Fit, float]:
    """Models that most of some votes connect, their fit, and the shift that gives them the mean of
    their ratings by all votes; of a mask of votes of which one is kept, [votes]."""
    counts = np.bincount(numbers[kept], minlength=len(ballots.counts))
    models, part = split_components(ballots.recount(counts))[0]
    return models, fit(part), float(np.mean(ratings[models])) - CENTRE


def _quality(votes: Votes, rate_some: RateSome, ratings: np.ndarray,
             settings: Settings) -> dict[str, Any]:
    """Suspicious votes, the voters, their agreement, and what the ratings are without these votes.

    Returns:
        `repeated`, `instant`: counts, None where voters, prompts or times are not known;
        `without`: ratings without them, and `largest_shift`; `voters`; `agreement`.
    """
    known_secs = np.isfinite(votes.secs)
    suspicious = {"repeated": find_repeated(votes),
                  "instant": known_secs & (np.nan_to_num(votes.secs) < settings.instant_secs)}
    is_known = {"repeated": bool((votes.annotator >= 0).any() and (votes.items >= 0).any()),
                "instant": bool(known_secs.any())}
    found: dict[str, Any] = {name: int(mask.sum()) if is_known[name] else None
                             for name, mask in suspicious.items()}
    is_suspicious = np.any(list(suspicious.values()), axis=0)
    if is_suspicious.any() and not is_suspicious.all():
        models, fitted, shift = rate_some(~is_suspicious)
        without = fitted.ratings() + shift
        found["without"] = {votes.models[i]: rating for i, rating in zip(models, without)}
        found["largest_shift"] = float(np.abs(without - ratings[models]).max())
    return found | {"instant_secs": settings.instant_secs,
                    "without_voter": int(np.sum(votes.annotator < 0)),
                    "voters": describe_voters(votes, suspicious),
                    "agreement": measure_voters(votes, Bootstrap(
                        settings.seed, min(settings.num_samples, VOTER_SAMPLES)))}


def _categories(votes: Votes, rate_some: RateSome) -> dict[str, Any]:
    """Ratings by category, of the models that most of its votes connect.

    Their mean is that of the same models' overall ratings, so that a difference is one of the
    category. `unconnected` are models that its other votes name.
    """
    found = {}
    for number, name in enumerate(votes.categories):
        kept = votes.category == number
        models, fitted, shift = rate_some(kept)
        rows = kept[votes.votes]
        named = np.unique(np.concatenate([votes.first[rows], votes.second[rows]]))
        found[name] = {
            "votes": int(kept.sum()), "interval": fitted.interval,
            "ratings": {votes.models[i]: {"rating": rating + shift, "low": low + shift,
                                          "high": high + shift}
                        for i, rating, (low, high) in zip(models, fitted.ratings(),
                                                          fitted.bounds())},
            "unconnected": [votes.models[i] for i in np.setdiff1d(named, models)]}
    return found


def _next_pairs(votes: Votes, ballots: Ballots,
                components: Sequence[Component]) -> list[dict[str, Any]]:
    """The pairs whose next vote tells most, with gains in nats and shares of a draw in proportion.
    """
    strengths = np.zeros(len(votes.models))
    for part in components:
        strengths[part.models] = part.fit.strengths
    gains = information_gains(ballots, strengths)
    shares, games = pair_probabilities(gains), ballots.wins()
    games = games + games.T
    best = np.argsort(-shares, axis=None, kind="stable")[:NUM_NEXT]
    return [{"models": [votes.models[i], votes.models[j]], "gain_nats": gains[i, j],
             "probability": shares[i, j], "games": int(games[i, j])}
            for i, j in zip(*np.unravel_index(best, shares.shape)) if i < j]


def _over_time(votes: Votes, ballots: Ballots, numbers: np.ndarray,
               ratings: np.ndarray) -> dict[str, Any]:
    """Ratings after parts of the votes, in the order of time, or of the file.

    Returns:
        `by`: time where every vote has one, else file; `votes`, how many; `ratings` and `elo`, by
        model, None before most of the votes connect a model; `elo_now`, an array [models].
    """
    by_time = bool(np.isfinite(votes.times).all())
    order = np.argsort(votes.times, kind="stable") if by_time else np.arange(votes.num_votes)
    marks = np.unique(np.linspace(0, votes.num_votes, NUM_MARKS + 1).astype(int)[1:])
    marks = marks[marks > 0]
    places = np.argsort(order)[votes.votes]         # of each comparison's vote in that order
    rows = np.argsort(places, kind="stable")
    elo = online_elo(votes.first[rows], votes.second[rows], votes.scores[rows],
                     len(votes.models), np.searchsorted(places[rows], marks).tolist())
    rated = ratings_over_time(ballots, numbers[order], ratings, marks.tolist())
    return {"by": "time" if by_time else "file", "votes": marks.tolist(),
            "ratings": {name: rated[:, i] for i, name in enumerate(votes.models)},
            "elo": {name: elo[:, i] for i, name in enumerate(votes.models)}, "elo_now": elo[-1]}
