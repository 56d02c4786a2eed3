"""Prediction records are counted in the database, together with how far their topic is read."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Three tables beside the others; replicas of the release before notice none of them."""
    op.create_table(
        "prediction_partitions",
        sa.Column("topic", sa.String(249), nullable=False),
        sa.Column("partition", sa.Integer, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("next_offset", sa.BigInteger, nullable=False),
        sa.Column("watermark_s", sa.Float, nullable=False),
        sa.Column("seen_at_s", sa.Float, nullable=False),
        sa.Column("lost_until_s", sa.Float, nullable=False),
        sa.Column("lost_from_s", sa.Float, nullable=False),
        sa.Column("counted_n", sa.BigInteger, nullable=False),
        sa.Column("late_n", sa.BigInteger, nullable=False),
        sa.Column("poison_n", sa.BigInteger, nullable=False),
        sa.Column("refused_n", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("topic", "partition"),
    )
    auto_id = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    op.create_table(
        "prediction_counts",
        sa.Column("id", auto_id, primary_key=True, autoincrement=True),
        sa.Column("topic", sa.String(249), nullable=False),
        sa.Column("cluster", sa.String(253), nullable=False),
        sa.Column("namespace", sa.String(63), nullable=False),
        sa.Column("service", sa.String(63), nullable=False),
        sa.Column("from_s", sa.Float, nullable=False),
        sa.Column("until_s", sa.Float, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
    )
    op.create_index("ix_prediction_counts_service", "prediction_counts", ["cluster", "namespace", "service", "until_s"])
    op.create_index("ix_prediction_counts_until_s", "prediction_counts", ["until_s"])
    op.create_table(
        "prediction_references",
        sa.Column("owner", sa.String(400), nullable=False),
        sa.Column("name", sa.String(130), nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("at", sa.Float, nullable=False),
        sa.PrimaryKeyConstraint("owner", "name"),
    )


def downgrade() -> None:
    """Without them. The topic is then counted anew by a later upgrade, from an hour before it."""
    for name in ("prediction_references", "prediction_counts", "prediction_partitions"):
        op.drop_table(name)
