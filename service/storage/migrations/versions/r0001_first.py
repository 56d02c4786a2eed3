"""The first schema."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

AUTO_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """From nothing."""
    op.create_table(
        "rollouts",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("cluster", sa.String(253), nullable=False),
        sa.Column("namespace", sa.String(63), nullable=False),
        sa.Column("service", sa.String(63), nullable=False),
        sa.Column("version", sa.String(128), nullable=False),
        sa.Column("phase", sa.String(32), nullable=False),
        sa.Column("active", sa.Boolean, nullable=False),
        sa.Column("watched", sa.Boolean, nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("monitor", sa.LargeBinary, nullable=False),
        sa.Column("window_due_at", sa.Float),
        sa.Column("wake_at", sa.Float),
        sa.Column("started_at", sa.Float, nullable=False),
        sa.Column("retreated_at", sa.Float),
    )
    op.create_index(
        "one_active_rollout_a_service",
        "rollouts",
        ["cluster", "namespace", "service"],
        unique=True,
        sqlite_where=sa.text("active"),
        postgresql_where=sa.text("active"),
    )
    op.create_index("ix_rollouts_window_due_at", "rollouts", ["window_due_at"])
    op.create_index("ix_rollouts_wake_at", "rollouts", ["wake_at"])
    op.create_index("ix_rollouts_started_at", "rollouts", ["started_at", "id"])
    op.create_index("ix_rollouts_retreated_at", "rollouts", ["retreated_at"])
    for name, extra in (("journal", [sa.Column("stimulus", sa.Text, nullable=False)]), ("windows", [])):
        op.create_table(
            name,
            sa.Column("rollout", sa.String(64), nullable=False),
            sa.Column("n", sa.Integer, nullable=False),
            sa.Column("revision", sa.Integer, nullable=False),
            sa.Column("body", sa.Text, nullable=False),
            *extra,
            sa.PrimaryKeyConstraint("rollout", "n", name=f"pk_{name}"),
        )
    op.create_table(
        "outbox",
        sa.Column("id", AUTO_ID, primary_key=True, autoincrement=True),
        sa.Column("rollout", sa.String(64), nullable=False),
        sa.Column("lane", sa.String(16), nullable=False),
        sa.Column("type", sa.String(32), nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("owed_since", sa.Float, nullable=False),
        sa.Column("not_before", sa.Float, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("last_error", sa.Text, nullable=False),
        sa.Column("settled_at", sa.Float),
    )
    op.create_index("ix_outbox_owed", "outbox", ["lane", "settled_at", "not_before"])
    op.create_index("ix_outbox_rollout", "outbox", ["rollout", "settled_at"])
    op.create_table(
        "seen_events",
        sa.Column("source", sa.String(1024), nullable=False),
        sa.Column("id", sa.String(1024), nullable=False),
        sa.Column("at", sa.Float, nullable=False),
        sa.PrimaryKeyConstraint("source", "id", name="pk_seen_events"),
    )
    op.create_table(
        "heads",
        sa.Column("cluster", sa.String(253), nullable=False),
        sa.Column("namespace", sa.String(63), nullable=False),
        sa.Column("service", sa.String(63), nullable=False),
        sa.Column("event_at", sa.Float, nullable=False),
        sa.Column("event_id", sa.String(1024), nullable=False),
        sa.Column("fence", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("cluster", "namespace", "service", name="pk_heads"),
    )
    op.create_table(
        "switches",
        sa.Column("name", sa.String(32), primary_key=True),
        sa.Column("frozen", sa.Boolean, nullable=False),
        sa.Column("actor", sa.String(200), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("at", sa.Float, nullable=False),
    )


def downgrade() -> None:
    """Back to nothing."""
    for name in ("switches", "heads", "seen_events", "outbox", "windows", "journal", "rollouts"):
        op.drop_table(name)
