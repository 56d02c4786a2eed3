"""Preflight: what is looked at before a candidate gets any traffic. One room a gate; none imports another.

Everything that is read here was written by others: each reader bounds bytes, counts, depth and time, and runs nothing.
"""
