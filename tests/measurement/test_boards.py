"""Meters of boards, on traces: rails as a Jetson shows them, bindings as their packages answer."""

from types import SimpleNamespace

import pytest

from nas_kd.errors import MeterError
from nas_kd.measurement.boards import WHOLE, AmdMeter, AppleMeter, JetsonMeter, board_meter
from nas_kd.measurement.energy import QUICK, measure_energy
from nas_kd.measurement.meters import find_meter
from nas_kd.measurement.reading import Reading
from nas_kd.testing.fakes import SimulatedDevice

ORIN_NANO = {1: ("VDD_IN", 4936, 1176), 2: ("VDD_CPU_GPU_CV", 4936, 272), 3: ("VDD_SOC", 4936, 336)}
"""Label, mV and mA of each channel, as an Orin Nano of Jetson Linux 36 shows them."""


def newer(root, rails, chip="1-0040"):
    """The kernel's hwmon; it also shows the sum of all shunts, which is no rail."""
    folder = root / "ina3221" / chip / "hwmon" / "hwmon3"
    folder.mkdir(parents=True)
    for channel, (name, mv, ma) in rails.items():
        (folder / f"in{channel}_label").write_text(f"{name}\n")
        (folder / f"in{channel}_input").write_text(f"{mv}\n")
        (folder / f"curr{channel}_input").write_text(f"{ma}\n")
    (folder / "in7_label").write_text("sum of shunt voltages\n")
    (folder / "in7_input").write_text("8\n")
    return folder


def older(root, rails):
    """NVIDIA's own driver, before Jetson Linux 34."""
    folder = root / "ina3221x" / "6-0040" / "iio:device0"
    folder.mkdir(parents=True)
    for channel, (name, mw) in enumerate(rails.items()):
        (folder / f"rail_name_{channel}").write_text(f"{name}\n")
        (folder / f"in_power{channel}_input").write_text(f"{mw}\n")


def measure(device, meter):
    work = {"synchronise": device.synchronise, "timing": device.timing}
    return measure_energy(meter, device.iteration, mode=QUICK, **work)


def test_a_jetsons_power_is_that_of_the_whole_module(tmp_path):
    newer(tmp_path, ORIN_NANO)
    assert JetsonMeter(tmp_path).power_w() == pytest.approx(4.936 * 1.176)


def test_an_agx_orins_rails_are_on_two_chips_and_one_lies_behind_another(tmp_path):
    newer(tmp_path, {1: ("VDD_GPU_SOC", 20000, 200), 2: ("VDD_CPU_CV", 20000, 100)})
    more = {1: ("VIN_SYS_5V0", 5000, 800), 3: ("VDDQ_VDD2_1V8AO", 5000, 300)}
    newer(tmp_path, more, "1-0041")
    assert JetsonMeter(tmp_path).power_w() == pytest.approx(4 + 2 + 4)


def test_the_older_driver_tells_milliwatts(tmp_path):
    older(tmp_path, {"VDD_IN": 3210, "VDD_CPU_GPU_CV": 800, "VDD_SOC": 700})
    assert JetsonMeter(tmp_path).power_w() == pytest.approx(3.21)


def test_a_jetsons_power_is_summed_over_time(tmp_path):
    folder, now = newer(tmp_path, ORIN_NANO), iter([10.0, 10.5, 11.5])
    meter = JetsonMeter(tmp_path, now=lambda: next(now))
    assert meter.read_mj() == 0
    (folder / "curr1_input").write_text("2000")
    (folder / "in1_input").write_text("5000")
    first_w = 4.936 * 1.176
    assert meter.read_mj() == pytest.approx(500 * (first_w + 10) / 2)
    assert meter.read_mj() == pytest.approx(500 * (first_w + 10) / 2 + 10_000)


def test_a_jetsons_energy_is_measured_in_joules(tmp_path):
    newer(tmp_path, ORIN_NANO)
    device = SimulatedDevice(load_w=15, idle_w=5, iteration_ms=30, queued=2)

    def read_text(file):
        if file.name == "curr1_input":
            return str(200 * device.power_w)  # at 5 V
        return "5000" if file.name == "in1_input" else file.read_text()

    meter = JetsonMeter(tmp_path, read_text=read_text, now=device.clock, sleep=device.sleep)
    assert meter.probe() is None
    reading = measure(device, meter)
    assert (reading.state, reading.source) == ("measured", "ina3221")
    assert reading.value == pytest.approx(15 * 30, rel=0.005)
    assert reading.details["idle_w"] == pytest.approx(5, rel=0.01)


def test_unknown_rails_are_named(tmp_path):
    newer(tmp_path, {1: ("VDD_NEW", 5000, 100)})
    assert "(there: VDD_NEW)" in JetsonMeter(tmp_path).probe()


@pytest.mark.parametrize(
    ("error", "words"),
    [(PermissionError(13, "denied"), "permission denied"), (OSError(5, "I/O error"), "I/O error")],
)
def test_a_rail_that_cannot_be_read_is_a_reason(tmp_path, error, words):
    newer(tmp_path, ORIN_NANO)

    def read_text(file):
        if file.name == "curr1_input":
            raise error
        return file.read_text()

    assert words in JetsonMeter(tmp_path, read_text=read_text).probe()


def test_a_rail_that_tells_no_number_is_a_reason(tmp_path):
    (newer(tmp_path, ORIN_NANO) / "curr1_input").write_text("n/a")
    assert "no whole numbers" in JetsonMeter(tmp_path).probe()


def test_no_set_of_rails_holds_another():
    assert all(not set(a) <= set(b) for a in WHOLE for b in WHOLE if a != b)


def test_a_board_is_found_by_its_rails_for_both_of_its_devices(tmp_path):
    assert board_meter("cpu", tmp_path) is None
    newer(tmp_path, ORIN_NANO)
    for device in ("cpu", "cuda:0"):
        assert isinstance(board_meter(device, tmp_path), JetsonMeter)
        found = find_meter(device, board=lambda device: board_meter(device, tmp_path))
        assert found.name == "ina3221"


# ---------------------------------------------------------------- AMD


class AmdSmiException(Exception):
    pass


class FakeAmdSmi:
    """As amdsmi answers, of several versions."""

    AmdSmiException = AmdSmiException

    def __init__(self, device, *, name="energy_accumulator", fails=(), activity=12):
        self.device, self.name, self.fails, self.activity = device, name, fails, activity
        self.address = None

    def amdsmi_init(self):
        self._fail("amdsmi_init")

    def amdsmi_get_processor_handle_from_bdf(self, address):
        self.address = address
        return "handle"

    def amdsmi_get_energy_count(self, handle):
        self._fail("amdsmi_get_energy_count")
        resolution_uj = 15.3
        count = int(self.device.shown_nj / 1000 / resolution_uj)
        return {self.name: count, "counter_resolution": resolution_uj, "timestamp": 1}

    def amdsmi_get_power_info(self, handle):
        return {"current_socket_power": self.device.power_w, "average_socket_power": "N/A"}

    def amdsmi_get_gpu_activity(self, handle):
        return {"gfx_activity": self.activity}

    def amdsmi_get_gpu_process_list(self, handle):
        self._fail("amdsmi_get_gpu_process_list")
        return [{"pid": 9}, {"pid": 7}]

    def amdsmi_get_gpu_driver_info(self, handle):
        return {"driver_version": "6.10"}

    def amdsmi_get_gpu_device_uuid(self, handle):
        return "c3ff"

    def _fail(self, function):
        if function in self.fails:
            raise AmdSmiException("AMDSMI_STATUS_NOT_SUPPORTED")


def amd(device, **settings):
    smi = FakeAmdSmi(device, **settings)
    return AmdMeter("0000:c3:00.0", amdsmi=smi, sleep=device.sleep)


@pytest.mark.parametrize("name", ["energy_accumulator", "power"])
def test_an_amd_gpus_energy_is_measured_in_joules(name):
    device = SimulatedDevice(iteration_ms=4, queued=2)
    meter = amd(device, name=name, activity=0)
    assert meter.probe() is None
    meter.part_time = False
    reading = measure(device, meter)
    assert reading.value == pytest.approx(1200, rel=0.002)
    assert reading.details["identity"] == {"device": "AMD-c3ff", "driver": "6.10"}


def test_what_amdsmi_does_not_tell_is_unknown_and_a_counter_it_lacks_is_a_reason():
    device = SimulatedDevice()
    silent = amd(device, fails=("amdsmi_get_gpu_process_list",), activity="N/A")
    assert (silent.conditions().processes, silent.conditions().busy_percent) == (None, None)
    assert amd(device).conditions().processes == (7, 9)
    assert "NOT_SUPPORTED" in amd(device, fails=("amdsmi_get_energy_count",)).probe()


def test_a_counter_that_stands_still_is_no_meter():
    device = SimulatedDevice(idle_w=0)
    assert "stays at 0 mJ" in amd(device).probe()


def test_without_its_package_an_amd_gpu_says_what_to_install():
    assert "install the package that comes with this machine's ROCm" in AmdMeter("0").probe()


# ---------------------------------------------------------------- Apple


def test_an_apple_chips_energy_is_the_sum_of_its_parts():
    device = SimulatedDevice(load_w=20, idle_w=3, iteration_ms=10)

    def told():
        mj = device.shown_nj // 1_000_000
        return SimpleNamespace(cpu_total_mj=mj // 2, gpu_mj=mj - mj // 2, ane_mj=None, dram_mj=0)

    meter = AppleMeter(monitor=SimpleNamespace(get_cumulative_energy=told), sleep=device.sleep)
    meter.part_time = False
    assert meter.probe() is None
    assert measure(device, meter).value == pytest.approx(200, rel=0.01)


def test_without_its_package_an_apple_chip_says_what_to_install():
    assert "pip install zeus-apple-silicon" in AppleMeter().probe()
    with pytest.raises(MeterError):
        AppleMeter().read_mj()


def test_a_board_that_cannot_be_read_leaves_energy_absent():
    found = find_meter("cuda", board=lambda device: AppleMeter())
    assert isinstance(found, Reading)
    assert found.state == "unavailable"
