"""Why a trial can fail, how often each is tried again, and how to tell them apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

NAN, INF = "nan", "inf"
DEVICE_MEMORY, HOST_MEMORY = "device_memory", "host_memory"
TIMEOUT, PREEMPTED, RAISED, LOST = "timeout", "preempted", "raised", "lost"

RETRIES: Mapping[str, int] = {
    NAN: 0,  # a trial repeats to the bit, so it would diverge again
    INF: 0,
    DEVICE_MEMORY: 5,  # each time with half the tokens in a pass
    HOST_MEMORY: 2,  # likewise
    TIMEOUT: 1,
    PREEMPTED: 20,  # no fault of the trial's
    RAISED: 1,
    LOST: 2,
}
"""By kind, how often one trial is tried again."""
MEMORY = (DEVICE_MEMORY, HOST_MEMORY)
"""Kinds after which a worker takes half as many tokens at a time."""
_KILLED_FOR_MEMORY = ("running low on memory", "OUT_OF_MEMORY")
"""What Ray says of a process that its memory monitor killed."""


class NonFinite(ArithmeticError):
    """A loss or a metric became nan or inf: this trial has failed, the gang has not."""

    def __init__(self, message: str, is_nan: bool = True) -> None:
        super().__init__(message)
        self.is_nan = is_nan


@dataclass(frozen=True)
class Failure:
    kind: str
    """One of RETRIES."""
    error: str
    """One line."""


def kind_of(error: BaseException) -> str:
    """What an exception raised in a worker is."""
    if isinstance(error, NonFinite):
        return NAN if error.is_nan else INF
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error):
        return HOST_MEMORY
    if type(error).__name__ == "OutOfMemoryError":  # torch's; imported by nobody who has no torch yet
        return DEVICE_MEMORY
    return RAISED


def kind_of_death(error: BaseException) -> str:
    """What ended a worker's process, by what Ray says of it. A kill by the system itself cannot be told from others:
    Ray then only lists what it may have been."""
    text = str(error)
    if getattr(error, "preempted", False) or "preempt" in text.lower():
        return PREEMPTED
    if type(error).__name__ == "OutOfMemoryError" or any(sign in text for sign in _KILLED_FOR_MEMORY):
        return HOST_MEMORY
    return LOST
