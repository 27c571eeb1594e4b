"""What a node tells of itself, as plain facts that travel as JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One NVIDIA device; sizes in bytes, temperature in °C. None: the device does not say.

    Attributes:
        uncorrected: memory errors that ECC could not correct, since the driver was loaded.
        remap_pending: a row of its memory is replaced at its next reset.
        remap_failed: a row that is broken could not be replaced.
        links: NVLinks that are up.
        link_errors: replays, recoveries and wrong checksums on them.
        slowed: why its clock is held down, where that is no choice of anybody's.
    """

    name: str
    uuid: str
    memory: int
    free: int
    uncorrected: int | None = None
    remap_pending: bool | None = None
    remap_failed: bool | None = None
    links: int | None = None
    link_errors: int | None = None
    temperature: int | None = None
    slowed: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class NodeFacts:
    """One node. Sizes in bytes, times in Unix seconds of its own clock, rates in TFLOP/s.

    Attributes:
        token: what it read in the shared folder.
        stage: what it is at: ``done``, or what it may be hanging in.
        lost: devices that the driver counts and cannot speak to, in its words.
        disk: bytes free, by place.
        port: whether it gives out ports to listen on.
        hub: empty where the hub answers, else why not; None where nobody asked.
        rates: of a matrix product, bf16 on each device, or fp32 in ``threads`` threads.
        peaks: of the same devices as their maker prints it, where that is known.
        errors: what went wrong on the way.
    """

    node: str
    token: str
    began: float
    wrote: float
    stage: str
    memory: int
    memory_free: int
    shm_free: int | None
    disk: dict[str, int]
    kernel: str
    driver: str | None
    torch: str | None
    code: str
    port: bool
    gpus: list[Gpu] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    hub: str | None = None
    rates: list[float] = field(default_factory=list)
    peaks: list[float] = field(default_factory=list)
    threads: int = 0
    errors: list[str] = field(default_factory=list)

    @property
    def done(self) -> bool:
        return self.stage == "done"

    @property
    def device(self) -> str:
        """What its rates are of: figures of other devices do not compare."""
        return (
            self.gpus[0].name
            if self.gpus
            else f"cpu, {self.threads} {'thread' if self.threads == 1 else 'threads'}"
        )


def from_json(value: dict[str, Any]) -> NodeFacts:
    """The inverse of ``dataclasses.asdict``.

    Raises:
        TypeError: it is something else.
    """
    return NodeFacts(**{**value, "gpus": [Gpu(**gpu) for gpu in value["gpus"]]})
