"""Energy readings on simulated devices, whose true energies are known, and the share of a search that they take.

Only used by ``benchmarks/energy.py``. The figures of the scheme before lie in ``results/energy/before.json``: that
code on the same devices (5 s of quiet, 5 of rest, 5 of warm-up, three windows of 5 s for each arch).
"""

import json
import random
import statistics
from dataclasses import dataclass
from pathlib import Path

from nas_kd.measurement.calibration import calibrate
from nas_kd.measurement.energy import QUICK, Session, measured_twice_at_most
from nas_kd.testing.fakes import FakeMeter, LivelyDevice

BEFORE = Path(__file__).parent / "results" / "energy" / "before.json"
PART_TIME = {"update_ms": 100, "looks_ms": 25, "late_w": 150}
CASES = {
    "counter of 20 ms": {"update_ms": 20},
    "counter of 50 ms": {"update_ms": 50},
    "counter of 100 ms": {"update_ms": 100},
    "25 of 100 ms seen": {**PART_TIME, "iteration_ms": 3.7},
    "25 of 100 ms seen, exact resonance": {**PART_TIME, "iteration_ms": 4},
    "25 of 100 ms seen, pass of 40 ms": {**PART_TIME, "iteration_ms": 40},
    "uneven pass of 230 ms": {"update_ms": 20, "late_w": 150, "iteration_ms": 230},
    "power trembles by 3 %": {"update_ms": 20, "tremble": 0.03},
    "power trembles by 10 %": {"update_ms": 20, "tremble": 0.10},
    "chip of 3 s, 8 % less when cold": {"drift": 0.08, "tau_s": 3},
    "chip of 20 s, 8 % less when cold": {"drift": 0.08, "tau_s": 20},
    "the same, cold at first": {"drift": 0.08, "tau_s": 20, "heat": 0.0},
    "clock steps in the first seconds": {"clocks": ((2.5, 0.9), (4.0, 0.8))},
    "neighbour from 4 to 9 s": {"neighbours": ((4.0, 9.0, 80),)},
}
SEEDS, READINGS, TRAINING_S = 5, 3, 5.0


@dataclass
class Rig:
    """A simulated device, its meter, and the true energy of a pass."""

    device: LivelyDevice
    meter: FakeMeter
    true_mj: float


def rig(case: dict, seed: int) -> Rig:
    given = {"iteration_ms": 4, "update_ms": 20, "tau_s": 20, "seed": seed} | case
    heat = given.pop("heat", 1.0)
    device = LivelyDevice(**given)
    device.heat = heat
    mean_w = (device.load_w + (device.late_w or device.load_w)) / 2
    share = device.clocks[-1][1] if device.clocks else 1.0
    part_time = None if device.looks_us < device.update_us else False
    meter = FakeMeter(device, conditions=device.conditions, part_time=part_time)
    return Rig(device, meter, mean_w * given["iteration_ms"] * share)


def known_of(case: dict):
    """The calibration of a calm twin, and the seconds it took."""
    calm = {k: v for k, v in case.items() if k in ("update_ms", "looks_ms", "late_w")}
    twin = rig(calm | {"iteration_ms": 1}, 0)
    work = {"synchronise": twin.device.synchronise, "timing": twin.device.timing}
    return calibrate(twin.meter, twin.device.iteration, **work), twin.device.clock()


def after(case: dict, seed: int, known):
    """Reading and seconds of several archs, each in a session of its own after some seconds of training."""
    one, seen = rig(case, seed), None
    work = {"synchronise": one.device.synchronise, "timing": one.device.timing}
    one.device.sleep(0.013 * seed)
    for place in range(READINGS):
        session = Session(one.meter, known=known, seen=seen, **work)
        begun_s = one.device.clock()
        reading = measured_twice_at_most(
            lambda: session.read(one.device.iteration, QUICK, seed=READINGS * seed + place)  # noqa: B023
        )
        yield reading, one.device.clock() - begun_s, one.true_mj
        seen, resumed_s = session.seen, one.device.clock()
        while one.device.clock() - resumed_s < TRAINING_S:
            one.device.iteration()


def summary(found) -> dict:
    """Of (reading, seconds, true mJ): errors in percent, seconds of the first in a session and of the others."""
    errors = [100 * (r.value / true - 1) for r, _, true in found if r.value is not None]
    doubts = [100 * r.uncertainty / r.value for r, _, _ in found if r.value is not None]
    seconds = [s for _, s, _ in found]
    return {
        "mean_percent": round(statistics.fmean(errors), 2) if errors else None,
        "worst_percent": round(max(map(abs, errors)), 2) if errors else None,
        "uncertainty_percent": round(statistics.fmean(doubts), 2) if doubts else None,
        "first_s": round(statistics.fmean(seconds[::READINGS]), 1),
        "others_s": round(statistics.fmean(s for i, s in enumerate(seconds) if i % READINGS), 1),
        "measured": f"{len(errors)} of {len(found)}",
    }


def schemes() -> dict[str, dict]:
    """Before and after, case by case."""
    before = json.loads(BEFORE.read_text())
    rows = {}
    for name, case in CASES.items():
        known, calibrated_s = known_of(case)
        found = [one for seed in range(SEEDS) for one in after(case, seed, known)]
        own = summary(found) | {"calibration_s": round(calibrated_s, 1)}
        rows[name] = {"before": before["cases"][name], "after": own}
    return rows


SHOWN = ("worst_percent", "uncertainty_percent", "measured")


def in_markdown(rows: dict[str, dict]) -> list[str]:
    head = (
        "| simulated device | before: s | worst error % | doubt % | measured | "
        "now: s, first / then | worst error % | doubt % | measured |"
    )
    lines = [head, "|---|--:|--:|--:|--:|--:|--:|--:|--:|"]
    for name, row in rows.items():
        old, new = row["before"], row["after"]
        seconds = (f"{old['first_s']}", f"{new['first_s']} / {new['others_s']}")
        cells = [name]
        for said, found in zip(seconds, (old, new), strict=True):
            cells += [said, *(str(found[key]) for key in SHOWN)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def repeats(case: str = "power trembles by 3 %", count: int = 5) -> dict:
    """CV in percent and seconds of repeated readings of one arch in a session."""
    one, (known, _) = rig(CASES[case], 0), known_of(CASES[case])
    session = Session(
        one.meter, synchronise=one.device.synchronise, timing=one.device.timing, known=known
    )
    begun_s, values = one.device.clock(), []
    for seed in range(count):
        values.append(session.read(one.device.iteration, QUICK, seed=seed).value)
    return {
        "cv_percent": round(100 * statistics.stdev(values) / statistics.fmean(values), 2),
        "seconds_per_reading": round((one.device.clock() - begun_s) / count, 2),
    }


# ---------------------------------------------------------------- the share of a search


@dataclass(frozen=True)
class Search:
    """What trials take where they have the GPU alone (``train_s``), and what evaluation takes beside others."""

    trials: int = 200
    workers: int = 16
    train_s: float = 7.3  # 2,000 steps at 274 steps/s of 16 processes together, as on an H200
    evaluate_s: float = 1.0


def share_of_search(search: Search, reading_s: float, once_s: float, batched: bool) -> float:
    """Share of the wall time in which nothing trains because a reading has the device, or waits for it.

    Workers share the GPU evenly; a reading waits until evaluations under way have ended, and what waits then is
    measured in one session where ``batched``. ``once_s`` goes to what is found out once.
    """
    draw = random.Random(0)

    def work_s() -> float:
        return search.train_s * draw.uniform(0.9, 1.1)

    begun = min(search.workers, search.trials)
    left = {worker: work_s() for worker in range(begun)}
    evaluating: dict[int, float] = {}
    waiting: list[int] = []
    done, now_s, lost_s = 0, 0.0, once_s
    while done < search.trials:
        closed = bool(waiting)  # a reading that waits lets no training go on
        if closed and not evaluating:
            batch = waiting if batched else waiting[:1]
            lost_s += reading_s * len(batch)
            waiting = waiting[len(batch) :]
            done += len(batch)
            for worker in batch:
                if begun < search.trials:
                    begun += 1
                    left[worker] = work_s()
            continue
        rate = 0.0 if closed or not left else 1 / len(left)
        steps = [*evaluating.values(), *(s / rate for s in left.values() if rate)]
        step_s = min(steps)
        now_s += 0.0 if closed else step_s
        lost_s += step_s if closed else 0.0
        evaluating = {w: s - step_s for w, s in evaluating.items()}
        left = {w: s - step_s * rate for w, s in left.items()}
        waiting += [w for w, s in evaluating.items() if s <= 1e-9]
        evaluating = {w: s for w, s in evaluating.items() if s > 1e-9}
        evaluating |= {w: search.evaluate_s for w, s in left.items() if s <= 1e-9}
        left = {w: s for w, s in left.items() if s > 1e-9}
    return lost_s / (now_s + lost_s)


def shares(rows: dict[str, dict], case: str = "counter of 20 ms") -> dict[str, dict[str, float]]:
    """Before and after, by how long a trial trains."""
    old, new = rows[case]["before"], rows[case]["after"]
    found = {}
    for train_s in (7.3, 34.0, 74.0):
        search = Search(train_s=train_s)
        # Each worker looked for its sensor: 3 s of load and 40 periods of rest and of both.
        sensors_s = search.workers * (3 + 40 * 0.02 * (1 + 17 / 16))
        once_s = new["calibration_s"] + new["first_s"]
        found[f"{train_s:g} s of training"] = {
            "before": round(share_of_search(search, old["first_s"], sensors_s, False), 3),
            "after": round(share_of_search(search, new["others_s"], once_s, True), 3),
        }
    return found
