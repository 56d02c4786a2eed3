"""Alerts: the people on call. Every call is one try; what failed for now is owed still and tried by dispatch."""
