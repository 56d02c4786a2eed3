"""The tables. Texts hold the canonical JSON of values; columns beside them exist only to be searched by."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

AUTO_ID = BigInteger().with_variant(Integer, "sqlite")

FORMAT = 1
"""The format of the JSON that this code writes; what was written in a higher one is left to newer replicas. Raise it
with any change of a stored value that the code of the release before cannot read."""

rollouts = Table(
    "rollouts",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("cluster", String(253), nullable=False),
    Column("namespace", String(63), nullable=False),
    Column("service", String(63), nullable=False),
    Column("version", String(128), nullable=False),
    Column("phase", String(32), nullable=False),
    Column("active", Boolean, nullable=False),
    Column("watched", Boolean, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("state", Text, nullable=False),
    Column("monitor", LargeBinary, nullable=False),
    Column("window_due_at", Float),
    Column("window_not_before", Float, nullable=False, server_default="0"),
    Column("wake_at", Float),
    Column("started_at", Float, nullable=False),
    Column("retreated_at", Float),
    Column("format", Integer, nullable=False, server_default="1"),
    Index(
        "one_active_rollout_a_service",
        "cluster",
        "namespace",
        "service",
        unique=True,
        sqlite_where=text("active"),
        postgresql_where=text("active"),
    ),
    Index("ix_rollouts_window_due_at", "window_due_at"),
    Index("ix_rollouts_wake_at", "wake_at"),
    # Counted every few seconds, beside rows of some kilobytes.
    Index("ix_rollouts_phase", "phase"),
    Index("ix_rollouts_started_at", "started_at", "id"),
    Index("ix_rollouts_retreated_at", "retreated_at"),
    # Whom to watch and what is owed are few among many that have ended.
    Index("ix_rollouts_watched", "id", sqlite_where=text("watched = 1"), postgresql_where=text("watched")),
    Index("ix_rollouts_cluster", "cluster", "namespace", "service", "started_at"),
)

journal = Table(
    "journal",
    metadata,
    Column("rollout", String(64), nullable=False),
    Column("n", Integer, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("body", Text, nullable=False),
    Column("stimulus", Text, nullable=False),
    PrimaryKeyConstraint("rollout", "n"),
)

windows = Table(
    "windows",
    metadata,
    Column("rollout", String(64), nullable=False),
    Column("n", Integer, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("body", Text, nullable=False),
    # Since revision 0004 the body lies here, packed, and the text is empty.
    Column("packed", LargeBinary),
    PrimaryKeyConstraint("rollout", "n"),
)

outbox = Table(
    "outbox",
    metadata,
    Column("id", AUTO_ID, primary_key=True, autoincrement=True),
    Column("rollout", String(64), nullable=False),
    Column("lane", String(16), nullable=False),
    Column("type", String(32), nullable=False),
    Column("body", Text, nullable=False),
    Column("owed_since", Float, nullable=False),
    Column("not_before", Float, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("last_error", Text, nullable=False),
    Column("settled_at", Float),
    Index(
        "ix_outbox_open",
        "lane",
        "id",
        sqlite_where=text("settled_at IS NULL"),
        postgresql_where=text("settled_at IS NULL"),
    ),
    Index("ix_outbox_rollout", "rollout", "settled_at"),
    Index(
        "ix_outbox_settled_at",
        "settled_at",
        sqlite_where=text("settled_at IS NOT NULL"),
        postgresql_where=text("settled_at IS NOT NULL"),
    ),
)

seen_events = Table(
    "seen_events",
    metadata,
    Column("source", String(1024), nullable=False),
    Column("id", String(1024), nullable=False),
    Column("at", Float, nullable=False),
    PrimaryKeyConstraint("source", "id"),
    Index("ix_seen_events_at", "at"),
)

heads = Table(
    "heads",
    metadata,
    Column("cluster", String(253), nullable=False),
    Column("namespace", String(63), nullable=False),
    Column("service", String(63), nullable=False),
    Column("event_at", Float, nullable=False),
    Column("event_id", String(1024), nullable=False),
    Column("fence", BigInteger, nullable=False),
    PrimaryKeyConstraint("cluster", "namespace", "service"),
)

switches = Table(
    "switches",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("frozen", Boolean, nullable=False),
    Column("actor", String(200), nullable=False),
    Column("reason", Text, nullable=False),
    Column("at", Float, nullable=False),
)

leases = Table(
    "leases",
    metadata,
    Column("name", String(253), primary_key=True),
    Column("holder", String(253), nullable=False),
    Column("until", Float, nullable=False),
)

compatibility = Table(
    "compatibility",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    # The oldest revision whose code may run on this schema.
    Column("oldest", String(32), nullable=False),
)

# What retention has done to ended rollouts; times in seconds since 1970, none where it has not been done.
pruned = Table(
    "pruned",
    metadata,
    Column("rollout", String(64), primary_key=True),
    Column("exported_at", Float),
    Column("windows_at", Float),
    Column("journal_at", Float),
)

# Prediction records: how far each partition is counted, and what was counted (``ring.predictions``).
prediction_partitions = Table(
    "prediction_partitions",
    metadata,
    Column("topic", String(249), nullable=False),
    Column("partition", Integer, nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("next_offset", BigInteger, nullable=False),
    Column("watermark_s", Float, nullable=False),
    Column("seen_at_s", Float, nullable=False),
    Column("lost_until_s", Float, nullable=False),
    Column("lost_from_s", Float, nullable=False),
    Column("counted_n", BigInteger, nullable=False),
    Column("late_n", BigInteger, nullable=False),
    Column("poison_n", BigInteger, nullable=False),
    Column("refused_n", BigInteger, nullable=False),
    PrimaryKeyConstraint("topic", "partition"),
)

prediction_counts = Table(
    "prediction_counts",
    metadata,
    Column("id", AUTO_ID, primary_key=True, autoincrement=True),
    Column("topic", String(249), nullable=False),
    Column("cluster", String(253), nullable=False),
    Column("namespace", String(63), nullable=False),
    Column("service", String(63), nullable=False),
    Column("from_s", Float, nullable=False),
    Column("until_s", Float, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Index("ix_prediction_counts_service", "cluster", "namespace", "service", "until_s"),
    Index("ix_prediction_counts_until_s", "until_s"),
)

prediction_references = Table(
    "prediction_references",
    metadata,
    Column("owner", String(400), nullable=False),
    Column("name", String(130), nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("at", Float, nullable=False),
    PrimaryKeyConstraint("owner", "name"),
    # With the owner, so that those of services are passed over without a look at their bodies.
    Index("ix_prediction_references_at", "at", "owner"),
)
