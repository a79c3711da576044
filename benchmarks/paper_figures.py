"""What the studies of paper.py say: paired differences between forms of the loss, curves, and the paper's defects."""

from __future__ import annotations

import math
import statistics
import time
from collections import defaultdict
from typing import Any

import bjontegaard
import torch
from scipy.stats import t as student_t

from nas_kd.codec.arch import prim
from nas_kd.codec.checkpoint import load_student
from nas_kd.codec.student import Student
from nas_kd.data.images import open_images
from nas_kd.evaluation.bd_rate import RDCurve, bd_rate, quality_interval
from nas_kd.evaluation.rate_distortion import evaluate_real
from nas_kd.study.study import Study

CONFIDENCE = 0.95
FRAME = (1, 3, 256, 384)

Row = dict[str, Any]


def rows(part: str, seed: int, study: Study) -> list[Row]:
    """One row per trained student, of one lambda each."""
    settings = study.settings
    found = []
    for trial in study.trials:
        attrs = trial.user_attrs
        if "rd" not in attrs:
            continue
        found.append(
            {
                "part": part,
                "form": settings.name.removeprefix(f"{part}-s{seed}").removeprefix("-") or part,
                "seed": seed,
                "N": trial.params["N"],
                "lmbda": settings.lmbda or 0.025,
                "teacher": settings.teacher,
                "steps": settings.steps,
                "rd_cost": attrs["rd_cost"],
                "bpp_est": attrs["rd"]["bpp_est"][0],
                "psnr_db": attrs["rd"]["psnr_db"][0],
                "gmac": attrs["cost"]["macs"] / 1e9,
                "distil_s": attrs["seconds"]["distil"],
            }
        )
    return found


def summary(all_rows: list[Row]) -> dict[str, Any]:
    """Means and paired differences, by part of the plan."""
    sizes = [row for row in all_rows if row["part"] == "sizes"]
    control = {(r["N"], r["seed"]): r for r in sizes if r["form"] == "control"}
    paper = {(r["N"], r["seed"]): r for r in sizes if r["form"] == "paper"}
    sliced = {
        (r["N"], r["seed"]): r for r in all_rows if (r["part"], r["form"]) == ("slices", "control")
    }
    one = [row for row in all_rows if not row["part"].startswith("lambda")]
    return {
        "forms": [
            mean_row(group)
            | {
                "to_control": paired(group, control),
                "to_paper": paired(group, paper),
                "to_sliced_control": paired(group, sliced),
            }
            for group in by_form(one)
        ],
        "lambda": lambdas(all_rows),
    }


def by_form(some: list[Row]) -> list[list[Row]]:
    """Rows of one part, form and width together, which differ by their seed."""
    groups: dict[Any, list[Row]] = defaultdict(list)
    for row in some:
        groups[row["part"], row["form"], row["N"]].append(row)
    return list(groups.values())


def mean_row(group: list[Row]) -> dict[str, Any]:
    """Means over seeds."""
    figures = ("rd_cost", "bpp_est", "psnr_db")
    about = {key: group[0][key] for key in ("part", "form", "N", "gmac")}
    means = {name: statistics.mean(r[name] for r in group) for name in figures}
    return about | {"seeds": len(group)} | means


def paired(group: list[Row], others: dict[tuple[int, int], Row]) -> dict[str, Any] | None:
    """R-D cost against another form's at the same width and seed, in per cent, with its t interval."""
    pairs = [(r, others[r["N"], r["seed"]]) for r in group if (r["N"], r["seed"]) in others]
    percent = [100 * (math.exp(math.log(a["rd_cost"] / b["rd_cost"])) - 1) for a, b in pairs]
    return interval(percent)


def interval(values: list[float]) -> dict[str, Any] | None:
    """Mean, half the width of its t interval (null for one value), and the values."""
    if not values:
        return None
    n, half = len(values), None
    if n > 1:
        quantile = float(student_t.ppf((1 + CONFIDENCE) / 2, n - 1))
        half = quantile * statistics.stdev(values) / math.sqrt(n)
    return {"mean": statistics.mean(values), "half_width": half, "values": values}


def lambdas(all_rows: list[Row]) -> dict[str, Any]:
    """Curves over five lambdas, one model each, and BD-rates against the control's curve, per seed."""
    found: dict[str, Any] = {}
    mine = [r for r in all_rows if r["part"] in ("lambda", "lambda-control")]
    for seed in sorted({r["seed"] for r in mine}):
        curves = {
            name: curve([r for r in mine if r["seed"] == seed and key(r) == of])
            for name, of in NAMES.items()
        }
        costs = {
            name: {r["lmbda"]: r["rd_cost"] for r in mine if r["seed"] == seed and key(r) == of}
            for name, of in NAMES.items()
        }
        found[f"seed {seed}"] = {
            name: curve_json(one)
            | against(curves["control"], one)
            | {"to_control_percent": by_lambda(costs[name], costs["control"])}
            for name, one in curves.items()
        }
    return found


NAMES = {
    "teacher 5": ("lambda", "teacher-5"),
    "teacher 1": ("lambda", "teacher-1"),
    "control": ("lambda-control", "teacher-5"),
}
"""Curves over lambda: part of the plan, and beginning of the study's name."""


def key(row: Row) -> tuple[str, str]:
    """Which of NAMES a row belongs to."""
    return row["part"], row["form"][: len("teacher-5")]


def by_lambda(costs: dict[float, float], others: dict[float, float]) -> dict[str, Any] | None:
    """R-D cost against the control's at each lambda, in per cent, with the t interval over lambdas."""
    shared = sorted(costs.keys() & others.keys())
    return interval([100 * (costs[one] / others[one] - 1) for one in shared])


def curve(points: list[Row]) -> RDCurve:
    """The points of one curve by their lambda."""
    points = sorted(points, key=lambda r: r["lmbda"])
    return RDCurve(tuple(p["bpp_est"] for p in points), tuple(p["psnr_db"] for p in points))


def curve_json(one: RDCurve) -> dict[str, Any]:
    """Its points."""
    return {"bpp_est": list(one.bpp), "psnr_db": list(one.psnr_db)}


def against(anchor: RDCurve, one: RDCurve) -> dict[str, Any]:
    """BD-rate over the PSNR both curves have: ours, and by the cubic polynomial of the paper's code."""
    if len(anchor.bpp) < 4 or len(one.bpp) < 4:
        return {"bd_rate_percent": None, "reason": "too_few_points", "cubic_percent": None}
    if list(anchor.psnr_db) != sorted(anchor.psnr_db):
        return {"bd_rate_percent": None, "reason": "non_monotone", "cubic_percent": None}
    low = max(min(anchor.psnr_db), min(one.psnr_db))
    high = min(max(anchor.psnr_db), max(one.psnr_db))
    found = bd_rate(anchor, one, (low, high) if low < high else quality_interval(anchor))
    cubic = bjontegaard.bd_rate(
        anchor.bpp,
        anchor.psnr_db,
        one.bpp,
        one.psnr_db,
        method="cubic",
        require_matching_points=False,
    )
    return {
        "bd_rate_percent": found.value,
        "reason": found.reason,
        "cubic_percent": float(cubic),
        "interval_db": [low, high],
    }


def defects(done: list[Any], width: int, all_rows: list[Row]) -> dict[str, Any]:
    """Those of the paper's defects that need no training: coding, and what is timed."""
    study = next(s for part, _, s in done if s.settings.name.endswith("-paper"))
    trial = next(t for t in study.trials if t.params["N"] == width)
    return {
        "auxiliary_loss": without_auxiliary_loss(study, trial),
        "autograd": {str(N): autograd(N) for N in sorted({r["N"] for r in all_rows})},
    }


def without_auxiliary_loss(study: Study, trial: Any) -> dict[str, Any]:
    """Estimated and real rate of a student, with its quantiles as trained and as they were at first."""
    images = open_images(study.settings.eval_data, "eval")
    student = load_student(study.student_folder(trial))
    found = {"bpp_est": trial.user_attrs["rd"]["bpp_est"][0]}
    found["bpp"] = statistics.mean(evaluate_real(student, images).rate[0])
    with torch.no_grad():
        for module in student.modules():
            if isinstance(getattr(module, "quantiles", None), torch.nn.Parameter):
                scale = module.init_scale
                module.quantiles.copy_(
                    torch.tensor([-scale, 0.0, scale]).expand_as(module.quantiles)
                )
        student.update(force=True, update_quantiles=False)
    found["bpp_first_quantiles"] = statistics.mean(evaluate_real(student, images).rate[0])
    return found


def autograd(N: int, rounds: int = 7) -> dict[str, float]:
    """Milliseconds of a forward pass with autograd on and off, medians of interleaved rounds."""
    student, frame = Student(prim(N), (0.025,)).eval(), torch.rand(FRAME)
    times: dict[str, list[float]] = {"on": [], "off": []}
    for _ in range(rounds):
        for name in times:
            started = time.perf_counter()
            with torch.inference_mode(name == "off"):
                student(frame, 1.0)
            times[name].append(1000 * (time.perf_counter() - started))
    medians = {f"{name}_ms": statistics.median(values) for name, values in times.items()}
    return medians | {"ratio": medians["on_ms"] / medians["off_ms"]}
