"""Windows are packed, rollouts say in which format they are written, the schema says how old a release it serves, and
what is open is found without reading what has ended.

Replicas of the release before go on: they read and write everything but the charts of windows that new ones judged.
"""

import sqlalchemy as sa
from alembic import op

from service.storage.packing import unpack

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

CHUNK = 500


def upgrade() -> None:
    """New columns and the schema's own word; old rows stay as they are and are read as they are."""
    op.add_column("rollouts", sa.Column("format", sa.Integer, nullable=False, server_default="1"))
    op.add_column("windows", sa.Column("packed", sa.LargeBinary))
    compatibility = op.create_table(
        "compatibility",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("oldest", sa.String(32), nullable=False),
    )
    for name, table, columns, sqlite_where, where in (
        ("ix_rollouts_watched", "rollouts", ["id"], "watched = 1", "watched"),
        ("ix_outbox_open", "outbox", ["lane", "id"], "settled_at IS NULL", "settled_at IS NULL"),
    ):
        op.create_index(name, table, columns, sqlite_where=sa.text(sqlite_where), postgresql_where=sa.text(where))
    op.drop_index("ix_outbox_owed", "outbox")
    op.bulk_insert(compatibility, [{"id": 1, "oldest": "0003"}])


def downgrade() -> None:
    """Unpack what was packed, a chunk at a time, and go without."""
    connection = op.get_bind()
    windows = sa.table("windows", *map(sa.column, ("rollout", "n", "body", "packed")))
    packed = sa.select(windows.c.rollout, windows.c.n, windows.c.packed).where(windows.c.packed.is_not(None))
    one = sa.and_(windows.c.rollout == sa.bindparam("of"), windows.c.n == sa.bindparam("at"))
    body = sa.bindparam("text", type_=sa.Text)
    while rows := connection.execute(packed.limit(CHUNK)).all():
        connection.execute(
            windows.update().where(one).values(body=body, packed=sa.null()),
            [{"of": row.rollout, "at": row.n, "text": unpack(bytes(row.packed))} for row in rows],
        )
    op.drop_table("compatibility")
    op.create_index("ix_outbox_owed", "outbox", ["lane", "settled_at", "not_before"])
    op.drop_index("ix_outbox_open", "outbox")
    op.drop_index("ix_rollouts_watched", "rollouts")
    op.drop_column("windows", "packed")
    op.drop_column("rollouts", "format")
