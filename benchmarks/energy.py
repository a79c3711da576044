"""Seconds and scatter of an energy reading, its share of a search, and whether MACs order millijoules.

    python benchmarks/energy.py [--quick]

Nine archs are measured as a search does, where there is a meter; ``--quick`` prints the schemes before and after on
simulated devices alone. What comes of simulation says so. The last line is one JSON object.
"""

import argparse
import json
import random
import statistics
import time

import torch
from energy_simulated import in_markdown, repeats, schemes, shares
from scipy.stats import spearmanr

from nas_kd.codec.arch import Arch, prim
from nas_kd.codec.cost import count
from nas_kd.codec.networks import noise_frame, passes
from nas_kd.codec.search_space import load_space
from nas_kd.codec.student import Student
from nas_kd.device import best_device
from nas_kd.measurement.codec_energy import Bench, pass_of
from nas_kd.measurement.device_lock import in_use
from nas_kd.measurement.energy import QUICK
from nas_kd.measurement.energy_model import fitted, work_of
from nas_kd.measurement.meters import find_meter
from nas_kd.measurement.reading import Reading

PRIM_WIDTHS = (16, 32, 48, 64, 96, 128)
REPEATS = 5


def archs() -> dict[str, Arch]:
    """Six widths of one family, and three archs drawn from another space."""
    named = {f"prim N={N}": prim(N) for N in PRIM_WIDTHS}
    space, draw = load_space("frontier"), random.Random(4)
    for i in range(3):
        params = {name: draw.choice(choices) for name, choices in space.vary.items()}
        named[f"frontier {i}"] = space.arch(params)
    return named


def rows(bench: Bench):
    """The archs one after the other in one session; on a GPU as a graph, and eagerly beside it."""
    frame = noise_frame(bench.device)
    for name, arch in archs().items():
        torch.manual_seed(0)
        student = Student(arch).eval().to(bench.device)
        begun_s = time.monotonic()
        reading = bench.read(pass_of(student, [frame], "both", bench.device), QUICK)
        row = {"arch": name, "macs": count(student).macs, "seconds": time.monotonic() - begun_s}
        row |= {"energy": reading.to_json(), "work": work_of(student, "both", frame)}
        if bench.device == "cuda":
            row["eager"] = bench.read(passes(student, [frame])["both"], QUICK).to_json()
        print(json.dumps(row | {"work": vars(row["work"])}), flush=True)
        yield row


def on_hardware(bench: Bench) -> dict:
    with in_use(bench.device).exclusive():
        done = list(rows(bench))
        student = Student(prim(64)).eval().to(bench.device)
        work = pass_of(student, [noise_frame(bench.device)], "both", bench.device)
        values = [bench.read(work, QUICK).value for _ in range(REPEATS)]
    known = [row for row in done if row["energy"]["value"] is not None]
    mj = [row["energy"]["value"] for row in known]
    model = fitted([row["work"] for row in known], mj)
    macs = [row["macs"] for row in known]
    there = None not in values
    return {
        "seconds_per_reading": statistics.fmean(row["seconds"] for row in done),
        "cv_percent": 100 * statistics.stdev(values) / statistics.fmean(values) if there else None,
        "spearman_macs_energy": float(spearmanr(macs, mj).statistic) if len(mj) > 3 else None,
        "model_error_percent": None if model is None else model.error_percent,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="simulated devices alone")
    quick = parser.parse_args().quick
    found = schemes()
    print("\n".join(in_markdown(found)), flush=True)
    simulated = repeats() | {"share_of_search": shares(found), "cases": found}
    device = best_device()
    meter = Reading.unavailable("--quick asks for none") if quick else find_meter(device)
    names = ("seconds_per_reading", "cv_percent", "spearman_macs_energy", "model_error_percent")
    result = {"available": not isinstance(meter, Reading), "reason": None} | dict.fromkeys(names)
    if isinstance(meter, Reading):
        result["reason"] = meter.reason
    else:
        result |= on_hardware(Bench(meter, device))
    # By simulation of the engine, of trials of 2,000 steps on an H200, in any case.
    result["share_of_search"] = simulated["share_of_search"]["7.3 s of training"]["after"]
    result["device"] = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    print(json.dumps(result | {"simulated": simulated}))


if __name__ == "__main__":
    main()
