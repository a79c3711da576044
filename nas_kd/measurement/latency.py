"""Latency in ms: medians of single runs in interleaved rounds, rejected where rounds differ."""

import statistics
import time
from collections.abc import Callable, Mapping

from nas_kd.measurement.reading import Reading

RUNS = {"cuda": 50, "cpu": 20}
QUICK_RUNS = {"cuda": 20, "cpu": 3}
ROUNDS = 3
MIN_WARMUP_RUNS = 3
WARMUP_S = 0.5
MAX_DIFFERENCE = 0.05  # between the medians of rounds

Work = Callable[[], object]


def measure_latency(
    works: Mapping[str, Work],
    *,
    synchronise: Callable[[], None],
    runs: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Reading]:
    """Time several works side by side; ratios of them are those of one and the same quarter hour.

    Args:
        works: what is timed, by name.
        synchronise: waits for all that a work queued.
        runs: of each work in each of three rounds.
        clock: monotonic seconds.
    """

    def once_s(work: Work) -> float:
        synchronise()
        start_s = clock()
        work()
        synchronise()
        return clock() - start_s

    for work in works.values():
        start_s, warmed = clock(), 0
        while warmed < MIN_WARMUP_RUNS or clock() - start_s < WARMUP_S:
            once_s(work)
            warmed += 1
    times_ms: dict[str, list[list[float]]] = {name: [] for name in works}
    for _ in range(ROUNDS):
        for name, work in works.items():
            once_s(work)  # what ran before left its own data in the caches
            times_ms[name].append([1000 * once_s(work) for _ in range(runs)])
    return {name: _reading(rounds) for name, rounds in times_ms.items()}


def _reading(rounds_ms: list[list[float]]) -> Reading:
    medians_ms = [statistics.median(one) for one in rounds_ms]
    everything_ms = sorted(ms for one in rounds_ms for ms in one)
    tenth = (len(everything_ms) - 1) // 10
    median_ms = statistics.median(everything_ms)
    figures: dict[str, object] = {
        "median_ms": median_ms,
        "p10_ms": everything_ms[tenth],
        "p90_ms": everything_ms[-1 - tenth],
        "rounds_ms": medians_ms,
        "runs": len(everything_ms),
    }
    if (reason := _unsteady(medians_ms)) is not None:
        return Reading.rejected(reason, figures)
    doubt_ms = statistics.stdev(medians_ms) / len(medians_ms) ** 0.5
    return Reading.measured(median_ms, doubt_ms, "ms", "perf_counter", figures)


def latency_ratio(first: Reading, second: Reading) -> Reading:
    """How much longer the first takes: the ratio within rounds, whose drift cancels."""
    rounds = [(r.details or r.raw).get("rounds_ms") for r in (first, second)]
    if None in rounds:
        return Reading.unavailable(first.reason or second.reason or "no rounds to compare")
    ratios = [a / b for a, b in zip(*rounds, strict=True)]
    if (reason := _unsteady(ratios)) is not None:
        return Reading.rejected(reason, {"rounds": ratios})
    doubt = statistics.stdev(ratios) / len(ratios) ** 0.5
    return Reading.measured(
        statistics.median(ratios), doubt, "ratio", "perf_counter", {"rounds": ratios}
    )


def _unsteady(rounds: list[float]) -> str | None:
    difference = max(rounds) / min(rounds) - 1
    if difference <= MAX_DIFFERENCE:
        return None
    return (
        f"rounds differ by {difference:.1%}, more than {MAX_DIFFERENCE:.0%}: "
        "measure on a quiet machine"
    )
