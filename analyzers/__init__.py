"""The statistics of Serinus as a library: sequential comparison of a canary with stable, with a promised error rate.

Pure: no I/O, no clock, no unseeded randomness. Arrays have the rollouts as their leading axis; R = 1 is the ordinary
case.

>>> import numpy as np
>>> monitor = Monitor(MonitorConfig(false_rollback=0.01, planned_windows=60), rollouts=1)
>>> verdict = monitor.observe(Window(errors=Counts(canary=[1], canary_total=[60], stable=[5], stable_total=[540])))
>>> bool(verdict.rollback[0])
False
"""

from analyzers.config import Margins, MonitorConfig, output_name
from analyzers.history import Past, Prior, learn_prior, past_of, summarize_past
from analyzers.margins import Learned, learn_margins, pseudo_canaries
from analyzers.monitor import MetricVerdict, Monitor, Verdict
from analyzers.paired import PairedConfig, PairedMonitor, PairedVerdict
from analyzers.planning import Effect, Plan, Stable, plan, recommend
from analyzers.share import ShareVerdict
from analyzers.windows import Categories, Counts, Histogram, Window
from analyzers.words import placebo_sentence, sentence, warnings

__all__ = [
    "Categories",
    "Counts",
    "Effect",
    "Histogram",
    "Learned",
    "Margins",
    "MetricVerdict",
    "Monitor",
    "MonitorConfig",
    "PairedConfig",
    "PairedMonitor",
    "PairedVerdict",
    "Past",
    "Plan",
    "Prior",
    "ShareVerdict",
    "Stable",
    "Verdict",
    "Window",
    "learn_margins",
    "learn_prior",
    "output_name",
    "past_of",
    "placebo_sentence",
    "plan",
    "pseudo_canaries",
    "recommend",
    "sentence",
    "summarize_past",
    "warnings",
]
