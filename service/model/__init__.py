"""The vocabulary: values that every room speaks in, and nothing that acts.

A value is frozen, validated when it is made and written to JSON in one canonical form, so that what stands in the
journal, in the outbox and on the bus is the same thing that the core decided on.
"""
