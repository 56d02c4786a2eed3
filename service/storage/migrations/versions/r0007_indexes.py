"""What is counted or goes by its age is found without reading all that is kept of it."""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Two indexes; replicas of the release before do not notice them."""
    op.create_index("ix_prediction_references_at", "prediction_references", ["at", "owner"])
    op.create_index("ix_rollouts_phase", "rollouts", ["phase"])


def downgrade() -> None:
    """Without them."""
    op.drop_index("ix_rollouts_phase", "rollouts")
    op.drop_index("ix_prediction_references_at", "prediction_references")
