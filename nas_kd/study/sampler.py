"""A sampler that knows what is cheap: MACs are exact for any arch, only quality has to be guessed.

A Gaussian process predicts the quality objective (bd_rate or rd_cost) of archs, others the energy or latency where it
is an objective; of the few best, the energy model of the readings so far has a say too (energy_guess.py). Candidates
(random archs, mutations and crossings of the front, then the best ones' neighbours) are ranked by expected hypervolume
improvement, in closed form (acquisition.py), times the chance of being feasible. Infeasible trials teach that
chance by the decibels they lack, stopped ones the quality by their loss at the
rung; trials under way count as if they had ended as predicted.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState
from scipy.special import log_ndtr

from nas_kd.codec.arch import Arch, Choice
from nas_kd.codec.macs import ArchCost
from nas_kd.codec.search_space import SearchSpace, even_step
from nas_kd.objectives import BD_RATES, MEASURED, TABLE, of_kind
from nas_kd.reasons import OVER_LIMIT
from nas_kd.study.acquisition import log_expected_improvement
from nas_kd.study.energy_guess import EnergyGuess
from nas_kd.study.front import pareto_front
from nas_kd.study.record import record
from nas_kd.study.settings import QUALITY, checked
from nas_kd.study.storage import lined_up
from nas_kd.study.surrogate import Features, Surrogate

START = 8
"""Trials with values before the model is asked; until then the ends of the space and archs far from all tried."""
RANDOM, MUTATED, CLIMBERS, CLIMBS = 300, 500, 8, 3
"""Candidates: random ones, those made of the front, and how many of the best climb how far."""
FEW = 2000
"""Spaces up to this size are candidates as a whole."""
NODES, WEIGHTS = np.sqrt(3.0) * np.array([-1.0, 0.0, 1.0]), np.array([1.0, 4.0, 1.0]) / 6
"""Gauss-Hermite quadrature of a normal variable in three points."""
MIN_PAIRS = 4
"""Trials that a rung's loss must be known of, beside their quality, to predict the one from the other."""

Params = dict[str, Choice]


def distributions(space: SearchSpace) -> dict[str, BaseDistribution]:
    """What ``SearchSpace.suggest`` asks a trial for."""
    found: dict[str, BaseDistribution] = {}
    for name, choices in space.vary.items():
        step = even_step(choices)
        found[name] = (
            IntDistribution(int(choices[0]), int(choices[-1]), step=step)
            if step
            else CategoricalDistribution(list(choices))
        )
    return found


@dataclass
class History:
    """What is known of the archs tried so far, or of another study's.

    quality: value and its extra standard deviation by arch. costs: of each measured objective by arch. lacks:
    decibels missing, 0 where feasible. ratios: of each limit the logarithm of cost over limit. pending: under way.
    taken: not to be proposed.
    """

    quality: dict[Arch, tuple[float, float]] = field(default_factory=dict)
    costs: dict[str, dict[Arch, float]] = field(default_factory=dict)
    lacks: dict[Arch, float] = field(default_factory=dict)
    ratios: dict[str, dict[Arch, float]] = field(default_factory=dict)
    pending: list[Arch] = field(default_factory=list)
    taken: set[Arch] = field(default_factory=set)

    @classmethod
    def from_rows(cls, rows: list[dict[str, Any]]) -> History:
        """Of what ``prior.take_over`` kept; its archs may lie outside the space."""
        found = cls()
        for row in rows:
            arch = Arch.from_json(row["arch"])
            if row["quality"] is not None:
                found.quality[arch] = row["quality"], 0.0
            # Rows that an earlier version kept know of one energy alone.
            for name, value in row.get("costs", {"energy": row.get("energy")}).items():
                if value is not None:
                    found.costs.setdefault(name, {})[arch] = value
            if row["lacks"] is not None:
                found.lacks[arch] = row["lacks"]
        return found


class ExactCost(optuna.samplers.BaseSampler):
    """Proposes archs of a space that were not tried, by expected hypervolume improvement.

    Args:
        space: what may vary.
        objectives: the study's; one of QUALITY, and up to two costs.
        seed: decides the proposal, together with the trials.
        features: of this space, kept between proposals.
        over: how far an arch is over a limit that needs no measuring; above 0 it is never proposed.
        before: another study's trials.
    """

    def __init__(
        self,
        space: SearchSpace,
        objectives: tuple[str, ...],
        seed: int,
        features: Features,
        over: Callable[[Arch], float] = lambda arch: 0.0,
        before: History | None = None,
    ):
        checked("exact-cost", objectives)
        self.space, self.objectives, self.features, self.over = space, objectives, features, over
        self.quality = next(i for i, name in enumerate(objectives) if name in QUALITY)
        self.costs = [name for name in objectives if name not in QUALITY]
        self.before = before
        self.seed, self.random = seed, np.random.default_rng(seed)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """The whole space, always."""
        return distributions(self.space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, name: str, distribution: BaseDistribution
    ) -> Any:
        """A random choice; asked only for names that are not the space's."""
        return optuna.samplers.RandomSampler(self.seed).sample_independent(
            study, trial, name, distribution
        )

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The next arch."""
        trials = [t for t in study.get_trials(deepcopy=False) if t.number != trial.number]
        return self.propose(history_of(trials, self.space, self.quality))

    def propose(self, history: History) -> Params:
        """The choices of the most promising arch that was not tried; a random one where all were."""
        if len(history.quality) < START and (self.before is None or not self.before.quality):
            return self._far(history)
        model = _Model(self, history)
        pool = self._candidates(history, model.front)
        if not pool:
            return self._random()
        archs = list(pool)
        score = model.score(archs)
        for _ in range(0 if self.space.size <= FEW else CLIMBS):
            best = [archs[i] for i in np.argsort(-score, kind="stable")[:CLIMBERS]]
            near = (n for arch in best for n in self._neighbours(pool[arch]))
            fresh = self._fresh(near, history.taken | pool.keys())
            if not fresh:
                break
            pool |= fresh
            archs, score = [*archs, *fresh], np.append(score, model.score(list(fresh)))
        best = [archs[i] for i in np.argsort(-score, kind="stable")[:CLIMBERS]]
        return pool[model.chosen(best)]

    # --- candidates ---------------------------------------------------------------------------

    def _candidates(self, history: History, front: list[Arch]) -> dict[Arch, Params]:
        if self.space.size <= FEW:
            return self._fresh(self.space.grid(), history.taken)
        parents = [p for p in map(self.space.params_of, front) if p is not None]
        made = [self._random() for _ in range(RANDOM if parents else RANDOM + MUTATED)]
        made += [self._child(parents) for _ in range(MUTATED if parents else 0)]
        return self._fresh(made, history.taken)

    def _fresh(self, many: Iterable[Params], taken: set[Arch]) -> dict[Arch, Params]:
        """Those that were not tried and are under every limit, by arch."""
        found: dict[Arch, Params] = {}
        for params in many:
            arch = self.space.arch(params)
            if arch not in taken and arch not in found and self.over(arch) <= 0:
                found[arch] = params
        return found

    def _random(self) -> Params:
        return {name: c[self.random.integers(len(c))] for name, c in self.space.vary.items()}

    def _child(self, parents: list[Params]) -> Params:
        one, other = (parents[self.random.integers(len(parents))] for _ in range(2))
        crossed = self.random.random() < 0.5
        child = {
            name: (other if crossed and self.random.random() < 0.5 else one)[name]
            for name in self.space.vary
        }
        free = [name for name, choices in self.space.vary.items() if len(choices) > 1]
        changes = min(int(self.random.geometric(0.5)), len(free))
        for name in self.random.choice(free, changes, replace=False):
            choices = self.space.vary[str(name)]
            child[str(name)] = choices[self.random.integers(len(choices))]
        return child

    def _neighbours(self, params: Params) -> Iterable[Params]:
        for name, choices in self.space.vary.items():
            yield from (params | {name: c} for c in choices if c != params[name])

    def _far(self, history: History) -> Params:
        """The ends of the space first, in size; then of some random archs the one farthest from all tried."""
        ends = self._fresh(self.space.ends(), history.taken)
        if ends:
            return next(iter(ends.values()))
        few = self.space.size <= FEW
        many = self.space.grid() if few else (self._random() for _ in range(RANDOM))
        pool = self._fresh(many, history.taken)
        if not pool:
            return self._random()
        archs = list(pool)
        if not history.taken:
            return pool[archs[self.random.integers(len(archs))]]
        x = np.array([self.features.of(arch) for arch in archs])
        # In the order of the trials: a set's differs between processes.
        there = np.array(sorted(tuple(self.features.of(arch)) for arch in history.taken))
        distance = np.square(x[:, None] - there[None]).sum(axis=2).min(axis=1)
        return pool[archs[int(np.argmax(distance))]]


def make_sampler(
    name: str,
    space: SearchSpace,
    objectives: tuple[str, ...],
    seed: int,
    over: Callable[[Arch], float] = lambda arch: 0.0,
    before: History | None = None,
) -> optuna.samplers.BaseSampler:
    """A sampler by its name, for one proposal; what is behind ``over`` and ``before`` only ours can use."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        match checked(name, objectives):
            case "gp":
                return optuna.samplers.GPSampler(seed=seed)
            case "tpe":
                return optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)
            case "nsga2":
                return optuna.samplers.NSGAIISampler(seed=seed)
            case "random":
                return optuna.samplers.RandomSampler(seed)
    return ExactCost(space, objectives, seed, features_of(space), over, before)


def features_of(space: SearchSpace) -> Features:
    """The features of a space, kept for the process."""
    if space.fingerprint not in _FEATURES:
        _FEATURES[space.fingerprint] = Features(space)
    return _FEATURES[space.fingerprint]


_FEATURES: dict[str, Features] = {}


# --- what the trials say ------------------------------------------------------------------------


def history_of(trials: list[FrozenTrial], space: SearchSpace, quality: int) -> History:
    """What the trials of a study say of its archs; ``quality`` is the place of that objective."""
    found, stopped = History(), list[tuple[Arch, FrozenTrial]]()
    for trial in trials:
        params = lined_up(trial) | trial.params
        if trial.state == TrialState.FAIL or not set(space.vary) <= set(params):
            continue
        arch, known = space.arch({name: params[name] for name in space.vary}), record(trial)
        found.taken.add(arch)
        for name in of_kind(tuple(TABLE), *MEASURED):
            if value := known.measured(name):
                found.costs.setdefault(name, {})[arch] = value
        for name, ratio in known.limit_ratios.items():
            found.ratios.setdefault(name, {})[arch] = float(np.log(ratio))
        if trial.state == TrialState.COMPLETE:
            found.quality[arch], found.lacks[arch] = (trial.values[quality], 0.0), 0.0
        elif trial.state == TrialState.RUNNING:
            found.pending.append(arch)
        elif known.quality:
            (value,) = known.quality.values()
            found.quality[arch], found.lacks[arch] = (value, 0.0), 0.0
        elif trial.state == TrialState.PRUNED and known.rungs:
            stopped.append((arch, trial))
        elif trial.state == TrialState.PRUNED and known.reason not in OVER_LIMIT:
            found.lacks[arch] = known.short_db or np.nan
    found.quality |= _guessed(stopped, trials, quality)
    return found


def _guessed(
    stopped: list[tuple[Arch, FrozenTrial]], trials: list[FrozenTrial], quality: int
) -> dict[Arch, tuple[float, float]]:
    """Quality of stopped trials from their loss at the last rung, by regression over those that went on."""
    found: dict[Arch, tuple[float, float]] = {}
    done = [t for t in trials if t.state == TrialState.COMPLETE]
    values = [t.values[quality] for t in done]
    passed = [record(t).rungs for t in done]
    for arch, trial in stopped:
        reached = record(trial).rungs
        step = max(reached, key=int)
        pairs = [
            (rungs[step][0], value)
            for rungs, value in zip(passed, values, strict=True)
            if step in rungs
        ]
        loss = reached[step][0]
        if len(pairs) >= MIN_PAIRS and np.ptp([a for a, _ in pairs]) > 0:
            slope, offset = np.polyfit([a for a, _ in pairs], [value for _, value in pairs], 1)
            rest = np.array([value - slope * a - offset for a, value in pairs])
            found[arch] = float(slope * loss + offset), float(np.std(rest))
        elif values:
            found[arch] = float(max(values)), float(np.std(values))
    return found


class _Model:
    """The surrogates of one proposal."""

    def __init__(self, sampler: ExactCost, history: History):
        self.sampler, self.history = sampler, history
        self.features, seed = sampler.features, sampler.seed
        self.shift = 0.0
        self.percent = sampler.objectives[sampler.quality] in BD_RATES
        archs, y, noise = self._quality(sampler.before)
        self.rates = Surrogate(self._x(archs), self._log(y), noise / self._ratio(y), seed)
        before = sampler.before or History()
        self.measured = {name: self._log_cost(name, before) for name in sampler.costs}
        self.works: dict[str, EnergyGuess | None] = {}
        self.lacks = self._of(_signed(before.lacks | history.lacks))
        self.limits = [
            self._of(r) for r in history.ratios.values() if any(v > 0 for v in r.values())
        ]
        self._points(archs)

    def _ratio(self, values: np.ndarray) -> np.ndarray:
        """Rate over the anchor's where the quality is a BD-rate in per cent (above -100); else itself."""
        return 100 + values if self.percent else values

    def _log(self, values: np.ndarray) -> np.ndarray:
        """What the process models: effects on a rate are ratios."""
        return np.log(np.maximum(self._ratio(values), 1e-9))

    def quality(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the quality, in its own unit [n] each."""
        mean, sd = self.rates.predict(x)
        ratio = np.exp(mean)
        return ratio - 100 if self.percent else ratio, ratio * sd

    def _quality(self, before: History | None) -> tuple[list[Arch], np.ndarray, np.ndarray]:
        own = self.history.quality
        rows = [(arch, value, sd) for arch, (value, sd) in own.items()]
        if before is not None and before.quality:
            rows += self._carried(before.quality)
        archs, y, noise = zip(*rows, strict=True)
        return list(archs), np.array(y), np.array(noise)

    def _carried(self, before: dict[Arch, tuple[float, float]]) -> list[tuple[Arch, float, float]]:
        """Another study's values, moved by the mean difference on what both know, doubted by its spread."""
        own = self.history.quality
        there = list(before)
        y, noise = np.array([before[a][0] for a in there]), np.array([before[a][1] for a in there])
        shift, doubt = 0.0, float(np.std(y))
        if own and len(there) > 1:
            model = Surrogate(self._x(there), y, noise, self.sampler.seed)
            gap = np.array([v for v, _ in own.values()]) - model.predict(self._x(list(own)))[0]
            shift = float(np.mean(gap))
            doubt = float(np.std(gap)) if len(gap) > 2 else doubt
        new = [(a, v, s) for a, v, s in zip(there, y, noise, strict=True) if a not in own]
        return [(a, float(v + shift), float(np.hypot(s, doubt))) for a, v, s in new]

    def _of(self, values: dict[Arch, float]) -> Surrogate | None:
        if len(values) < 2:
            return None
        y = np.array(list(values.values()))
        return Surrogate(self._x(list(values)), y, np.zeros(len(y)), self.sampler.seed)

    def _x(self, archs: list[Arch]) -> np.ndarray:
        return np.array([self.features.of(arch) for arch in archs])

    def _costs(self, archs: list[Arch], node: float = 0.0) -> np.ndarray:
        """The cost objectives [n, c]; an energy not measured yet at ``node`` deviations from its mean."""
        columns = []
        for name in self.sampler.costs:
            if TABLE[name].kind == "counted":
                columns.append([counted(name, self.features.cost(a)) for a in archs])
            else:
                columns.append(self._guessed(name, archs, node))
        return np.array(columns, float).reshape(len(columns), len(archs)).T

    def _log_cost(self, name: str, before: History) -> Surrogate | None:
        known = before.costs.get(name, {}) | self.history.costs.get(name, {})
        return self._of({a: float(np.log(v)) for a, v in known.items()})

    def _guessed(self, name: str, archs: list[Arch], node: float) -> list[float]:
        known, model = self.history.costs.get(name, {}), self.measured[name]
        if model is None:
            return [known.get(a, 1.0) for a in archs]
        mean, sd = model.predict(self._x(archs))
        if (works := self.works.get(name)) is not None:
            mean, sd = works.joined(archs, mean, sd)
        guessed = np.exp(mean + node * sd)
        return [known.get(a, float(g)) for a, g in zip(archs, guessed, strict=True)]

    def _points(self, archs: list[Arch]) -> None:
        """Front and reference, by what the model thinks of each trial, noise taken off."""
        there = [*[a for a in archs if a in self.history.quality], *self.history.pending] or archs
        mean, _ = self.quality(self._x(there))
        points = np.column_stack([mean, self._costs(there)])
        members = pareto_front(points.tolist())
        self.front = [there[i] for i in members]
        self.points = points[members]
        worst, best = points.max(axis=0), points.min(axis=0)
        extent = np.where(worst > best, worst - best, np.abs(worst) + 1e-9)
        # The front runs from the cheapest arch to the best one, neither of which may have been tried.
        ends = [self.sampler.space.extreme(False), self.sampler.space.extreme(True)]
        reached = np.column_stack([self.quality(self._x(ends))[0], self._costs(ends)])
        reached[:, 0] = np.minimum(reached[:, 0], worst[0] + extent[0])
        self.reference = np.maximum(worst, reached.max(axis=0)) + 0.1 * extent

    def chosen(self, best: list[Arch]) -> Arch:
        """Of a few, best first, the most promising one; their energies are guessed by what they compute as well."""
        known = self.history.costs
        self.works = {
            name: EnergyGuess.of(known.get(name, {}), TABLE[name].part)
            for name in self.sampler.costs
            if TABLE[name].kind == "energy"
        }
        if not any(self.works.values()):
            return best[0]
        return best[int(np.argmax(self.score(best)))]

    def score(self, archs: list[Arch]) -> np.ndarray:
        """Logarithm of the expected hypervolume improvement times the chance to be feasible [n]."""
        x = self._x(archs)
        mean, sd = self.quality(x)
        total = np.full(len(archs), -np.inf)
        uncertain = any(model is not None for model in self.measured.values())
        for node, weight in zip(NODES, WEIGHTS, strict=True) if uncertain else ((0.0, 1.0),):
            costs = self._costs(archs, float(node))
            found = log_expected_improvement(mean, sd, costs, self.points, self.reference)
            total = np.logaddexp(total, np.log(weight) + found)
        for model in (self.lacks, *self.limits):
            if model is not None:
                level, doubt = model.predict(x)
                total += log_ndtr(-level / doubt)
        return total


def counted(name: str, cost: ArchCost) -> float:
    """An arch's value in an objective of that kind."""
    side = cost.decoder if TABLE[name].part == "decoder" else cost.total
    return float(side.parameters if name == "params" else side.macs)


def _signed(lacks: dict[Arch, float]) -> dict[Arch, float]:
    """Decibels missing; where none are, as far below zero as is usual above: only the sign is known there."""
    known = [v for v in lacks.values() if v > 0]
    if not known and not any(np.isnan(v) for v in lacks.values()):
        return {}
    usual = float(np.median(known)) if known else 1.0
    return {a: usual if np.isnan(v) else v or -usual for a, v in lacks.items()}
