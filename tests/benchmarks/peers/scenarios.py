"""What is put before every tool: good releases of several kinds, and faults with the metric that each touches."""

from __future__ import annotations

from dataclasses import dataclass

from tests.calibration.streams import Law

LENGTH = 60
"""Windows of a rollout, one minute each."""


@dataclass(frozen=True)
class Scenario:
    """A named law. touches : "latency", "tail", "errors" or "classes"; "" for a good release."""

    name: str
    law: Law
    touches: str = ""


CLEAN = Law()
NULLS = (
    Scenario("clean", CLEAN),
    Scenario("ramp and drift", Law(ramp=True)),
    Scenario("common bursts", Law(bursts=True)),
    Scenario("wandering", Law(wandering=True)),
    Scenario("20 requests a minute", Law(canary=2.0, stable=18.0)),
    Scenario("2 requests a minute", Law(canary=0.2, stable=1.8)),
    *(Scenario(f"bursts of one arm at {100 * e:g} %", Law(errors=e, arm_bursts=10.0)) for e in (0.001, 0.005)),
)

FAULTS = (
    *(
        Scenario(f"median x{x:g}, onset {t}", Law(slower=x, onset=t), "latency")
        for x in (1.05, 1.1, 1.2)
        for t in (0, 30)
    ),
    *(
        Scenario(f"errors {100 * a:g} -> {100 * b:g} %, onset {t}", Law(errors=a, canary_errors=b, onset=t), "errors")
        for a, b in ((0.001, 0.005), (0.005, 0.01))
        for t in (0, 30)
    ),
    *(
        Scenario(f"tail share 1 -> {100 * s:g} %, onset {t}", Law(tail_share=s, onset=t), "tail")
        for s in (0.02, 0.03)
        for t in (0, 30)
    ),
    *(
        Scenario(
            f"tail x2 slower, {c} + {9 * c} a minute, onset {t}",
            Law(canary=float(c), stable=9.0 * c, tail_slower=2.0, onset=t),
            "tail",
        )
        for c in (600, 60)
        for t in (0, 30)
    ),
    *(Scenario(f"5 points of classes moved, onset {t}", Law(class_move=0.05, onset=t), "classes") for t in (0, 30)),
    *(
        Scenario(f"ramp, median x1.2 at the weight step of window {t}", Law(ramp=True, slower=1.2, onset=t), "latency")
        for t in (LENGTH // 4, LENGTH // 2)
    ),
)
