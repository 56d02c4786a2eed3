"""The real parts: how a real Kafka, API server, Prometheus and PostgreSQL are got and started on one's own machine.

Everything is kept in .cache of the checkout, by a hash of what it is made from. A part that cannot be had is an error
that says what is missing: a real test never passes by not running. The one that is skipped is the kubelet's, where the
user may make no cgroups: no part that could be got would help.
"""
