"""A reading of a simulated device, as a search takes it."""

from nas_kd.measurement.energy import QUICK, measure_energy
from nas_kd.measurement.meter import Conditions
from nas_kd.testing.fakes import FakeMeter

CALM = Conditions(clock_mhz=1980, temperature_c=50, processes=(7,), busy_percent=0)


def measure(device, meter=None, *, iteration=None, mode=QUICK, **settings):
    return measure_energy(
        meter or FakeMeter(device),
        iteration or device.iteration,
        synchronise=device.synchronise,
        timing=device.timing,
        mode=mode,
        **settings,
    )
