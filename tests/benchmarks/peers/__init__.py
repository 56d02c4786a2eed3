"""Serinus beside other tools: one generator, one table, everyone on the same windows.

`python -m tests.benchmarks.peers` runs it. Each tool is a few functions over whole streams. What it says at each
window is a score by signal; it rolls back in the first window in which a signal reaches its threshold. So one pass
gives both the documented default and the threshold that leaves every tool with equal false alarms.
"""
