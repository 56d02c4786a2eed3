"""What prediction records are held against goes by its age without reading all that is kept of it."""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """One index; replicas of the release before do not notice it."""
    op.create_index("ix_prediction_references_at", "prediction_references", ["at", "owner"])


def downgrade() -> None:
    """Without it."""
    op.drop_index("ix_prediction_references_at", "prediction_references")
