"""Accelerators as their makers specify them: what a plan may assume, never what was measured."""

from __future__ import annotations

from dataclasses import dataclass

from wootz.core.errors import NotFoundError


@dataclass(frozen=True)
class Device:
    name: str
    memory: float
    """Bytes."""
    bandwidth: float
    """Bytes per second from that memory."""
    flops: float
    """Dense bfloat16 operations per second, no sparsity."""
    link: float
    """Bytes per second to its neighbours, in each direction."""
    dollars_per_hour: float
    """A typical cloud price, to be overridden by one's own."""

    @property
    def ridge(self) -> float:
        """Operations per byte above which arithmetic, not memory, is the limit (the roofline's knee)."""
        return self.flops / self.bandwidth


GB, TB, TERA = 1e9, 1e12, 1e12

DEVICES = {
    device.name: device
    for device in (
        Device("b200", 180 * GB, 8.0 * TB, 2250 * TERA, 900 * GB, 6.00),
        Device("h200", 141 * GB, 4.8 * TB, 989 * TERA, 450 * GB, 3.50),
        Device("h100", 80 * GB, 3.35 * TB, 989 * TERA, 450 * GB, 2.50),
        Device("a100", 80 * GB, 2.04 * TB, 312 * TERA, 300 * GB, 1.50),
        Device("l40s", 48 * GB, 0.864 * TB, 362 * TERA, 32 * GB, 1.00),
        Device("l4", 24 * GB, 0.30 * TB, 121 * TERA, 32 * GB, 0.60),
        Device("rtx4090", 24 * GB, 1.008 * TB, 165 * TERA, 32 * GB, 0.40),
        Device("mi300x", 192 * GB, 5.3 * TB, 1307 * TERA, 448 * GB, 2.50),
    )
}


def device(name: str) -> Device:
    """Raises NotFoundError, naming those there are."""
    if name not in DEVICES:
        raise NotFoundError(f'no device is called "{name}"', hint=f"there are {', '.join(DEVICES)}")
    return DEVICES[name]
