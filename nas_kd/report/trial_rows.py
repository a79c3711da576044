"""A study's trials as the report's page takes them: a row of the table, facts, points and parts of each."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from nas_kd.codec.cost import Cost
from nas_kd.reasons import Reason
from nas_kd.study.record import record
from nas_kd.study.settings import KNOWN_OBJECTIVES
from nas_kd.study.study import Study
from nas_kd.study.uncertainty import EXACT, UNITS, uncertainty_of, value_of

STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "infeasible",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


def columns(study: Study) -> list[dict[str, Any]]:
    """Of the table: name, decimals where it holds numbers, and whether it is in the CSV alone."""
    found: list[dict[str, Any]] = [
        {"name": "trial", "digits": 0},
        {"name": "state", "digits": None},
    ]
    found += [{"name": said, "digits": 2} for said, _ in _figures(study)]
    found += [{"name": name, "digits": 2} for name in ("enc kMAC/px", "dec kMAC/px")]
    found += [{"name": "params M", "digits": 3}, {"name": "seconds", "digits": 0}]
    found += [{"name": name, "digits": None} for name in ("reason", *study.space.vary)]
    return [*found, {"name": "arch", "digits": None, "hidden": True}]  # and by a click


Figure = Callable[[FrozenTrial], float | None]


def _figures(study: Study) -> list[tuple[str, Figure]]:
    """The columns of objectives: each value, and beside it its bar where one may have one."""
    found: list[tuple[str, Figure]] = []
    for name in _columns(study):
        found.append((UNITS[name], partial(value_of, study, name=name)))
        if name not in EXACT and name != "rd_cost":
            found.append((f"± {UNITS[name]}", partial(uncertainty_of, study, name=name)))
    return found


def _columns(study: Study) -> list[str]:
    searched = study.settings.objectives
    return [name for name in KNOWN_OBJECTIVES if name in searched or name == "flops"]


def entry(study: Study, trial: FrozenTrial, member: bool) -> dict[str, Any]:
    """All that the page knows of one trial."""
    known = record(trial)
    cost, rd = known.cost, known.rd
    arch = str(known.arch) if known.begun else ""
    values = [figure(trial) for _, figure in _figures(study)]
    costs: list[float | None] = [None, None, None]
    if cost is not None:
        sides = [macs / cost.pixels / 1e3 for macs in (cost.encoder_macs, cost.decoder_macs)]
        costs = [*sides, cost.parameters / 1e6]
    spent = sum(known.seconds.values()) if known.seconds else None
    state, reason = _state(trial), _reason(study, trial)
    chosen = [trial.params.get(name) for name in study.space.vary]
    return {
        "number": trial.number,
        "front": member,
        "row": [trial.number, state, *values, *costs, spent, reason, *chosen, arch],
        "facts": _facts(study, trial, member, arch),
        "rd": None if rd is None else list(zip(rd.mean_rate, rd.mean_psnr_db, strict=True)),
        "parts": _parts(cost) if cost else None,
    }


def _state(trial: FrozenTrial) -> str:
    return "not read" if record(trial).reason == Reason.DOMINATED else STATES[trial.state]


def _reason(study: Study, trial: FrozenTrial) -> str:
    known = record(trial)
    if known.same_as is not None:
        return f"same arch as trial {known.same_as}"
    again = [t.number for t in study.trials if record(t).retry_of == trial.number]
    said = known.said or (Reason.INTERRUPTED if again else "")
    return f"{said}, again as trial {again[0]}" if again else said


def _facts(study: Study, trial: FrozenTrial, member: bool, arch: str) -> list[tuple[str, str]]:
    known = record(trial)
    found = [("state", _state(trial) + (", on the front" if member else ""))]
    if reason := _reason(study, trial):
        found.append(("reason", f"{reason}: {known.message}" if known.message else reason))
    for name in _columns(study):
        value, bar = value_of(study, trial, name), uncertainty_of(study, trial, name)
        if value is not None:
            found.append(
                (UNITS[name], f"{value:.2f}" + (f" ± {bar:.2f}" if bar is not None else ""))
            )
    if known.cost is not None:
        found.append(("parameters", f"{known.cost.parameters:,}"))
    found += [
        ("dimensions", ", ".join(f"{k} {v}" for k, v in trial.params.items())),
        ("arch", arch),
    ]
    if known.seconds:
        spent = ", ".join(f"{name} {s:.1f} s" for name, s in known.seconds.items())
        found.append(("time", spent))
    return found


def _parts(cost: Cost) -> list[tuple[str, int, float]]:
    parts = sorted(cost.parts.items(), key=lambda part: -part[1])
    return [(name, macs, macs / cost.macs) for name, macs in parts if macs]
