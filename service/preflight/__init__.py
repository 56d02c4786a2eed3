"""The gates before any traffic: what can be known of a candidate while it serves nobody.

Everything read here comes from outside: registries, reports, models, recorded requests. It is bounded in bytes, depth
and time, and nothing of it is executed.
"""
