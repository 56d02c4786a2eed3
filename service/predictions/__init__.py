"""Prediction records from a Kafka topic: decoded, counted by class or bin, exactly once, and read back as windows.

``decode`` and ``binning`` are pure. ``consumer`` counts records and keeps the counts together with the partition's
offset in one transaction; ``source`` reads windows from what was kept. Both know the database only through
``ring.predictions``.
"""
