"""The first of two rounds: many archs are scored straight from their slices, the best are trained.

A score from a slice costs an evaluation and no training; the archs are ordered by non-dominated sorting on
the rate-distortion cost of the slice and the MACs of the arch (successive_halving.ranks).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import chain

from nas_kd.codec.arch import Arch, Choice
from nas_kd.codec.macs import arch_cost
from nas_kd.codec.search_space import SearchSpace, load_space
from nas_kd.errors import NasKdError
from nas_kd.evaluation.rate_distortion import StudentCodec, evaluate
from nas_kd.seeds import derived_seed
from nas_kd.study.events import Listen
from nas_kd.study.record import Lost
from nas_kd.study.study import Study
from nas_kd.study.successive_halving import ranks
from nas_kd.study.trial import Task, rd_cost

DRAWS_PER_ARCH = 20
"""Draws after which a space is taken to hold no more archs."""


@dataclass(frozen=True)
class Scored:
    """The arch of a point straight from its slice: its R-D cost in bits per pixel, and its MACs."""

    params: dict[str, Choice]
    rd_cost: float
    macs: int


Scores = Callable[[list[dict[str, Choice]]], Iterable[Scored | Lost]]
"""Scores points of a space straight from their slices (``score``), in order."""


def rank(study: Study, levels: int, scores: Scores, listen: Listen) -> None:
    """The first of two rounds, where the settings ask for one and it has not been done.

    Archs without a score are left out, and said. Raises NasKdError where their scoring was interrupted.
    """
    n = study.settings.rank
    if not n or study.ranked is not None:
        return
    limits = study.settings.limits
    archs = draws(study.space, n, study.settings.seed, lambda arch: limits.over(arch, levels))
    points = [params for arch in archs if (params := study.space.params_of(arch)) is not None]
    scored, lost = list[Scored](), list[Lost]()
    for done, found in enumerate(scores(points), start=1):
        if isinstance(found, Lost):
            lost.append(found)
        else:
            scored.append(found)
        if done % 10 == 0 or done == len(points):
            listen("preparing", _said(done, len(points), lost))
    if broken := [one.message for one in lost if one.was_interrupted]:
        raise NasKdError(
            f"ranking was interrupted ({broken[0]}); mend that and run the same command again"
        )
    study.keep_ranked([asdict(one) for one in in_order(scored)])


def _said(done: int, total: int, lost: list[Lost]) -> str:
    said = f"ranked by their slices: {done} of {total} archs"
    if lost:
        said += f", {len(lost)} left out {lost[0].said}"
    return said


def draws(
    space: SearchSpace, n: int, seed: int, over: Callable[[Arch], float] = lambda arch: 0.0
) -> list[Arch]:
    """Up to ``n`` different archs over no limit: its ends, then random ones; fewer where there are no more."""
    found: dict[str, Arch] = {}
    random = (space.draw(derived_seed(seed, "rank", i)) for i in range(n * DRAWS_PER_ARCH))
    for arch in chain(map(space.arch, space.ends()), random):
        if over(arch) <= 0:
            found.setdefault(arch.key, arch)
        if len(found) == n:
            break
    return list(found.values())


def score(task: Task, space: str, point: dict[str, Choice]) -> Scored:
    """The arch of a point straight from its slice; the task must hold shared weights."""
    assert task.shared is not None
    arch = load_space(space).arch(point)
    measured = evaluate(StudentCodec(task.shared.student(arch)), task.eval_images, task.device)
    macs = arch_cost(arch, len(task.lmbdas)).total.macs
    return Scored(point, rd_cost(measured, task.lmbdas), macs)


def in_order(scored: Sequence[Scored]) -> list[Scored]:
    """Scores, best first: by layer of the front of ``rd_cost`` and ``macs``."""
    places = ranks([(s.rd_cost, float(s.macs)) for s in scored]) if scored else []
    return [s for _, s in sorted(zip(places, scored, strict=True), key=lambda pair: pair[0])]
