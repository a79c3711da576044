"""Does the count of MACs order energy? MACs, latency and mJ per frame of nine archs.

    python benchmarks/energy.py [--quick]

Where there is no meter the energy is absent with its reason, and the protocol is tried on a simulated
counter instead, whose errors are known: those figures say ``simulated``. The last line is one JSON object.
"""

import argparse
import json
import random
import statistics
import time

import torch
from scipy.stats import spearmanr

from nas_kd.codec.cost import count
from nas_kd.codec.space import Arch, load_space, prim
from nas_kd.codec.student import Student
from nas_kd.measurement.codec_energy import energy_of
from nas_kd.measurement.counter import Sensor, Trace, find_edges, record
from nas_kd.measurement.energy import FULL, QUICK, measure_energy
from nas_kd.measurement.latency import QUICK_RUNS, RUNS, measure_latency
from nas_kd.measurement.meters import find_meter
from nas_kd.measurement.networks import (
    best_device,
    graph_replay,
    in_use,
    noise_frame,
    passes,
    synchroniser,
)
from nas_kd.measurement.reading import Reading
from nas_kd.testing.fakes import FakeMeter, SimulatedDevice

PRIM_WIDTHS = (16, 32, 48, 64, 96, 128)


def archs() -> dict[str, Arch]:
    """Six widths of one family, and three archs drawn from another space."""
    named = {f"prim N={N}": prim(N) for N in PRIM_WIDTHS}
    space, draw = load_space("frontier"), random.Random(4)
    for i in range(3):
        params = {name: draw.choice(choices) for name, choices in space.vary.items()}
        named[f"frontier {i}"] = space.arch(params)
    return named


def rows(device, meter, quick):
    frame = noise_frame(device)
    mode, runs = (QUICK, QUICK_RUNS) if quick else (FULL, RUNS)
    for name, arch in archs().items():
        torch.manual_seed(0)
        student = Student(arch).eval()
        row = {"arch": name, "macs": count(student).macs}
        work = passes(student.to(device), [frame])["both"]
        times = measure_latency({"a": work}, synchronise=synchroniser(device), runs=runs[device])
        found = times["a"]
        row["latency_ms"] = (found.details or found.raw)["median_ms"]
        row["latency_state"] = found.state
        if not isinstance(meter, Reading):
            row |= energies(meter, work, device, mode)
        print(json.dumps(row), flush=True)
        yield row


def energies(meter, work, device, mode):
    started = time.monotonic()
    found = {"energy": energy_of(meter, work, device, mode).to_json()}
    found["seconds"] = time.monotonic() - started
    if device == "cuda":
        found["graph"] = energy_of(meter, graph_replay(work), device, mode).to_json()
    return found


def repeatability(meter, device, mode):
    """CV in percent over five readings of one arch, and the seconds of a reading."""
    work = passes(Student(prim(64)).eval().to(device), [noise_frame(device)])["both"]
    readings, started = [], time.monotonic()
    for _ in range(5):
        readings.append(energy_of(meter, work, device, mode))
    seconds = (time.monotonic() - started) / 5
    values = [r.value for r in readings if r.value is not None]
    if len(values) < 5:
        return None, seconds
    return 100 * statistics.stdev(values) / statistics.fmean(values), seconds


def rank_correlation(pairs):
    """Spearman's rho, or None for fewer than four pairs."""
    pairs = [(a, b) for a, b in pairs if a is not None and b is not None]
    return float(spearmanr(*zip(*pairs, strict=True)).statistic) if len(pairs) > 3 else None


# ---------------------------------------------------------------- on a simulated counter


def window_errors(update_ms=97, windows=200):
    """Percent by which a 1 s window of 10 ms iterations is off: at its ends, and between edges."""
    device = SimulatedDevice(iteration_ms=10, update_ms=update_ms)
    meter, draw, ends, edges = FakeMeter(device), random.Random(0), [], []
    device.sleep(1)

    def work(trace: Trace) -> None:
        for _ in range(100):
            device.iteration()
            trace.steps += 1

    for _ in range(windows):
        device.sleep(0.2 + 0.2 * draw.random())  # idle, as before any window
        trace = record(meter, device.timing, device.synchronise, 0.005, work)
        true_mj = 3000 * trace.steps
        ends.append(100 * ((trace.values_mj[-1] - trace.values_mj[0]) / true_mj - 1))
        first, last = span(trace, update_ms / 1000)
        edges.append(100 * ((last[1] - first[1]) / (last[0] - first[0]) / 300e3 - 1))
    return {
        "sync_points": summary(ends),
        "edges": summary(edges),
    }


def span(trace, period_s):
    found = find_edges(trace, period_s)
    return [(edge.time_s, edge.mj) for edge in (found[0], found[-1])]


def summary(errors):
    return {
        "mean_percent": round(statistics.fmean(errors), 3),
        "worst_percent": round(max(map(abs, errors)), 3),
    }


def part_time_errors(part_time, readings=12):
    """Percent by which 100 ms iterations are off whose sensor looks for 25 of every 100 ms."""
    errors = []
    for seed in range(readings):
        device = SimulatedDevice(iteration_ms=100, update_ms=100, looks_ms=25, late_w=150)
        device.sleep(0.013 * seed)
        reading = measure_energy(
            FakeMeter(device),
            device.iteration,
            synchronise=device.synchronise,
            mode=FULL,
            sensor=Sensor(0.1, part_time),
            timing=device.timing,
            seed=seed,
        )
        if reading.value is not None:
            errors.append(100 * (reading.value / 22500 - 1))
    return summary(errors) | {"readings": len(errors)}


def simulated():
    found = window_errors()
    found["part_time_without_gaps"] = part_time_errors(False)
    found["part_time_with_gaps"] = part_time_errors(True)
    device = SimulatedDevice(iteration_ms=7, update_ms=97)
    reading = measure_energy(
        FakeMeter(device), device.iteration, synchronise=device.synchronise, timing=device.timing
    )
    found["seconds_of_a_full_reading"] = round(reading.details["seconds"], 1)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    device = best_device()
    meter = find_meter(device)
    available = not isinstance(meter, Reading)
    result = {"available": available, "reason": None if available else meter.reason}
    result |= {"cv_percent": None, "seconds_per_reading": None, "spearman_macs_energy": None}
    with in_use(device).exclusive():
        done = list(rows(device, meter, quick))
        if available:
            mode = QUICK if quick else FULL
            result["cv_percent"], result["seconds_per_reading"] = repeatability(meter, device, mode)
    result["spearman_macs_latency"] = rank_correlation(
        [(row["macs"], row["latency_ms"]) for row in done]
    )
    for name, kind in (("energy", "energy"), ("graph_energy", "graph")):
        pairs = [(row["macs"], row.get(kind, {}).get("value")) for row in done]
        result[f"spearman_macs_{name}"] = rank_correlation(pairs)
    result["simulated"] = simulated()
    result["device"] = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    print(json.dumps(result))


if __name__ == "__main__":
    main()
