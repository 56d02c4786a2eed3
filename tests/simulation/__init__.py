"""Simulated worlds: several replicas of the real service, and around them an outside that fails in every known way.

A world is made from one seed. Time is virtual, there is one thread, and the seed decides who goes next, so that the
same seed always tells the same story. ``world`` is the course of events and the weather; ``replica`` wires the real
rooms; ``process`` is where faults strike a call; ``kube``, ``kafka``, ``outside`` and ``database`` are the outside;
``watch`` knows what may never be seen; ``plan`` says what a seed means, ``mutants`` which faults can be planted in the
product to see that the watch notices, ``shrink`` looks for a shorter story.

How to read a failure
---------------------
``python -m tests.simulation --seed 42 --shrink`` (the last line of every failure is such a command) tells the shortest
story that was found, one sentence a step, each with its virtual second:

- The first line names the invariant and what was seen. The invariants are the first words of ``Watch._broken(...)``.
- ``replica 2 (life 3) commits for svc-1 1.2.0: ...`` is the headline of a journal row: what the core has decided.
  ``svc-1 in east goes from 10 % to 50 %, fence 7 to 8`` is a write that has landed. Everything else is weather:
  who was killed, stopped, held up, cut off, or set to another time.
- Read from the end: the last write or commit before BROKEN is the culprit's. Then look up where its replica was held:
  the usual cause is a replica that goes on with what it read before somebody else's newer decision.
- Replicas start with any clock here. A real one on PostgreSQL refuses when it is more than 10 s off the database's.
- ``--faults``, ``--replicas``, ``--services`` and ``--sick`` change one thing of the world. A cause that is taken away
  takes the failure with it.
- The story changes with the product's code, since the same dice then fall elsewhere: keep a cause as a named test in
  its room, not as a seed.
"""
