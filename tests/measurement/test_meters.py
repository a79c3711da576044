import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pynvml
import pytest
from fakes import FakeNvml, PowercapTree

from nas_kd.errors import MeterError
from nas_kd.measurement.energy import QUICK, measure_energy
from nas_kd.measurement.meter import Conditions
from nas_kd.measurement.meters import NvmlMeter, RaplMeter, find_meter
from nas_kd.measurement.reading import Reading
from nas_kd.testing.fakes import SimulatedDevice

UUID = "01234567-89ab-cdef-0123-456789abcdef"
ENERGY = "nvmlDeviceGetTotalEnergyConsumption"


def measure(device, meter):
    work = {"synchronise": device.synchronise, "timing": device.timing}
    return measure_energy(meter, device.iteration, mode=QUICK, **work)


# ---------------------------------------------------------------- NVML


def nvml_meter(failing=None, **settings):
    return NvmlMeter(UUID, nvml=FakeNvml(failing, **settings), sleep=lambda seconds: None)


def test_nvml_is_asked_by_the_uuid_it_knows():
    nvml = FakeNvml()
    assert NvmlMeter(UUID, nvml=nvml, sleep=lambda seconds: None).probe() is None
    assert nvml.asked_uuid == f"GPU-{UUID}"


def test_a_uuid_with_its_prefix_is_left_alone():
    assert NvmlMeter(f"GPU-{UUID}").uuid == NvmlMeter(UUID).uuid


@pytest.mark.parametrize(
    ("function", "code", "words"),
    [
        ("nvmlInit", pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, "libnvidia-ml.so.1 is not found"),
        ("nvmlInit", pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "driver is not loaded"),
        ("nvmlInit", pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, "differ in version"),
        ("nvmlDeviceGetHandleByUUID", pynvml.NVML_ERROR_NOT_FOUND, "no GPU of this UUID"),
        ("nvmlDeviceGetMigMode", pynvml.NVML_ERROR_GPU_IS_LOST, "fell off the bus"),
        (ENERGY, pynvml.NVML_ERROR_NOT_SUPPORTED, "no energy counter"),
        (ENERGY, pynvml.NVML_ERROR_NO_PERMISSION, "no permission"),
        (ENERGY, pynvml.NVML_ERROR_UNINITIALIZED, "not initialised"),
        (ENERGY, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND, "too old"),
        (ENERGY, pynvml.NVML_ERROR_GPU_IS_LOST, "fell off the bus"),
        (ENERGY, pynvml.NVML_ERROR_RESET_REQUIRED, "needs a reset"),
        (ENERGY, pynvml.NVML_ERROR_TIMEOUT, "NVML says: Timeout"),
    ],
)
def test_each_nvml_failure_is_a_reason_in_words(function, code, words):
    meter = nvml_meter({function: code})
    assert words in meter.probe()
    assert UUID in meter.probe()
    reading = measure(SimulatedDevice(), meter)
    assert (reading.state, reading.value) == ("unavailable", None)


def test_a_gpu_with_mig_on_is_unusable():
    assert "MIG is on" in nvml_meter(mig=True).probe()


@pytest.mark.parametrize(
    "code", [pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND]
)
def test_a_gpu_older_than_mig_is_measured(code):
    assert nvml_meter({"nvmlDeviceGetMigMode": code}).probe() is None


def test_nvml_tells_the_conditions_in_words():
    conditions = nvml_meter(reasons=0x20 | 0x04, pids=(9, 7)).conditions()
    assert conditions == Conditions(1980, 55, ("thermal slowdown by software",), True, (7, 9), 97)


def test_idle_clocks_and_clocks_that_a_user_set_are_no_slowdown():
    assert nvml_meter(reasons=0x01 | 0x02).conditions().slowdown == ()


@pytest.mark.parametrize(
    "function",
    [
        "nvmlDeviceGetCurrentClocksThrottleReasons",
        "nvmlDeviceGetComputeRunningProcesses_v3",
        "nvmlDeviceGetTemperature",
    ],
)
def test_a_condition_that_a_gpu_does_not_tell_is_none_and_a_lost_gpu_is_an_error(function):
    silent = nvml_meter({function: pynvml.NVML_ERROR_NOT_SUPPORTED}).conditions()
    assert None in silent or silent.slowdown == ()
    with pytest.raises(MeterError, match="fell off the bus"):
        nvml_meter({function: pynvml.NVML_ERROR_GPU_IS_LOST}).conditions()


def test_processes_that_nvml_does_not_tell_are_not_no_processes():
    asked = "nvmlDeviceGetComputeRunningProcesses_v3"
    assert nvml_meter({asked: pynvml.NVML_ERROR_NO_PERMISSION}).conditions().processes is None
    assert nvml_meter(pids=()).conditions().processes == ()


def test_instant_power_is_preferred_to_the_average():
    assert nvml_meter().power_w() == 250.0
    assert nvml_meter(instant_mw=None).power_w() == 240.0
    neither = {"nvmlDeviceGetPowerUsage": pynvml.NVML_ERROR_NOT_SUPPORTED}
    assert nvml_meter(neither, instant_mw=None).power_w() is None


def test_a_reading_is_named_by_uuid_and_driver():
    assert nvml_meter().identity() == (f"GPU-{UUID}", "570.0")


def test_a_gpu_counter_at_rest_is_unusable():
    assert "stays at 1000 mJ" in nvml_meter(mj_per_read=0).probe()


THROUGH_THE_LIBRARY = """
import json, os, sys
from nas_kd.measurement.meters import NvmlMeter, find_meter
said = {"light": not {"pynvml", "torch", "ray"} & set(sys.modules)}
meter = find_meter("cuda:0", uuid_of=lambda device: sys.argv[1])
said["mj"] = [meter.read_mj() for _ in range(3)]
os.environ["FAKE_NVML_REASONS"] = "36"
said["conditions"], said["power_w"] = meter.conditions(), meter.power_w()
said["identity"] = meter.identity()
os.environ["FAKE_NVML_ENERGY"] = "3"
said["not_supported"] = NvmlMeter(sys.argv[1]).probe()
os.environ["FAKE_NVML_MIG"] = "1"
said["mig"] = NvmlMeter(sys.argv[1]).probe()
said["stranger"] = NvmlMeter("another").probe()
said["no_torch"] = "torch" not in sys.modules
print(json.dumps(said))
"""


@pytest.fixture
def fake_library(tmp_path):
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    source = Path(__file__).parents[1] / "support" / "fake_nvml.c"
    library = tmp_path / "libnvidia-ml.so.1"
    subprocess.run(
        [compiler, "-Wall", "-Werror", "-shared", "-fPIC", source, "-o", library], check=True
    )
    return tmp_path


def test_the_real_binding_reads_a_fake_library(fake_library):
    environment = {
        "PATH": os.environ["PATH"],
        "LD_LIBRARY_PATH": str(fake_library),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    done = subprocess.run(
        [sys.executable, "-c", THROUGH_THE_LIBRARY, UUID],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    said = json.loads(done.stdout)
    assert said["light"]
    assert said["no_torch"]
    # Two reads went to the probe; the counter starts at 10^12 mJ, beyond 32 bits.
    assert said["mj"] == [1e12 + 500 * read for read in (3, 4, 5)]
    # This library has no utilisation, graphics processes nor field of instant power, as old ones.
    slowdown = ["thermal slowdown by software"]
    assert said["conditions"] == [1980, 55, slowdown, True, [4711, 4712], None]
    assert said["power_w"] == 240.5
    assert said["identity"] == [f"GPU-{UUID}", "570.26"]
    assert "no energy counter" in said["not_supported"]
    assert "MIG is on" in said["mig"]
    assert "no GPU of this UUID" in said["stranger"]


# ---------------------------------------------------------------- RAPL


def test_several_packages_are_summed_and_nothing_else(tmp_path):
    zones = {
        "intel-rapl:0": "package-0",
        "intel-rapl:0:0": "core",
        "intel-rapl:1": "package-1",
        "intel-rapl:2": "psys",
        "intel-rapl-mmio:0": "package-0",
    }
    tree = PowercapTree(tmp_path, zones)
    meter = RaplMeter(tmp_path, load=tree.load("intel-rapl:0", "intel-rapl:1"))
    assert meter.probe() is None
    start_mj = meter.read_mj()
    for folder, energy_uj in zip(zones, (3000, 50, 4000, 60, 70), strict=True):
        tree.add_uj(folder, energy_uj)
    assert meter.read_mj() - start_mj == 7.0


def test_a_wrap_around_goes_on_counting(tmp_path):
    tree = PowercapTree(tmp_path, {"intel-rapl:0": "package-0"}, range_uj=1_000_000)
    tree.set_uj("intel-rapl:0", 999_000)
    meter = RaplMeter(tmp_path)
    readings_mj = [meter.read_mj()]
    for _ in range(8):
        tree.add_uj("intel-rapl:0", 300_000)
        readings_mj.append(meter.read_mj())
    assert readings_mj == [300 * n for n in range(9)]


def test_a_reset_is_no_wrap_around(tmp_path):
    tree = PowercapTree(tmp_path, {"intel-rapl:0": "package-0"}, range_uj=1_000_000)
    tree.set_uj("intel-rapl:0", 100_000)
    meter = RaplMeter(tmp_path)
    start_mj = meter.read_mj()
    tree.set_uj("intel-rapl:0", 0)
    assert meter.read_mj() < start_mj


def test_a_constant_zero_is_no_counter(tmp_path):
    PowercapTree(tmp_path, {"intel-rapl:0": "package-0"})
    assert "does not advance under load" in RaplMeter(tmp_path, load=lambda: None).probe()


def test_every_package_at_rest_is_named_in_one_line(tmp_path):
    names = {"intel-rapl:0": "package-0", "intel-rapl:1": "package-1", "intel-rapl:2": "package-2"}
    tree = PowercapTree(tmp_path, names)
    reason = RaplMeter(tmp_path, load=tree.load("intel-rapl:1")).probe()
    assert "intel-rapl:0" in reason
    assert "intel-rapl:1" not in reason
    assert "intel-rapl:2" in reason
    assert "\n" not in reason


def test_a_counter_for_root_only_says_so(tmp_path):
    def read_text(file):
        if file.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return file.read_text()

    PowercapTree(tmp_path, {"intel-rapl:0": "package-0"})
    meter = RaplMeter(tmp_path, read_text=read_text)
    assert "run as root" in meter.probe()
    with pytest.raises(MeterError, match="energy_uj: permission denied"):
        meter.read_mj()


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("energy_uj", "n/a", "not a number"),
        ("max_energy_range_uj", "0", "range of 0"),
        ("max_energy_range_uj", None, "cannot be read"),
    ],
)
def test_a_malformed_zone_is_a_reason(tmp_path, file, text, words):
    tree = PowercapTree(tmp_path, {"intel-rapl:0": "package-0"})
    target = tree.root / "intel-rapl:0" / file
    target.unlink() if text is None else target.write_text(text)
    assert words in RaplMeter(tmp_path).probe()


def test_a_packages_energy_is_measured_in_joules(tmp_path):
    tree = PowercapTree(tmp_path, {"intel-rapl:0": "package-0"}, range_uj=60_000_000)
    device = SimulatedDevice(load_w=40, idle_w=10, iteration_ms=20, update_ms=1)

    def read_text(file):
        if file.name == "energy_uj":
            return str(device.shown_nj // 1000 % tree.range_uj)
        return file.read_text()

    meter = RaplMeter(tmp_path, load=device.iteration, read_text=read_text)
    reading = measure(device, meter)
    assert reading.source == "rapl"
    assert reading.value == pytest.approx(40 * 20, rel=1e-9)


# ---------------------------------------------------------------- finding


def test_a_machine_without_rapl_has_no_cpu_meter(tmp_path):
    found = find_meter("cpu", powercap=tmp_path / "absent")
    assert isinstance(found, Reading)
    assert found.state == "unavailable"
    assert "no RAPL package zone" in found.reason


def test_a_cpu_counter_at_rest_is_no_meter(tmp_path):
    PowercapTree(tmp_path, {"intel-rapl:0": "package-0"})
    found = find_meter("cpu", powercap=tmp_path)
    assert isinstance(found, Reading)
    assert "does not advance under load" in found.reason


def test_a_device_that_torch_does_not_see_has_no_meter():
    def unseen(device):
        raise MeterError(f"device {device}: torch sees 0 CUDA devices; name one it sees")

    found = find_meter("cuda:3", uuid_of=unseen)
    assert found == Reading.unavailable(
        "device cuda:3: torch sees 0 CUDA devices; name one it sees"
    )


def test_other_devices_have_no_meter():
    assert "mps has no meter" in find_meter("mps").reason
