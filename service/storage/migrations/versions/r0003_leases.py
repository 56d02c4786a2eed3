"""Windows and named work are leased, so that several replicas share them.

Everything is added with a default, so that replicas of the release before go on beside new ones.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Leases."""
    op.add_column("rollouts", sa.Column("window_not_before", sa.Float, nullable=False, server_default="0"))
    op.create_table(
        "leases",
        sa.Column("name", sa.String(253), primary_key=True),
        sa.Column("holder", sa.String(253), nullable=False),
        sa.Column("until", sa.Float, nullable=False),
    )


def downgrade() -> None:
    """Without them."""
    op.drop_table("leases")
    with op.batch_alter_table("rollouts") as rollouts:
        rollouts.drop_column("window_not_before")
