"""`clipkit doctor`: is this machine fit to train, and if not, what to type. Works where torch does not: nothing but the
standard library is imported in this process."""

from clipkit.doctor.machine import Check, disk, files, hub, launcher, memory, network
from clipkit.doctor.software import installed, tried

__all__ = ["Check", "examine"]


def examine() -> list[Check]:
    """Every check, in the order of a start: software, device, a step, machine, launcher. Writes nothing."""
    trial = tried()
    return [
        *installed(),
        *trial.checks,
        *memory(),
        *disk(),
        files(),
        hub(),
        *network(trial.gpus),
        *launcher(trial.gpus),
    ]
