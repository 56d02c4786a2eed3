"""Analysis: claims the windows that are due, collects both arms, judges all of them at once, hands verdicts back.

It reads telemetry only through the ``Source`` port and never writes to the mesh.
"""
