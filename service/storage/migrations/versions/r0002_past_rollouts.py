"""Past rollouts of a service are looked up when a new one begins."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """An index by service."""
    op.create_index("ix_rollouts_cluster", "rollouts", ["cluster", "namespace", "service", "started_at"])


def downgrade() -> None:
    """Without it."""
    op.drop_index("ix_rollouts_cluster", "rollouts")
