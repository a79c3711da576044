"""Fake meters and a simulated device with an exact clock; what they measure is source "fake"."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pynvml

from nas_kd.errors import MeterError


class SimulatedDevice:
    """A device of known power whose energy counter shows a new value every update period.

    Time is in whole microseconds and energy in whole nanojoules, so that joules are exact.
    ``iteration`` returns as soon as no more than ``queued`` iterations wait to be done.
    """

    def __init__(
        self,
        *,
        load_w: int = 300,
        idle_w: int = 60,
        iteration_ms: int = 10,
        update_ms: int = 20,
        queued: int = 0,
    ):
        self.load_w, self.idle_w = load_w, idle_w
        self.iteration_us, self.update_us = 1000 * iteration_ms, 1000 * update_ms
        self.queued = queued
        self.now_us = self.busy_until_us = 0
        self.energy_nj = self.shown_nj = 0

    def clock(self) -> float:
        return self.now_us / 1e6

    def sleep(self, seconds: float) -> None:
        self._advance(self.now_us + round(seconds * 1e6))

    def iteration(self) -> None:
        self.busy_until_us = max(self.now_us, self.busy_until_us) + self.iteration_us
        self._advance(self.busy_until_us - self.queued * self.iteration_us)

    def synchronise(self) -> None:
        self._advance(self.busy_until_us)

    def _advance(self, until_us: int) -> None:
        while self.now_us < until_us:
            update_us = (self.now_us // self.update_us + 1) * self.update_us
            busy = self.now_us < self.busy_until_us
            step_us = min(until_us, update_us, self.busy_until_us if busy else until_us)
            power_mw = 1000 * (self.load_w if busy else self.idle_w)
            self.energy_nj += power_mw * (step_us - self.now_us)
            self.now_us = step_us
            if step_us == update_us:
                self.shown_nj = self.energy_nj


class FakeMeter:
    """The counter of a simulated device, with the faults that real counters have.

    Args:
        device: whose counter this is.
        stalls_s: from then on the counter stands still.
        resets_s: from then on it counts from zero again.
        lost_s: from then on it cannot be read.
        read_us: what a read takes of the device's time.
        broken: why the meter is unusable from the start.
    """

    name = "fake"

    def __init__(
        self,
        device: SimulatedDevice,
        *,
        stalls_s: float = float("inf"),
        resets_s: float = float("inf"),
        lost_s: float = float("inf"),
        read_us: int = 0,
        broken: str | None = None,
    ):
        self.device = device
        self.stalls_s, self.resets_s, self.lost_s = stalls_s, resets_s, lost_s
        self.read_us, self.broken = read_us, broken
        self.reads = 0
        self._last_mj = self._zero_mj = 0.0

    def read_mj(self) -> float:
        self.reads += 1
        self.device.sleep(self.read_us / 1e6)
        now_s = self.device.clock()
        if now_s >= self.lost_s:
            raise MeterError("the GPU is lost")
        if now_s >= self.stalls_s:
            return self._last_mj
        if now_s >= self.resets_s and not self._zero_mj:
            self._zero_mj = self.device.shown_nj / 1e6
        self._last_mj = self.device.shown_nj / 1e6 - self._zero_mj
        return self._last_mj

    def probe(self) -> str | None:
        return self.broken


class FakeNvml:
    """The five functions of pynvml that a meter asks; each fails where told to.

    Args:
        failing: from a function's name to the NVML error code that it returns.
        mig: whether MIG is on.
        mj_per_read: how far the energy counter advances between reads.
    """

    NVMLError = pynvml.NVMLError
    NVMLError_NotSupported = pynvml.NVMLError_NotSupported
    NVMLError_FunctionNotFound = pynvml.NVMLError_FunctionNotFound

    def __init__(
        self, failing: dict[str, int] | None = None, *, mig: bool = False, mj_per_read: int = 7
    ):
        self.failing = failing or {}
        self.mig, self.mj_per_read = mig, mj_per_read
        self.asked_uuid: str | None = None
        self.energy_mj = 1000

    def nvmlInit(self) -> None:  # noqa: N802
        self._fail("nvmlInit")

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        self._fail("nvmlDeviceGetHandleByUUID")
        self.asked_uuid = uuid
        return "handle"

    def nvmlDeviceGetMigMode(self, handle: Any) -> list[int]:  # noqa: N802
        self._fail("nvmlDeviceGetMigMode")
        return [int(self.mig), int(self.mig)]

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Any) -> int:  # noqa: N802
        self._fail("nvmlDeviceGetTotalEnergyConsumption")
        self.energy_mj += self.mj_per_read
        return self.energy_mj

    def _fail(self, function: str) -> None:
        if function in self.failing:
            raise pynvml.NVMLError(self.failing[function])


class PowercapTree:
    """A folder like /sys/class/powercap, whose counters advance when told to.

    Args:
        root: an existing empty folder.
        zones: from a zone's folder name to its ``name`` file, such as ``package-0``.
        range_uj: where every counter wraps.
    """

    def __init__(self, root: Path, zones: dict[str, str], *, range_uj: int = 1_000_000):
        self.root, self.range_uj = root, range_uj
        for folder, name in zones.items():
            (root / folder).mkdir(parents=True)
            (root / folder / "name").write_text(f"{name}\n")
            (root / folder / "max_energy_range_uj").write_text(f"{range_uj}\n")
            self.set_uj(folder, 0)

    def set_uj(self, folder: str, energy_uj: int) -> None:
        (self.root / folder / "energy_uj").write_text(f"{energy_uj}\n")

    def add_uj(self, folder: str, energy_uj: int) -> None:
        before_uj = int((self.root / folder / "energy_uj").read_text())
        self.set_uj(folder, (before_uj + energy_uj) % self.range_uj)

    def load(self, *folders: str) -> Callable[[], None]:
        """A load under which these zones spend a millijoule each."""
        return lambda: [self.add_uj(folder, 1000) for folder in folders] and None
