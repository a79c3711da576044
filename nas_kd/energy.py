"""Energy per iteration, from a cumulative counter: NVML for a GPU, RAPL for a CPU.

A counter only shows a new value every update period, so energy is taken between the moments
at which it changes (its edges) and never at the ends of a window, where up to one period of
energy is still hidden. ``measure_energy`` does not check that the device is used by nobody
else, nor for thermal slowdown, nor for sensors that sample part-time (A100, H100).

The only file that imports pynvml, and only once a meter is used.
"""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from nas_kd.errors import MeterError
from nas_kd.reading import Reading

POWERCAP = Path("/sys/class/powercap")
MIN_EDGES = 20
MIN_WARMUP_ITERATIONS = 50
STALL_PERIODS = 10  # a counter that stands still for so many update periods has stalled
FIND_PERIOD_POLL_S = 0.002
WINDOW_POLL_S = 0.005
MAX_POLL_SHARE = 0.01  # of the time: reading the counter must not slow the launching thread


class Meter(Protocol):
    """A cumulative energy counter of one device."""

    name: str

    def read_mj(self) -> float:
        """Energy in mJ since some fixed moment; it only grows unless the counter was reset.

        Raises:
            MeterError: the counter cannot be read (any more).
        """

    def probe(self) -> str | None:
        """Why this meter is unusable, in words, or None when it works."""


# ---------------------------------------------------------------- NVML

_NVML_REASONS = {
    "NVMLError_Uninitialized": "NVML is not initialised: something in this process shut it down",
    "NVMLError_NotSupported": "this GPU has no energy counter (Volta and newer have one)",
    "NVMLError_NoPermission": "no permission to read it: ask the administrator of this machine",
    "NVMLError_InvalidArgument": "NVML does not take this UUID",
    "NVMLError_NotFound": "NVML knows no GPU of this UUID (a MIG slice has no counter of its own)",
    "NVMLError_DriverNotLoaded": "the NVIDIA driver is not loaded",
    "NVMLError_LibraryNotFound": "the library libnvidia-ml.so.1 is not found: no NVIDIA driver",
    "NVMLError_FunctionNotFound": "the driver is too old to have an energy counter",
    "NVMLError_GpuIsLost": "the GPU is lost: it fell off the bus or was made inaccessible",
    "NVMLError_ResetRequired": "the GPU needs a reset",
    "NVMLError_LibRmVersionMismatch": "NVML and the driver differ in version: reboot the machine",
}


def cuda_uuid(device: str) -> str:
    """The UUID of a CUDA device as torch numbers them (NVML ignores CUDA_VISIBLE_DEVICES).

    Raises:
        MeterError: torch sees no such device.
    """
    import torch

    count = torch.cuda.device_count()
    index = torch.device(device).index
    if (index or 0) >= count:
        raise MeterError(f"device {device}: torch sees {count} CUDA devices; name one it sees")
    index = torch.cuda.current_device() if index is None else index
    return str(torch.cuda.get_device_properties(index).uuid)


class NvmlMeter:
    """The energy counter of a whole GPU, in mJ since its driver was loaded.

    Args:
        uuid: with or without NVML's prefix ``GPU-`` (torch leaves it out).
        nvml: the binding; pynvml unless given, imported at the first use.
        sleep: seconds; waits between the reads of ``probe``.
    """

    name = "nvml"

    def __init__(self, uuid: str, *, nvml: Any = None, sleep: Callable[[float], None] = time.sleep):
        self.uuid = uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
        self._nvml = nvml
        self._handle: Any = None
        self._sleep = sleep

    def read_mj(self) -> float:
        """Energy of the whole GPU in mJ."""
        return float(self._ask("nvmlDeviceGetTotalEnergyConsumption"))

    def probe(self) -> str | None:
        """Why this GPU cannot be measured: NVML's own failure, MIG, or a counter at rest."""
        try:
            if self._mig_is_on():
                return f"GPU {self.uuid}: MIG is on and the counter is the whole GPU's; turn it off"
            start_mj = self.read_mj()
            for _ in range(50):  # 0.5 s: an idle GPU of 10 W shows 5 J in that time
                self._sleep(0.01)
                if self.read_mj() > start_mj:
                    return None
        except MeterError as error:
            return str(error)
        return f"GPU {self.uuid}: its energy counter stays at {start_mj:.0f} mJ for 0.5 s"

    def _mig_is_on(self) -> bool:
        try:
            current, _pending = self._ask("nvmlDeviceGetMigMode")
        except MeterError as error:
            nvml = self._binding()
            # No such mode on this GPU, or none known to this driver: both are older than MIG.
            older = (nvml.NVMLError_NotSupported, nvml.NVMLError_FunctionNotFound)
            if isinstance(error.__cause__, older):
                return False
            raise
        return current != 0

    def _ask(self, function: str) -> Any:
        nvml = self._binding()
        try:
            if self._handle is None:
                nvml.nvmlInit()
                self._handle = nvml.nvmlDeviceGetHandleByUUID(self.uuid)
            return getattr(nvml, function)(self._handle)
        except nvml.NVMLError as error:
            reason = _NVML_REASONS.get(type(error).__name__, f"NVML says: {error}")
            raise MeterError(f"GPU {self.uuid}: {reason}") from error

    def _binding(self) -> Any:
        if self._nvml is None:
            import pynvml

            self._nvml = pynvml
        return self._nvml


# ---------------------------------------------------------------- RAPL


def _spin() -> None:
    end_s = time.perf_counter() + 0.05
    while time.perf_counter() < end_s:
        pass


@dataclass
class _Zone:
    folder: Path
    range_uj: int
    last_uj: int


class RaplMeter:
    """The energy counters of all CPU packages together.

    Only the package zones of ``intel-rapl`` count (AMD shows its own under that name): core,
    uncore and dram lie inside a package, psys around them, and intel-rapl-mmio repeats them.

    Args:
        root: the kernel's powercap folder.
        load: a short load on the CPU, under which ``probe`` wants every counter to advance.
        read_text: reads one of the kernel's files.
    """

    name = "rapl"

    def __init__(
        self,
        root: Path = POWERCAP,
        *,
        load: Callable[[], None] = _spin,
        read_text: Callable[[Path], str] = Path.read_text,
    ):
        self._root = root
        self._load = load
        self._read_text = read_text
        self._zones: list[_Zone] = []
        self._total_uj = 0

    def read_mj(self) -> float:
        """Energy in mJ since the first read; call it more often than half a wrap (minutes)."""
        if not self._zones:
            self._zones = self._open_zones()
        self._total_uj += sum(self._advance_uj(zone) for zone in self._zones)
        return self._total_uj / 1000

    def probe(self) -> str | None:
        """Why the CPU cannot be measured: no zones, no permission, or counters at rest."""
        try:
            before = self._open_zones()
            self._load()
            still = [z.folder for z in before if self._energy_uj(z.folder) == z.last_uj]
        except MeterError as error:
            return str(error)
        if not still:
            return None
        return "; ".join(f"{folder}: its counter does not advance under load" for folder in still)

    def _open_zones(self) -> list[_Zone]:
        folders = [
            folder
            for folder in sorted(self._root.glob("intel-rapl:*"))
            if self._read(folder / "name").startswith("package")
        ]
        if not folders:
            raise MeterError(
                f"{self._root} has no RAPL package zone: most virtual machines have none; "
                "measure on the machine itself"
            )
        return [_Zone(f, self._range_uj(f), self._energy_uj(f)) for f in folders]

    def _advance_uj(self, zone: _Zone) -> int:
        """The shorter way round the ring: over a wrap forwards, after a reset backwards."""
        now_uj = self._energy_uj(zone.folder)
        half_uj = zone.range_uj // 2
        step_uj = (now_uj - zone.last_uj + half_uj) % zone.range_uj - half_uj
        zone.last_uj = now_uj
        return step_uj

    def _range_uj(self, folder: Path) -> int:
        if (range_uj := self._read_uj(folder / "max_energy_range_uj")) == 0:
            raise MeterError(f"{folder}: its counter has a range of 0 and can show nothing")
        return range_uj

    def _energy_uj(self, folder: Path) -> int:
        return self._read_uj(folder / "energy_uj")

    def _read_uj(self, file: Path) -> int:
        text = self._read(file)
        if not text.isdecimal():
            raise MeterError(f"{file}: {text!r} is not a number of microjoules")
        return int(text)

    def _read(self, file: Path) -> str:
        try:
            return self._read_text(file).strip()
        except PermissionError as error:
            raise MeterError(f"{file}: permission denied; run as root or allow reads") from error
        except OSError as error:
            raise MeterError(f"{file}: cannot be read ({error.strerror})") from error


def find_meter(
    device: str, *, uuid_of: Callable[[str], str] = cuda_uuid, powercap: Path = POWERCAP
) -> Meter | Reading:
    """A working meter for a torch device (``cuda``, ``cuda:1``, ``cpu``), or why there is none.

    Args:
        device: as torch spells it.
        uuid_of: from a CUDA device to its UUID.
        powercap: where the kernel shows the RAPL zones.
    """
    kind = device.partition(":")[0]
    if kind not in ("cuda", "cpu"):
        return Reading.unavailable(
            f"device {device} has no meter: NVML measures cuda and RAPL measures cpu"
        )
    try:
        meter: Meter = RaplMeter(powercap) if kind == "cpu" else NvmlMeter(uuid_of(device))
        reason = meter.probe()
    except MeterError as error:
        reason = str(error)
    return meter if reason is None else Reading.unavailable(reason)


# ---------------------------------------------------------------- measuring


class _UnusableError(Exception):
    """What the counter showed cannot be turned into a figure."""


@dataclass
class _Trace:
    """What the counter showed while something ran ``steps`` times."""

    times_s: list[float] = field(default_factory=list)
    values_mj: list[float] = field(default_factory=list)
    reading_s: float = 0.0
    steps: int = 0
    duration_s: float = 0.0

    def read(self, meter: Meter, clock: Callable[[], float]) -> None:
        before_s = clock()
        self.values_mj.append(meter.read_mj())
        after_s = clock()
        self.times_s.append((before_s + after_s) / 2)
        self.reading_s += after_s - before_s


class _Edge(NamedTuple):
    """The counter showed ``mj`` from some moment in the ``width_s`` before ``seen_s``."""

    seen_s: float
    width_s: float
    mj: float

    @property
    def time_s(self) -> float:
        return self.seen_s - self.width_s / 2


class _Slope(NamedTuple):
    power_mw: float
    relative_uncertainty: float
    edges: int


@dataclass(frozen=True)
class _Bench:
    """A meter and the device it watches."""

    meter: Meter
    synchronise: Callable[[], None]
    clock: Callable[[], float]

    def record(
        self, step: Callable[[], None], duration_s: float, poll_s: float, min_steps: int = 1
    ) -> _Trace:
        """Repeat a step, reading the counter between steps; synchronised only at the ends."""
        trace = _Trace()
        self.synchronise()
        start_s = self.clock()
        trace.read(self.meter, self.clock)
        while self.clock() - start_s < duration_s or trace.steps < min_steps:
            step()
            trace.steps += 1
            if self.clock() - trace.times_s[-1] >= poll_s:
                trace.read(self.meter, self.clock)
        self.synchronise()
        trace.duration_s = self.clock() - start_s
        return trace


def measure_energy(
    meter: Meter,
    iteration: Callable[[], None],
    *,
    synchronise: Callable[[], None],
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
    windows: int = 3,
    window_s: float = 5.0,
    warmup_s: float = 5.0,
    idle_s: float = 5.0,
    max_cv: float = 0.03,
) -> Reading:
    """Gross energy of one iteration in mJ: everything the device draws while it iterates.

    Idle power is taken after ``idle_s`` of quiet, over ``idle_s``; the net energy it leaves is
    in the details. The uncertainty is of one standard deviation and joins what the edges leave
    open with the scatter of the windows; the sensor's own gain error is not in it.

    Args:
        meter: of the device that iterates.
        iteration: queues or does one iteration; ``synchronise`` waits for all that is queued.
        synchronise: returns when the device is idle (nothing to do on a CPU).
        clock: monotonic seconds.
        sleep: seconds.
        windows: two or more.
        window_s: of each window; the counter must change 20 times in it.
        warmup_s: before the windows; no fewer than 50 iterations.
        idle_s: see above.
        max_cv: the largest coefficient of variation over windows that is believed.

    Raises:
        MeterError: fewer than two windows.
    """
    if windows < 2:
        raise MeterError(f"windows is {windows}: the scatter needs two or more; ask for 3")
    if (reason := meter.probe()) is not None:
        return Reading.unavailable(reason)
    bench = _Bench(meter, synchronise, clock)
    raw: dict[str, Any] = {"windows": []}
    try:
        iteration()  # the device's context is alive while its idle power is taken
        synchronise()
        sleep(idle_s)
        idle = bench.record(lambda: sleep(FIND_PERIOD_POLL_S), idle_s, 0.0)
        warmup = bench.record(iteration, warmup_s, FIND_PERIOD_POLL_S, MIN_WARMUP_ITERATIONS)
        period_s = raw["update_period_s"] = _update_period_s([idle, warmup])
        poll_s = max(WINDOW_POLL_S, idle.reading_s / len(idle.times_s) / MAX_POLL_SHARE)
        for _ in range(windows):
            raw["windows"].append(_window(bench.record(iteration, window_s, poll_s), period_s))
        return _reading(meter.name, raw, _idle(idle, period_s), max_cv)
    except MeterError as error:
        return Reading.unavailable(str(error))
    except _UnusableError as error:
        return Reading.rejected(str(error), raw)


def _reading(source: str, raw: dict[str, Any], idle: dict[str, Any], max_cv: float) -> Reading:
    """The windows' mean with its uncertainty; the details keep what it was made of."""
    windows = raw["windows"]
    energies_mj = [window["mj"] for window in windows]
    mean_mj = statistics.fmean(energies_mj)
    scatter_mj = statistics.stdev(energies_mj)
    raw["cv"] = scatter_mj / mean_mj
    if raw["cv"] > max_cv:
        raise _UnusableError(f"the windows vary by {raw['cv']:.1%}, more than {max_cv:.1%}")
    edge_mj = math.hypot(*(window["edge_mj"] for window in windows)) / len(windows)
    repeat_mj = scatter_mj / math.sqrt(len(windows))
    time_s = statistics.fmean(window["iteration_s"] for window in windows)
    idle_w = idle["idle_w"]
    net_mj = None if idle_w is None else mean_mj - 1000 * idle_w * time_s
    details = {**raw, **idle, "net_mj": net_mj, "edge_mj": edge_mj, "repeat_mj": repeat_mj}
    return Reading.measured(mean_mj, math.hypot(edge_mj, repeat_mj), "mJ", source, details)


def _window(trace: _Trace, period_s: float) -> dict[str, Any]:
    slope = _slope(trace, period_s)
    iteration_s = trace.duration_s / trace.steps
    energy_mj = slope.power_mw * iteration_s
    return {
        "mj": energy_mj,
        "edge_mj": energy_mj * slope.relative_uncertainty,
        "power_w": slope.power_mw / 1000,
        "iteration_s": iteration_s,
        "iterations": trace.steps,
        "edges": slope.edges,
    }


def _idle(trace: _Trace, period_s: float) -> dict[str, Any]:
    """Idle power, or null and why; the gross energy stands without it."""
    try:
        return {"idle_w": _slope(trace, period_s).power_mw / 1000}
    except _UnusableError as error:
        return {"idle_w": None, "idle_reason": str(error)}


def _slope(trace: _Trace, period_s: float) -> _Slope:
    """Mean power between the first and the last edge."""
    edges = _edges(trace, period_s)
    if len(edges) < MIN_EDGES:
        raise _UnusableError(
            f"the counter changed {len(edges)} times in a window of {trace.duration_s:.3g} s, "
            f"fewer than {MIN_EDGES}: use a longer window"
        )
    first, last = edges[0], edges[-1]
    span_s = last.time_s - first.time_s
    # An edge lies anywhere in its width with equal chance: standard deviation width / sqrt(12).
    doubt_s = math.hypot(first.width_s, last.width_s) / math.sqrt(12)
    return _Slope((last.mj - first.mj) / span_s, doubt_s / span_s, len(edges))


def _edges(trace: _Trace, period_s: float) -> list[_Edge]:
    """Every change of the counter; it must not decrease, nor stand still."""
    edges = []
    changed_s = trace.times_s[0]
    reads = zip(trace.times_s, trace.values_mj, strict=True)
    for (before_s, before_mj), (now_s, now_mj) in pairwise(reads):
        if now_mj < before_mj:
            raise _UnusableError(f"the counter decreased from {before_mj:.0f} to {now_mj:.0f} mJ")
        if now_mj > before_mj:
            edges.append(_Edge(now_s, min(now_s - before_s, period_s), now_mj))
            changed_s = now_s
        elif now_s - changed_s > STALL_PERIODS * period_s:
            raise _UnusableError(
                f"the counter stalled: no change for {now_s - changed_s:.3g} s, "
                f"with an update period of {period_s:.3g} s"
            )
    return edges


def _update_period_s(traces: list[_Trace]) -> float:
    """The smallest median gap between changes: polls see a change late, never early."""
    medians_s = []
    for trace in traces:
        seen_s = [edge.seen_s for edge in _edges(trace, math.inf)]
        if gaps_s := [later - earlier for earlier, later in pairwise(seen_s)]:
            medians_s.append(statistics.median(gaps_s))
    if not medians_s:
        raise _UnusableError("the counter stalled: it hardly changed before the windows began")
    return min(medians_s)
