"""What a meter is: a cumulative energy counter, and what else its device says of itself."""

from typing import NamedTuple, Protocol


class Conditions(NamedTuple):
    """What a device says of itself at one moment; None is what it does not say.

    slowdown: thermal and hardware reasons for a lowered clock. processes: those that use it.
    busy_percent: share of the last moments in which it computed.
    """

    clock_mhz: int | None = None
    temperature_c: int | None = None
    slowdown: tuple[str, ...] = ()
    power_capped: bool = False
    processes: tuple[int, ...] | None = None
    busy_percent: int | None = None


class Identity(NamedTuple):
    """Which device, and under which driver: part of the name of every reading of it."""

    device: str
    driver: str


class Meter(Protocol):
    """A cumulative energy counter of one device, and what else the device says.

    part_time: whether its sensor looks only part of the time; None where nobody knows before
    it is tried.
    """

    name: str
    part_time: bool | None

    def read_mj(self) -> float:
        """Energy in mJ since some fixed moment; it only grows unless the counter was reset.

        Raises:
            MeterError: the counter cannot be read (any more).
        """

    def power_w(self) -> float | None:
        """Power at this moment, by another way than the counter, or None without one."""

    def conditions(self) -> Conditions:
        """Clock, temperature, slowdown and processes."""

    def identity(self) -> Identity:
        """The device's UUID and its driver."""

    def probe(self) -> str | None:
        """Why this meter is unusable, in words, or None when it works."""
