"""What is measured: the null scenarios of the promise, the faults that must be found, releases at their margin.

Every cell names its law; the seeds are others than those that the boundary and the grids were tuned on.
"""

from __future__ import annotations

from dataclasses import replace

from analyzers import Margins
from tests.calibration.measuring import Cell
from tests.calibration.pod_streams import PodLaw
from tests.calibration.streams import Law

BY_ARM: dict[str, Law] = {
    "clean": Law(),
    "weight 5 to 50 %, drifting": Law(ramp=True),
    "a day's load": Law(day=True),
    "autocorrelated load": Law(wandering=True),
    "bursts of both arms": Law(bursts=True, errors=0.005),
    "unknown routing share": Law(lost_share=True),
    "half and half": Law(canary=60, stable=60),
    "errors at 5 %": Law(errors=0.05),
    "2 requests a minute": Law(canary=0.2, stable=1.8),
    "20 requests a minute": Law(canary=2, stable=18),
    "6,000 requests a minute": Law(canary=600, stable=5400),
    "100,000 requests a minute": Law(canary=10_000, stable=90_000),
}
BURSTS: dict[str, Law] = {
    "bursts of one arm, errors at .1 %": Law(arm_bursts=10.0),
    "bursts of one arm, errors at .5 %": Law(arm_bursts=10.0, errors=0.005),
}
DIFFER = {"pod_spread": 0.03, "noise": 0.05}
BY_POD: dict[str, PodLaw] = {
    "clean": PodLaw(),
    "pods 3 %": PodLaw(pod_spread=0.03),
    "pods 8 %": PodLaw(pod_spread=0.08),
    "noise 10 %": PodLaw(noise=0.1),
    "pods 3 %, noise 5 %": PodLaw(**DIFFER),
    "pods 8 %, noise 10 %": PodLaw(pod_spread=0.08, noise=0.1),
    "noise 10 %, correlation .95": PodLaw(noise=0.1, correlation=0.95),
    "noise 8.5 %, correlation .73": PodLaw(noise=0.085, correlation=0.73),
    "undeclared warm-up": PodLaw(warm_up=0.6),
    "undeclared warm-up, pods 3 %, noise 5 %": PodLaw(warm_up=0.6, **DIFFER),
    "bursts of one arm": PodLaw(arm_bursts=10.0),
    "bursts of single pods": PodLaw(pod_bursts=10.0),
    "a canary pod replaced": PodLaw(replaced=True, **DIFFER),
    "replaced, warm-up both times": PodLaw(replaced=True, warm_up=0.6, **DIFFER),
    "weight 5 to 50 %, drifting": PodLaw(ramp=True, **DIFFER),
    "6,000 requests a minute": PodLaw(requests=6000.0, **DIFFER),
    "pods of heavy tails, 5 %": PodLaw(pod_spread=0.05, heavy=True),
    "1 canary pod of 10": PodLaw(canary_pods=1, stable_pods=9, **DIFFER),
    "5 canary pods of 10": PodLaw(canary_pods=5, stable_pods=5, **DIFFER),
    "an odd stable pod": PodLaw(odd_pod=0.5),
}
LONG = (
    "clean",
    "noise 10 %",
    "pods 3 %, noise 5 %",
    "bursts of one arm",
    "6,000 requests a minute",
    "5 canary pods of 10",
)
SHIPPED = (("predictions", 0.4),)
"""`weight` in the policies of releases that must not move predictions; latency and errors keep the library's own."""
SLOW, SLOWER = {"slower": 1.1}, {"slower": 1.2}
TAIL, FAILING = {"tail_share": 0.03}, {"failing": 0.005}

NULLS_BY_ARM = [
    *(Cell(name, law, length) for length in (60, 240, 1440) for name, law in BY_ARM.items()),
    *(Cell(f"{name}, 10 past", law, length, past=10) for length in (60, 240, 1440) for name, law in BURSTS.items()),
    *(Cell(f"{name}, no past", law, 60) for name, law in BURSTS.items()),
    *(Cell(name, BY_ARM[name], length) for length in (15, 30, 120, 480) for name in ("clean", "half and half")),
    Cell("half and half, errors at .5 %", Law(canary=60, stable=60, errors=0.005), 1440),
    Cell("warm-up, declared", Law(warm_up=0.6), 60, warmup=20),
    Cell("no length planned", Law(), 240, planned=False),
]
NULLS_LEARNED = [
    Cell("pods 3 %, by arm, margins learned", BY_POD["pods 3 %"], 60, learn=True),
    Cell("pods 3 %, noise 5 %, by arm, margins learned", BY_POD["pods 3 %, noise 5 %"], 60, learn=True),
]
NULLS_BY_POD = [
    *(Cell(name, law, 60, past=5) for name, law in BY_POD.items()),
    *(Cell(name, BY_POD[name], 240, past=5) for name in LONG),
    *(Cell(name, BY_POD[name], 1440, past=5) for name in LONG[:1] + LONG[2:4]),
    Cell("pods 3 %, noise 5 %, no past", BY_POD["pods 3 %, noise 5 %"], 60),
    Cell("pods 3 %, noise 5 %, no length planned", BY_POD["pods 3 %, noise 5 %"], 60, past=5, planned=False),
]
FAULTS_BY_ARM = [
    *(Cell(f"latency x{x:g}, at {at}", Law(slower=x, onset=at)) for x in (1.05, 1.1, 1.2) for at in (0, 30)),
    *(Cell(f"errors .1 to .5 %, at {at}", Law(canary_errors=0.005, onset=at)) for at in (0, 30)),
    Cell("errors .1 to .5 %, at 0, 10 past", Law(canary_errors=0.005), past=10),
    *(Cell(f"errors .5 to 1 %, at {at}", Law(errors=0.005, canary_errors=0.01, onset=at)) for at in (0, 30)),
    *(Cell(f"tail 1 to 2 %, at {at}", Law(tail_share=0.02, onset=at)) for at in (0, 30)),
    *(
        Cell(f"tail twice as slow, 6,000 a minute, at {at}", Law(canary=600, stable=5400, tail_slower=2, onset=at))
        for at in (0, 30)
    ),
    *(Cell(f"5-point class move, at {at}", Law(class_move=0.05, onset=at)) for at in (0, 30)),
    *(Cell(f"latency x1.2 at a weight step, at {at}", Law(slower=1.2, ramp=True, onset=at)) for at in (15, 30)),
    *(
        Cell(f"{name}, predictions weigh .4", law, weights=SHIPPED)
        for name, law in (
            ("latency x1.1, at 0", Law(slower=1.1)),
            ("latency x1.2, at 30", Law(slower=1.2, onset=30)),
            ("errors .1 to .5 %, at 0", Law(canary_errors=0.005)),
            ("errors .1 to .5 %, at 30", Law(canary_errors=0.005, onset=30)),
            ("tail 1 to 2 %, at 0", Law(tail_share=0.02)),
        )
    ),
]
FAULTS_BY_POD = [
    Cell(f"{env}: {fault}, at {at}", PodLaw(**{**vars(BY_POD[env]), **change, "onset": at}), past=5)
    for env, fault, change, onsets in (
        ("clean", "x1.1", SLOW, (0,)),
        ("clean", "x1.2", SLOWER, (0, 30)),
        ("clean", "x1.5", {"slower": 1.5}, (0,)),
        ("pods 3 %", "x1.1", SLOW, (0, 30)),
        ("pods 3 %", "x1.2", SLOWER, (0, 30)),
        ("pods 8 %", "x1.2", SLOWER, (0, 30)),
        ("noise 10 %", "x1.2", SLOWER, (0, 30)),
        ("pods 3 %, noise 5 %", "x1.2", SLOWER, (0, 30)),
        ("undeclared warm-up", "x1.2", SLOWER, (0, 30)),
        ("clean", "tail 1 to 3 %", TAIL, (0, 30)),
        ("pods 8 %", "tail 1 to 3 %", TAIL, (0, 30)),
        ("clean", "errors .1 to .5 %", FAILING, (0, 30)),
        ("bursts of one arm", "errors .1 to .5 %", FAILING, (0, 30)),
    )
    for at in onsets
]


def _at(name: str, metric: str, law: Law | PodLaw, margins: Margins, length: int = 240) -> Cell:
    return Cell(name, law, length, margins=margins, required=frozenset({metric}), past=5 * isinstance(law, PodLaw))


HALF = (("latency", 0.35), ("errors", 0.15), ("predictions", 0.5))
"""For models whose predictions matter most: `weight` of the metrics in a policy."""
WAYS: dict[str, tuple[tuple[str, float], ...]] = {
    "alone": (),
    "half of the evidence": HALF,
    "three tenths of the evidence": SHIPPED,
    "a tenth of the evidence": (),
}


def _of_classes(name: str, fault: dict[str, float], classes: tuple[int, ...]) -> list[Cell]:
    """The same law for models of so many classes, with predictions alone or beside latency and errors."""
    return [
        Cell(
            f"{n:,} classes, {way}{name}",
            Law(classes_n=n, predictions_alone=way == "alone", **fault),  # type: ignore[arg-type]
            weights=WAYS[way],
        )
        for n in classes
        for way in WAYS
    ]


OUTPUTS = Law(predictions_alone=True, outputs_n=4)
PREDICTION_NULLS = [
    *_of_classes("", {}, (2, 10, 1000)),
    Cell("4 outputs of 10 classes, alone", OUTPUTS),
    *(Cell(f"{n} classes, alone", Law(classes_n=n, predictions_alone=True)) for n in (3, 4)),
]
PREDICTION_FAULTS = [
    cell
    for at in (0, 30)
    for cell in (
        *_of_classes(f", 5 points move at {at}", {"class_move": 0.05, "onset": at}, (2, 10, 1000)),
        Cell(
            f"4 outputs of 10 classes, alone, 5 points of one move at {at}", replace(OUTPUTS, class_move=0.05, onset=at)
        ),
    )
]


def odds_times(rate: float, ratio: float) -> float:
    """The rate whose odds are ``ratio`` times those of ``rate``."""
    odds = rate / (1 - rate) * ratio
    return odds / (1 + odds)


AT_MARGIN = [
    _at("latency x1.05", "latency", Law(slower=1.05), Margins(latency=1.05)),
    _at("latency x1.1", "latency", Law(slower=1.1), Margins(latency=1.1)),
    _at("latency x1.1, drifting", "latency", Law(slower=1.1, ramp=True), Margins(latency=1.1)),
    _at("errors 1.2 times the odds of 1 %", "errors",
        Law(errors=0.01, canary_errors=odds_times(0.01, 1.2)), Margins()),
    _at("errors twice the odds of .5 %", "errors",
        Law(errors=0.005, canary_errors=odds_times(0.005, 2)), Margins(errors=2)),
    _at("classes, .0046 nats", "predictions", Law(class_move=0.05), Margins(predictions=0.0045)),
    _at("by pod: latency x1.1, pods 3 %", "latency", PodLaw(slower=1.1, pod_spread=0.03), Margins(latency=1.1), 60),
    _at("by pod: errors twice the odds of .5 %", "errors",
        PodLaw(failing_stable=0.005, failing=odds_times(0.005, 2)), Margins(errors=2), 60),
]  # fmt: skip
GOOD = [
    _at("latency, limit x1.05", "latency", Law(), Margins(latency=1.05)),
    _at("latency, limit x1.1", "latency", Law(), Margins(latency=1.1)),
    _at("errors at .5 %, limit twice the odds", "errors", Law(errors=0.005), Margins(errors=2)),
    _at("classes, limit .01 nats", "predictions", Law(), Margins(predictions=0.01)),
    _at("by pod: latency, limit x1.2, pods 3 %", "latency", PodLaw(pod_spread=0.03), Margins(latency=1.2), 60),
]
