"""Seconds per trial beyond the trial's own work: this engine, and Ray Tune with OptunaSearch as shipped.

    python benchmarks/overhead.py            # --quick: fewer trials

One worker, trials of no training steps; Ray's start and the first trial (imports, targets) are left out. The last
line is JSON.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from harness import add_out, finish, hardware, options
from PIL import Image


def main() -> None:
    parser = options(__doc__, quick="8 trials instead of 40")
    add_out(parser, "overhead")
    args = parser.parse_args()
    trials, out = 8 if args.quick else 40, args.out and args.out.resolve()
    import ray

    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    about = hardware()  # before this keeps it busy
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        found = {"benchmark": "overhead", "trials": trials, "nas_kd_s": ours(trials)}
        found["tune_with_optunasearch_s"] = as_shipped(trials)
        os.chdir("/")
    ray.shutdown()
    finish(found | about, out)


def ours(trials: int) -> dict[str, float]:
    """A search whose students are built, counted and evaluated on one small picture, untrained."""
    from nas_kd.cluster.launch import Machine, search
    from nas_kd.study.study import Settings

    Path("pictures").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save("pictures/noise.png")
    settings = Settings(
        name="overhead",
        space="asymmetric",
        objectives=("bd_rate", "flops"),
        steps=0,
        crops=16,
        crop_size=64,
        data="pictures",
        eval_data="pictures",
    )
    study = search(settings, trials, Machine(1), lambda kind, detail: None)
    done = sorted((t for t in study.trials if "seconds" in t.user_attrs), key=lambda t: t.number)
    own = [sum(t.user_attrs["seconds"].values()) for t in done]
    ends = [t.datetime_complete.timestamp() for t in done]
    between = (ends[-1] - ends[0]) / (len(ends) - 1)
    mean_own = float(np.mean(own[1:]))
    return {"per_trial": round(between - mean_own, 3), "own_work": round(mean_own, 3)}


def as_shipped(trials: int) -> dict[str, float]:
    """The same number of empty trials."""
    from ray import tune
    from ray.tune.search.optuna import OptunaSearch

    def objective(config: dict[str, Any]) -> None:
        tune.report({"a": config["x"], "b": -config["x"], "end": time.time()})

    results = tune.Tuner(
        objective,
        param_space={"x": tune.uniform(0, 1)},
        tune_config=tune.TuneConfig(
            search_alg=OptunaSearch(metric=["a", "b"], mode=["min", "min"]),
            num_samples=trials,
            max_concurrent_trials=1,
        ),
        run_config=tune.RunConfig(storage_path=str(Path("tune").resolve()), verbose=0),
    ).fit()
    ends = sorted(r.metrics["end"] for r in results)
    return {"per_trial": round((ends[-1] - ends[0]) / (len(ends) - 1), 3)}


if __name__ == "__main__":
    main()
