"""The schema's history. Every revision goes up and down, so that an upgrade can be taken back.

Rules of a revision, so that replicas of two releases run side by side during an upgrade:

1. It only adds: tables, nullable columns or columns with a server default, indexes. The release before, already
   running, goes on with its own statements; they are frozen in tests/contract/store/statements and run against the
   newest schema. Freeze those of a revision once it is out.
2. What must go, goes a release later than the last code that used it. Such a revision sets ``compatibility.oldest`` to
   the oldest revision whose code still runs on it. A release that starts on a newer schema than it knows reads that:
   it goes on where it is new enough, and refuses otherwise.
3. ``downgrade`` keeps the rows in a form that the older code reads.
4. A change of stored JSON that older code cannot read raises ``tables.FORMAT``. A rollout that was written in a newer
   format is left to the replicas that know it: older ones do not claim it, list it or change it. A format that is
   raised brings a revision whose ``downgrade`` rewrites what was written in it.
"""
