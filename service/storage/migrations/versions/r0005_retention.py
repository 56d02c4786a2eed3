"""What retention has done to a rollout is remembered, and what is old is found without reading all that is kept."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """A table beside the rollouts and two indexes; replicas of the release before notice neither."""
    op.create_table(
        "pruned",
        sa.Column("rollout", sa.String(64), primary_key=True),
        sa.Column("exported_at", sa.Float),
        sa.Column("windows_at", sa.Float),
        sa.Column("journal_at", sa.Float),
    )
    op.create_index("ix_seen_events_at", "seen_events", ["at"])
    settled = sa.text("settled_at IS NOT NULL")
    op.create_index("ix_outbox_settled_at", "outbox", ["settled_at"], sqlite_where=settled, postgresql_where=settled)


def downgrade() -> None:
    """Without them. What was exported is then exported once more before it is deleted."""
    op.drop_index("ix_outbox_settled_at", "outbox")
    op.drop_index("ix_seen_events_at", "seen_events")
    op.drop_table("pruned")
