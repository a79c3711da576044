"""Meters: NVML's energy counter for a GPU, RAPL's for a CPU, a board's own where it has one.

The only file that imports pynvml, and only once a meter is used.
"""

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas_kd.device import best_device
from nas_kd.errors import MeterError
from nas_kd.measurement.boards import board_meter
from nas_kd.measurement.meter import Conditions, Identity, Meter
from nas_kd.measurement.reading import Reading
from nas_kd.objectives import of_kind

POWERCAP = Path("/sys/class/powercap")


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

# nvml.h, nvmlClocksThrottleReasons: what lowers the clock for the hardware's sake.
_SLOWDOWN = {
    0x08: "hardware slowdown",
    0x20: "thermal slowdown by software",
    0x40: "thermal slowdown by hardware",
    0x80: "power brake",
}
_POWER_CAP = 0x04


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
    part_time: bool | None = None

    def __init__(self, uuid: str, *, nvml: Any = None, sleep: Callable[[float], None] = time.sleep):
        self.uuid = uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
        self._nvml = nvml
        self._handle: Any = None
        self._sleep = sleep

    def read_mj(self) -> float:
        """Energy of the whole GPU in mJ."""
        return float(self._ask("nvmlDeviceGetTotalEnergyConsumption"))

    def power_w(self) -> float | None:
        """Instant power, or, of a driver without it, what NVML calls power usage."""
        field = getattr(self._binding(), "NVML_FI_DEV_POWER_INSTANT", None)
        values = None if field is None else self._may_ask("nvmlDeviceGetFieldValues", [field])
        if values is not None and values[0].nvmlReturn == 0:
            return values[0].value.uiVal / 1000
        usage_mw = self._may_ask("nvmlDeviceGetPowerUsage")
        return None if usage_mw is None else usage_mw / 1000

    def conditions(self) -> Conditions:
        """Clock, temperature, slowdown, processes (in a container their numbers are the host's)."""
        nvml = self._binding()
        bits = self._may_ask("nvmlDeviceGetCurrentClocksThrottleReasons") or 0
        running = [
            self._may_ask(f"nvmlDeviceGet{kind}RunningProcesses_v3")
            for kind in ("Compute", "Graphics")
        ]
        listed = [process.pid for group in running if group is not None for process in group]
        rates = self._may_ask("nvmlDeviceGetUtilizationRates")
        return Conditions(
            clock_mhz=self._may_ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM),
            temperature_c=self._may_ask("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU),
            slowdown=tuple(words for bit, words in _SLOWDOWN.items() if bits & bit),
            power_capped=bool(bits & _POWER_CAP),
            processes=None if running[0] is None else tuple(sorted(set(listed))),
            busy_percent=None if rates is None else rates.gpu,
        )

    def identity(self) -> Identity:
        """UUID and version of the driver."""
        self._ask("nvmlDeviceGetTotalEnergyConsumption")  # NVML is initialised now
        return Identity(self.uuid, str(self._binding().nvmlSystemGetDriverVersion()))

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

    def _may_ask(self, function: str, *arguments: Any) -> Any:
        """As ``_ask``; None where this GPU, driver or user cannot have an answer."""
        try:
            return self._ask(function, *arguments)
        except MeterError as error:
            nvml = self._binding()
            optional = (
                nvml.NVMLError_NotSupported,
                nvml.NVMLError_FunctionNotFound,
                nvml.NVMLError_NoPermission,
            )
            if isinstance(error.__cause__, optional):
                return None
            raise

    def _ask(self, function: str, *arguments: Any) -> Any:
        nvml = self._binding()
        try:
            if self._handle is None:
                nvml.nvmlInit()
                self._handle = nvml.nvmlDeviceGetHandleByUUID(self.uuid)
            return getattr(nvml, function)(self._handle, *arguments)
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
    part_time: bool | None = False

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

    def power_w(self) -> float | None:
        """None: RAPL has its counter alone."""
        return None

    def conditions(self) -> Conditions:
        """Nothing: RAPL has its counter alone."""
        return Conditions()

    def identity(self) -> Identity:
        """This machine's processor, and its kernel as the driver."""
        return Identity(f"CPU-{cpu_name()}-{platform.node()}", platform.release())

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


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's model as the kernel names it."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def find_meter(
    device: str,
    *,
    uuid_of: Callable[[str], str] = cuda_uuid,
    powercap: Path = POWERCAP,
    board: Callable[[str], Meter | None] = board_meter,
) -> Meter | Reading:
    """A working meter for a torch device (``cuda``, ``cuda:1``, ``cpu``), or why there is none.

    Args:
        device: as torch spells it.
        uuid_of: from a CUDA device to its UUID.
        powercap: where the kernel shows the RAPL zones.
        board: the meter of a device that has one of its own, if this is such a machine.
    """
    try:
        meter = board(device) or _usual_meter(device, uuid_of, powercap)
        reason = meter.probe()
    except MeterError as error:
        return Reading.unavailable(str(error))
    return meter if reason is None else Reading.unavailable(reason)


def _usual_meter(device: str, uuid_of: Callable[[str], str], powercap: Path) -> Meter:
    match device.partition(":")[0]:
        case "cpu":
            return RaplMeter(powercap)
        case "cuda":
            return NvmlMeter(uuid_of(device))
    raise MeterError(f"device {device} has no meter: NVML measures cuda and RAPL measures cpu")


def likely_device() -> str:
    """``cuda`` where NVML has a GPU that is not hidden from CUDA, else ``cpu``; as torch has it, without torch."""
    import pynvml

    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return "cpu"
    try:
        pynvml.nvmlInit()
        return "cuda" if pynvml.nvmlDeviceGetCount() else "cpu"
    except pynvml.NVMLError:
        return "cpu"


def require_meter(objectives: tuple[str, ...]) -> None:
    """Raise MeterError where energy is among the objectives and nothing here measures it."""
    if of_kind(objectives, "energy"):
        _require_one(objectives, best_device())


def require_likely_meter(objectives: tuple[str, ...]) -> None:
    """The same without torch, as far as that can be seen: a GPU's meter is looked at later."""
    if of_kind(objectives, "energy") and (device := likely_device()) == "cpu":
        _require_one(objectives, device)


def _require_one(objectives: tuple[str, ...], device: str) -> None:
    meter = find_meter(device)
    if isinstance(meter, Reading):
        others = of_kind(objectives, "quality", "counted", "latency") or ["bd_rate", "flops"]
        raise MeterError(
            f"energy cannot be measured here ({meter.reason}); run on a machine with a meter, or take it "
            f"out: --objectives {','.join(others)}"
        )
