"""A fake libnvidia-ml, a fake powercap tree, and a full disk."""

import resource
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml


class FakeNvml:
    """The functions of pynvml that a meter asks; each fails where told to.

    Args:
        failing: from a function's name to the NVML error code that it returns.
        mig: whether MIG is on.
        mj_per_read: how far the energy counter advances between reads.
        reasons: the bits for which clocks are lowered.
        pids: the processes that compute.
        instant_mw: the field of instant power, or None for a driver without it.
    """

    NVMLError = pynvml.NVMLError
    NVMLError_NotSupported = pynvml.NVMLError_NotSupported
    NVMLError_FunctionNotFound = pynvml.NVMLError_FunctionNotFound
    NVMLError_NoPermission = pynvml.NVMLError_NoPermission
    NVML_FI_DEV_POWER_INSTANT = pynvml.NVML_FI_DEV_POWER_INSTANT
    NVML_CLOCK_SM = pynvml.NVML_CLOCK_SM
    NVML_TEMPERATURE_GPU = pynvml.NVML_TEMPERATURE_GPU

    def __init__(
        self,
        failing: dict[str, int] | None = None,
        *,
        mig: bool = False,
        mj_per_read: int = 7,
        reasons: int = 0,
        pids: tuple[int, ...] = (4711,),
        instant_mw: int | None = 250_000,
    ):
        self.failing = failing or {}
        self.mig, self.mj_per_read = mig, mj_per_read
        self.reasons, self.pids, self.instant_mw = reasons, pids, instant_mw
        self.asked_uuid: str | None = None
        self.energy_mj = 1000

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        return "570.0"

    def nvmlDeviceGetFieldValues(self, handle: Any, fields: list[int]) -> list[Any]:  # noqa: N802
        self._fail("nvmlDeviceGetFieldValues")
        code = pynvml.NVML_ERROR_NOT_SUPPORTED if self.instant_mw is None else 0
        return [SimpleNamespace(nvmlReturn=code, value=SimpleNamespace(uiVal=self.instant_mw))]

    def nvmlDeviceGetPowerUsage(self, handle: Any) -> int:  # noqa: N802
        self._fail("nvmlDeviceGetPowerUsage")
        return 240_000

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: Any) -> int:  # noqa: N802
        self._fail("nvmlDeviceGetCurrentClocksThrottleReasons")
        return self.reasons

    def nvmlDeviceGetComputeRunningProcesses_v3(self, handle: Any) -> list[Any]:  # noqa: N802
        self._fail("nvmlDeviceGetComputeRunningProcesses_v3")
        return [SimpleNamespace(pid=pid) for pid in self.pids]

    def nvmlDeviceGetGraphicsRunningProcesses_v3(self, handle: Any) -> list[Any]:  # noqa: N802
        return []

    def nvmlDeviceGetUtilizationRates(self, handle: Any) -> Any:  # noqa: N802
        return SimpleNamespace(gpu=97)

    def nvmlDeviceGetClockInfo(self, handle: Any, kind: int) -> int:  # noqa: N802
        return 1980

    def nvmlDeviceGetTemperature(self, handle: Any, kind: int) -> int:  # noqa: N802
        self._fail("nvmlDeviceGetTemperature")
        return 55

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


@contextmanager
def full_disk(size_bytes):
    """No file can grow past this size: a write fails as it does on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
