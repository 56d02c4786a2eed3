"""The security gate: scan reports held against limits, and the rights with which the candidate's pods run.

``picking`` reads JSON of any size in bounded memory; ``trivy``, ``clair`` and ``sarif`` say where in it what stands;
``limits``, ``provenance`` and ``posture`` judge, and are pure; ``sources`` and ``cluster`` look outside; ``gate`` puts
it together.
"""
