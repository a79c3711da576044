"""Meters of boards: Jetson's power rails, AMD's counter, Apple's; each absent with its reason where it cannot be read.

None of them has been read on its hardware by this project's tests: they are tried on recorded and constructed traces.
"""

import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nas_kd.errors import MeterError
from nas_kd.measurement.meter import Conditions, Identity, Meter

I2C = Path("/sys/bus/i2c/drivers")
PROBE_S = 0.5


def board_meter(device: str, i2c: Path = I2C) -> Meter | None:
    """The meter of a device that neither NVML nor RAPL measures, where this machine is such a one."""
    kind = device.partition(":")[0]
    if kind in ("cpu", "cuda") and _ina3221(i2c):
        return JetsonMeter(i2c)
    if kind == "cuda" and _is_amd():
        return AmdMeter(_pci_address(device))
    if kind in ("cpu", "mps") and sys.platform == "darwin":
        return AppleMeter()
    return None


def _is_amd() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and getattr(torch.version, "hip", None) is not None


def _pci_address(device: str) -> str:
    """Of a device as torch numbers it; amdsmi ignores HIP_VISIBLE_DEVICES."""
    import torch

    about: Any = torch.cuda.get_device_properties(device)
    return f"{about.pci_domain_id:04x}:{about.pci_bus_id:02x}:{about.pci_device_id:02x}.0"


def _advances(
    read_mj: Callable[[], float], sleep: Callable[[float], None], name: str
) -> str | None:
    """Why a counter is unusable, or None where it advances."""
    try:
        start_mj = read_mj()
        for _ in range(50):
            sleep(PROBE_S / 50)
            if read_mj() > start_mj:
                return None
    except MeterError as error:
        return str(error)
    return f"{name}: its energy counter stays at {start_mj:.0f} mJ for {PROBE_S} s"


# ---------------------------------------------------------------- Jetson

WHOLE = (
    ("VDD_IN",),
    ("5V_IN",),
    ("POM_5V_IN",),
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
    ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),
)
"""Rails that together supply the whole module, by the developer guides of Jetson Linux r32 to r36: of Orin NX and Nano,
Xavier NX and TX2 one, of AGX Orin three (the fourth lies behind VIN_SYS_5V0), of AGX Xavier six."""


@dataclass(frozen=True)
class _Rail:
    """One channel of an INA3221: the file of its power in mW, or those of its mV and mA."""

    name: str
    files: tuple[Path, ...]


def _ina3221(i2c: Path) -> list[Path]:
    """Folders of the kernel's hwmon (Jetson Linux 34 and later) and of NVIDIA's older driver."""
    newer = i2c.glob("ina3221/*/hwmon/hwmon*")
    return sorted([*newer, *i2c.glob("ina3221x/*/iio:device*")])


def _rails(folder: Path, read_text: Callable[[Path], str]) -> list[_Rail]:
    found = []
    for label in sorted(folder.glob("in*_label")):
        channel = label.name.removeprefix("in").removesuffix("_label")
        files = (folder / f"in{channel}_input", folder / f"curr{channel}_input")
        if all(file.exists() for file in files):
            found.append(_Rail(_text(label, read_text), files))
    for label in sorted(folder.glob("rail_name_*")):
        power = folder / f"in_power{label.name.removeprefix('rail_name_')}_input"
        found.append(_Rail(_text(label, read_text), (power,)))
    return found


def _text(file: Path, read_text: Callable[[Path], str]) -> str:
    try:
        return read_text(file).strip()
    except PermissionError as error:
        raise MeterError(f"{file}: permission denied; run as root or allow reads") from error
    except OSError as error:
        raise MeterError(f"{file}: cannot be read ({error.strerror})") from error


class JetsonMeter:
    """Energy of a whole Jetson module: the power of its rails summed over time, read by read.

    A counter of its own it has not: between two reads the power is taken for the mean of both, so that only what is
    read often is measured, as ``sensor.record`` does.

    Args:
        i2c: the kernel's folder of I2C drivers.
        read_text: reads one of the kernel's files.
        now: monotonic seconds.
        sleep: waits between the reads of ``probe``.
    """

    name = "ina3221"
    part_time: bool | None = False

    def __init__(
        self,
        i2c: Path = I2C,
        *,
        read_text: Callable[[Path], str] = Path.read_text,
        now: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ):
        self._i2c, self._read_text, self._now, self._sleep = i2c, read_text, now, sleep
        self._whole: list[_Rail] = []
        self._total_mj = 0.0
        self._last: tuple[float, float] | None = None

    def read_mj(self) -> float:
        """Energy in mJ since the first read."""
        power_w, now_s = self.power_w(), self._now()
        if self._last is not None:
            before_s, before_w = self._last
            self._total_mj += 500 * (before_w + power_w) * (now_s - before_s)
        self._last = now_s, power_w
        return self._total_mj

    def power_w(self) -> float:
        """Power of the whole module at this moment."""
        if not self._whole:
            self._whole = self._rails_of_all()
        return sum(self._power_w(rail) for rail in self._whole)

    def conditions(self) -> Conditions:
        """Nothing: the sensor has its rails alone."""
        return Conditions()

    def identity(self) -> Identity:
        """This board, and its kernel as the driver."""
        return Identity(f"JETSON-{platform.node()}", platform.release())

    def probe(self) -> str | None:
        """Why the rails cannot be measured."""
        return _advances(self.read_mj, self._sleep, str(self._i2c))

    def _rails_of_all(self) -> list[_Rail]:
        there = {
            rail.name: rail
            for folder in _ina3221(self._i2c)
            for rail in _rails(folder, self._read_text)
        }
        for whole in WHOLE:
            if set(whole) <= set(there):
                return [there[name] for name in whole]
        raise MeterError(
            f"{self._i2c}: no set of rails is known to supply the whole module "
            f"(there: {', '.join(sorted(there)) or 'none'})"
        )

    def _power_w(self, rail: _Rail) -> float:
        values = [_text(file, self._read_text) for file in rail.files]
        if not all(value.lstrip("-").isdecimal() for value in values):
            raise MeterError(f"rail {rail.name}: {values} are no whole numbers of mV, mA or mW")
        first, *rest = map(int, values)
        return first * rest[0] / 1e6 if rest else first / 1e3


# ---------------------------------------------------------------- AMD


class AmdMeter:
    """The energy counter of an AMD GPU, by amdsmi, which comes with ROCm.

    Args:
        address: of the GPU on the PCI bus, ``0000:c3:00.0``.
        amdsmi: the binding; imported at the first use unless given.
        sleep: waits between the reads of ``probe``.
    """

    name = "amdsmi"
    part_time: bool | None = None

    def __init__(
        self, address: str, *, amdsmi: Any = None, sleep: Callable[[float], None] = time.sleep
    ):
        self.address, self._amdsmi, self._sleep = address, amdsmi, sleep
        self._handle: Any = None

    def read_mj(self) -> float:
        """Energy of the GPU in mJ."""
        told = self._ask("amdsmi_get_energy_count")
        # The count's name before amdsmi 6.2.1 was "power"; the resolution is in microjoules.
        count = told["energy_accumulator"] if "energy_accumulator" in told else told["power"]
        return count * told["counter_resolution"] / 1000

    def power_w(self) -> float | None:
        """Power of the socket at this moment, where it is told."""
        power_w = self._may_ask("amdsmi_get_power_info", {}).get("current_socket_power")
        return float(power_w) if isinstance(power_w, int | float) else None

    def conditions(self) -> Conditions:
        """Processes and how busy it is."""
        busy = self._may_ask("amdsmi_get_gpu_activity", {}).get("gfx_activity")
        listed = self._may_ask("amdsmi_get_gpu_process_list", None)
        pids = None if listed is None else [one["pid"] for one in listed if isinstance(one, dict)]
        return Conditions(
            processes=None if pids is None else tuple(sorted(pids)),
            busy_percent=busy if isinstance(busy, int) else None,
        )

    def identity(self) -> Identity:
        """UUID and version of the driver."""
        driver = self._ask("amdsmi_get_gpu_driver_info")["driver_version"]
        return Identity(f"AMD-{self._ask('amdsmi_get_gpu_device_uuid')}", str(driver))

    def probe(self) -> str | None:
        """Why the GPU cannot be measured; on some its counter stands still (ROCm/amdsmi issue 22)."""
        return _advances(self.read_mj, self._sleep, f"GPU {self.address}")

    def _may_ask(self, function: str, otherwise: Any) -> Any:
        try:
            return self._ask(function)
        except MeterError:
            return otherwise

    def _ask(self, function: str) -> Any:
        smi = self._binding()
        try:
            if self._handle is None:
                smi.amdsmi_init()
                self._handle = smi.amdsmi_get_processor_handle_from_bdf(self.address)
            return getattr(smi, function)(self._handle)
        except smi.AmdSmiException as error:
            raise MeterError(f"GPU {self.address}: amdsmi says: {error}") from error

    def _binding(self) -> Any:
        if self._amdsmi is None:
            try:
                self._amdsmi = import_module("amdsmi")
            except Exception as error:  # of another ROCm it fails in ways of its own
                raise MeterError(
                    f"GPU {self.address}: amdsmi cannot be loaded ({type(error).__name__}: {error}); "
                    "install the package that comes with this machine's ROCm"
                ) from error
        return self._amdsmi


# ---------------------------------------------------------------- Apple


class AppleMeter:
    """The energy of an Apple chip: cores, GPU, neural engine and memory, by zeus-apple-silicon.

    Args:
        monitor: the package's; made at the first use unless given.
        sleep: waits between the reads of ``probe``.
    """

    name = "apple"
    part_time: bool | None = None
    PARTS = ("cpu_total_mj", "gpu_mj", "gpu_sram_mj", "ane_mj", "dram_mj")

    def __init__(self, *, monitor: Any = None, sleep: Callable[[float], None] = time.sleep):
        self._monitor, self._sleep = monitor, sleep

    def read_mj(self) -> float:
        """Energy of the chip in mJ."""
        told = self._opened().get_cumulative_energy()
        parts_mj = [getattr(told, name, None) for name in self.PARTS]
        if parts_mj[0] is None:
            raise MeterError("this chip does not tell the energy of its cores")
        return float(sum(mj for mj in parts_mj if mj is not None))

    def power_w(self) -> float | None:
        """None: there is the counter alone."""
        return None

    def conditions(self) -> Conditions:
        """Nothing: there is the counter alone."""
        return Conditions()

    def identity(self) -> Identity:
        """This machine, and its system as the driver."""
        return Identity(f"APPLE-{platform.node()}", platform.release())

    def probe(self) -> str | None:
        """Why the chip cannot be measured."""
        return _advances(self.read_mj, self._sleep, "this chip")

    def _opened(self) -> Any:
        if self._monitor is None:
            if find_spec("zeus_apple_silicon") is None:
                raise MeterError(
                    "energy on Apple silicon is read by zeus-apple-silicon: pip install zeus-apple-silicon"
                )
            try:
                self._monitor = import_module("zeus_apple_silicon").AppleEnergyMonitor()
            except (ImportError, RuntimeError) as error:
                raise MeterError(f"the chip's counters cannot be opened ({error})") from error
        return self._monitor
