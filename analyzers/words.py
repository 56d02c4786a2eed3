"""Words: what a verdict means, in one sentence a person can act on, with the numbers it rests on."""

from __future__ import annotations

import math

import numpy as np

from analyzers.config import MonitorConfig, metric_of
from analyzers.monitor import Monitor, Verdict
from analyzers.pods import ODD

QUANTILES = ((0.99, "p99"), (0.95, "p95"), (0.5, "the median"))
LARGEST_ODDS = 1e6


def sentence(monitor: Monitor, verdict: Verdict, row: int = 0) -> str:
    """The evidence on one rollout: what was seen of the metric that says most, the odds, and the rule's error rate.

    verdict : of the last window of ``monitor``.
    """
    seen = [m for m, of in verdict.evidence.items() if of.n_canary[row] > 0]
    if not seen:
        return f"Nothing could be compared yet; {_promise(monitor.config)}."
    metric = max(seen, key=lambda m: (bool(verdict.evidence[m].blamed[row]), float(verdict.evidence[m].log_e[row])))
    if metric_of(metric) == "predictions":
        said = _predictions(verdict, metric, row)
    else:
        said = {"latency": _latency, "errors": _errors}[metric](monitor, verdict, row)
    return f"{said}; {_odds(float(verdict.log_evidence[row]))}; {_promise(monitor.config)}."


def placebo_sentence(monitor: Monitor, row: int = 0) -> str | None:
    """How the canary stands among stable pods that play it; None where counts do not come by pod."""
    evidence = monitor.placebo()[row]
    others = evidence[1:][np.isfinite(evidence[1:])]
    if not others.size:
        return None
    return (
        f"Slower than {int((others < evidence[0]).sum())} of {others.size} placebo canaries "
        f"({'groups of stable pods' if monitor.grouped else 'stable pods'} in its place)."
    )


def warnings(monitor: Monitor, verdict: Verdict, row: int = 0) -> tuple[str, ...]:
    """What the reader should know about the numbers themselves."""
    out = []
    share = verdict.share
    if share.mismatch[row]:
        out.append(
            f"The canary gets {_percent(share.share[row])} of the requests ({_percent(share.low[row])} to "
            f"{_percent(share.high[row])}), but {_percent(share.asked[row])} was asked for: look for a second route, "
            "retries, sessions, or a mesh that did not follow. This does not count for or against the release."
        )
    latency = verdict.evidence.get("latency")
    if latency is not None and latency.coarse is not None and latency.coarse[row]:
        out.append(
            "Most requests fall into one latency bucket, so that small slow-downs stay hidden: use native histograms, "
            "or bounds around the median."
        )
    odd = monitor.odd_pods()[row]
    for place in np.flatnonzero(np.abs(np.nan_to_num(odd)) > ODD):
        out.append(
            f"Stable pod {place + 1} is much {'slower' if odd[place] > 0 else 'faster'} than the other stable pods, "
            "which makes the comparison less sharp. Look at it; leave its counts out only if no canary pod could be "
            "like it."
        )
    return tuple(out)


def _promise(config: MonitorConfig) -> str:
    of = round(1 / config.false_rollback)
    return f"1 in {of} good releases would be rolled back by this rule over the whole rollout"


def _odds(log_evidence: float) -> str:
    odds = math.exp(min(abs(log_evidence), 700.0))
    if log_evidence <= 0:
        return f"evidence of harm {_short(1.0)} to {_short(odds)}" if odds < LARGEST_ODDS else "no evidence of harm"
    return f"evidence {_short(odds)} to 1" if odds < LARGEST_ODDS else "evidence above a million to 1"


def _latency(monitor: Monitor, verdict: Verdict, row: int) -> str:
    found: list[tuple[float, str]] = []
    for q, name in QUANTILES:
        ratio, low, high = (float(x[row]) for x in monitor.quantiles(q))
        if math.isfinite(low) and math.isfinite(ratio):
            found.append((low, f"{name} of the canary is {low:.3g} to {_end(high, 3)} times stable's"))
    surest = max(found, key=lambda one: one[0], default=(0.0, ""))
    if surest[0] > 1.0:
        return surest[1]
    latency = verdict.evidence["latency"]
    low, high = (float(x[row]) for x in (latency.effect_low, latency.effect_high))
    if math.isfinite(low):
        return f"the canary is {low:.3g} to {_end(high, 3)} times as slow as stable"
    return "the latency of the canary is not known well enough yet"


def _errors(monitor: Monitor, verdict: Verdict, row: int) -> str:
    errors = verdict.evidence["errors"]
    assert errors.events_canary is not None
    assert errors.events_stable is not None
    canary = f"{errors.events_canary[row]:.0f} of {errors.n_canary[row]:.0f}"
    stable = f"{errors.events_stable[row]:.0f} of {errors.n_stable[row]:.0f}"
    low, high = (float(x[row]) for x in (errors.effect_low, errors.effect_high))
    odds = f" ({low:.2g} to {_end(high, 2)} times the odds)" if low > 0 or math.isfinite(high) else ""
    return f"{canary} canary requests failed and {stable} stable ones{odds}"


def _predictions(verdict: Verdict, output: str, row: int) -> str:
    predictions = verdict.evidence[output]
    low, high = (float(x[row]) for x in (predictions.effect_low, predictions.effect_high))
    return f"predictions of the canary lie {low:.2g} to {high:.2g} nats from stable's"


def _end(high: float, digits: int) -> str:
    return f"{high:.{digits}g}" if math.isfinite(high) else "more"


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"


def _short(odds: float) -> str:
    return f"{odds:.2g}" if odds < 10 else f"{float(f'{odds:.2g}'):,.0f}"
