"""What the gateway keeps for users is encrypted, with keys that lie here locked."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    op.create_table(
        "kept_keys",
        sa.Column("id", sa.String, nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("wrapped_key", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_kept_keys"),
    )
    # What lies here in plain is encrypted by a server when it starts: it has the key, and a migration has none. Its
    # columns stay as they are, and empty: to make them optional, SQLite would have to write every table anew.
    for table in ("responses", "files", "batches", "tasks"):
        op.add_column(table, sa.Column("sealed", sa.LargeBinary, nullable=True))
        op.add_column(table, sa.Column("sealed_with", sa.String, nullable=True))
        op.create_index(f"ix_{table}_sealed_with", table, ["sealed_with"])
