import json
import math
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import pynvml
import pytest
from fakes import FakeMeter, FakeNvml, PowercapTree, SimulatedDevice

from nas_kd.energy import NvmlMeter, RaplMeter, cuda_uuid, find_meter, measure_energy
from nas_kd.errors import MeterError
from nas_kd.reading import Reading, require_real

UUID = "01234567-89ab-cdef-0123-456789abcdef"
ENERGY = "nvmlDeviceGetTotalEnergyConsumption"


def measure(device, meter=None, **settings):
    return measure_energy(
        meter or FakeMeter(device),
        device.iteration,
        synchronise=device.synchronise,
        clock=device.clock,
        sleep=device.sleep,
        **settings,
    )


# ---------------------------------------------------------------- measuring


def test_energy_is_power_times_time():
    reading = measure(SimulatedDevice(load_w=300, idle_w=60, iteration_ms=10, update_ms=20))
    assert (reading.state, reading.unit, reading.source) == ("measured", "mJ", "fake")
    assert reading.value == pytest.approx(300 * 10, rel=1e-9)
    assert reading.details["net_mj"] == pytest.approx((300 - 60) * 10, rel=1e-9)
    assert reading.details["idle_w"] == pytest.approx(60, rel=1e-9)
    assert reading.details["update_period_s"] == pytest.approx(0.020, rel=1e-9)
    assert [w["iterations"] for w in reading.details["windows"]] == [500, 500, 500]


@pytest.mark.parametrize("queued", [0, 50])
@pytest.mark.parametrize("update_ms", [3, 20, 97])
@pytest.mark.parametrize("iteration_ms", [1, 7, 101])
def test_the_uncertainty_covers_the_error(iteration_ms, update_ms, queued):
    device = SimulatedDevice(iteration_ms=iteration_ms, update_ms=update_ms, queued=queued)
    reading = measure(device)
    error_mj = abs(reading.value - 300 * iteration_ms)
    assert error_mj <= 3 * reading.uncertainty
    assert error_mj <= 0.005 * reading.value
    assert reading.uncertainty <= 0.005 * reading.value


def test_twice_the_work_costs_twice_the_energy():
    once, twice = (measure(SimulatedDevice(iteration_ms=ms)) for ms in (20, 40))
    assert twice.value == pytest.approx(2 * once.value, rel=1e-9)


def test_an_iteration_longer_than_many_updates_is_resolved():
    device = SimulatedDevice(iteration_ms=700, update_ms=1)
    reading = measure(device, window_s=15.0)
    assert reading.value == pytest.approx(300 * 700, rel=1e-9)


@pytest.mark.parametrize(
    ("iteration_ms", "update_ms", "width_s"),
    [
        (10, 20, 0.010),  # polled faster than it updates: the polls bound the edge
        (100, 20, 0.020),  # polled slower: the update period does, found while idle
    ],
)
def test_an_edge_is_known_to_a_poll_or_an_update_period(iteration_ms, update_ms, width_s):
    reading = measure(SimulatedDevice(iteration_ms=iteration_ms, update_ms=update_ms))
    # Each 5 s window loses a poll or two at its ends to find its first and last edge.
    doubts_mj = reading.value * width_s * math.sqrt(2 / 12) / 5.0
    assert reading.details["update_period_s"] == pytest.approx(update_ms / 1000, rel=1e-6)
    assert reading.details["edge_mj"] == pytest.approx(doubts_mj / math.sqrt(3), rel=0.05)


def test_the_uncertainty_joins_edges_and_scatter():
    reading = measure(SimulatedDevice(iteration_ms=7, update_ms=97))
    edge_mj, repeat_mj = reading.details["edge_mj"], reading.details["repeat_mj"]
    windows_mj = [window["mj"] for window in reading.details["windows"]]
    assert repeat_mj == pytest.approx(statistics.stdev(windows_mj) / math.sqrt(3))
    assert min(edge_mj, repeat_mj) > 0
    assert reading.uncertainty == pytest.approx(math.hypot(edge_mj, repeat_mj))


def test_warm_up_takes_fifty_iterations_however_short():
    device = SimulatedDevice(iteration_ms=10)
    calls = 0

    def iteration():
        nonlocal calls
        calls += 1
        device.iteration()

    reading = measure_energy(
        FakeMeter(device),
        iteration,
        synchronise=device.synchronise,
        clock=device.clock,
        sleep=device.sleep,
        warmup_s=0.1,
    )
    assert calls == 1 + 50 + sum(w["iterations"] for w in reading.details["windows"])


def test_reading_a_slow_counter_takes_one_percent_of_the_time():
    device = SimulatedDevice(iteration_ms=10)
    reading = measure(device, FakeMeter(device, read_us=1000))
    times_s = [window["iteration_s"] for window in reading.details["windows"]]
    assert max(times_s) <= 0.0102
    assert reading.value == pytest.approx(3000, rel=0.005)


def test_a_sleeping_counter_leaves_net_energy_unknown():
    device = SimulatedDevice(idle_w=0)
    reading = measure(device)
    assert reading.value == pytest.approx(3000, rel=1e-9)
    assert reading.details["net_mj"] is None
    assert "stalled" in reading.details["idle_reason"]


def test_a_fake_measurement_is_no_result():
    with pytest.raises(ValueError, match="fake"):
        require_real(measure(SimulatedDevice()))


def test_a_window_too_short_is_rejected():
    reading = measure(SimulatedDevice(update_ms=100), window_s=1.0)
    assert reading.state == "rejected"
    assert "fewer than 20" in reading.reason


# Quiet, idle, warm-up and each window take 5 s: the second window runs at 22 s.
def test_a_stalled_counter_is_rejected():
    device = SimulatedDevice()
    reading = measure(device, FakeMeter(device, stalls_s=22.0))
    assert reading.state == "rejected"
    assert "stalled" in reading.reason
    assert len(reading.raw["windows"]) == 1


def test_a_counter_that_never_moves_is_rejected():
    device = SimulatedDevice()
    reading = measure(device, FakeMeter(device, stalls_s=0.0))
    assert reading.state == "rejected"
    assert "stalled" in reading.reason


def test_a_reset_counter_is_rejected():
    device = SimulatedDevice()
    reading = measure(device, FakeMeter(device, resets_s=22.0))
    assert reading.state == "rejected"
    assert "decreased" in reading.reason


@pytest.mark.parametrize(("max_cv", "state"), [(0.03, "rejected"), (0.06, "measured")])
def test_windows_that_disagree_are_rejected_with_their_figures(max_cv, state):
    device = SimulatedDevice(iteration_ms=10)

    def iteration():
        device.load_w = 330 if device.clock() > 25 else 300  # in the third window
        device.iteration()

    reading = measure_energy(
        FakeMeter(device),
        iteration,
        synchronise=device.synchronise,
        clock=device.clock,
        sleep=device.sleep,
        max_cv=max_cv,
    )
    figures = reading.raw or reading.details
    assert reading.state == state
    assert figures["cv"] == pytest.approx(10 * 3**0.5 / 310, rel=1e-3)
    assert [round(w["mj"]) for w in figures["windows"]] == [3000, 3000, 3300]


def test_a_meter_lost_in_a_window_is_unavailable():
    device = SimulatedDevice()
    reading = measure(device, FakeMeter(device, lost_s=22.0))
    assert reading == Reading.unavailable("the GPU is lost")


def test_a_broken_meter_is_not_read():
    device = SimulatedDevice()
    meter = FakeMeter(device, broken="MIG is on")
    assert measure(device, meter) == Reading.unavailable("MIG is on")
    assert meter.reads == 0


def test_one_window_has_no_scatter():
    with pytest.raises(MeterError, match="windows is 1"):
        measure(SimulatedDevice(), windows=1)


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


def test_a_gpu_counter_at_rest_is_unusable():
    assert "stays at 1000 mJ" in nvml_meter(mj_per_read=0).probe()


THROUGH_THE_LIBRARY = """
import json, os, sys
from nas_kd.energy import NvmlMeter, find_meter
said = {"light": not {"pynvml", "torch", "ray"} & set(sys.modules)}
meter = find_meter("cuda:0", uuid_of=lambda device: sys.argv[1])
said["mj"] = [meter.read_mj() for _ in range(3)]
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
    source = Path(__file__).with_name("fake_nvml.c")
    library = tmp_path / "libnvidia-ml.so.1"
    subprocess.run(
        [compiler, "-Wall", "-Werror", "-shared", "-fPIC", source, "-o", library], check=True
    )
    return tmp_path


def test_the_real_binding_reads_a_fake_library(fake_library):
    environment = {
        "PATH": os.environ["PATH"],
        "LD_LIBRARY_PATH": str(fake_library),
        "PYTHONPATH": str(Path(__file__).parents[1]),
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
    assert "no energy counter" in said["not_supported"]
    assert "MIG is on" in said["mig"]
    assert "no GPU of this UUID" in said["stranger"]


@pytest.mark.gpu
def test_the_counter_of_a_real_gpu_advances():
    if not Path("/dev/nvidiactl").exists():
        pytest.skip("no NVIDIA GPU")
    meter = NvmlMeter(cuda_uuid("cuda"))
    assert meter.probe() is None


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
