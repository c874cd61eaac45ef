"""Teams, users and tags; limits as one value; a key's token before this one."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "accounts",
        sa.Column("id", sa.String, nullable=False),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("limits", sa.JSON, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_accounts"),
        sa.UniqueConstraint("kind", "name", name="uq_accounts_kind"),
    )
    for column in ("team_id", "user_id"):
        # In SQL, for SQLite: Alembic would add the constraint by itself, which SQLite can't.
        reference = f"CONSTRAINT fk_keys_{column}_accounts REFERENCES accounts (id)"
        op.execute(f"ALTER TABLE keys ADD COLUMN {column} VARCHAR {reference}")
        op.create_index(f"ix_keys_{column}", "keys", [column])
    op.add_column("keys", sa.Column("previous_hash", sa.String, nullable=True))
    op.add_column("keys", sa.Column("previous_expires_at", sa.DateTime(timezone=True), nullable=True))
    op.create_index("ix_keys_previous_hash", "keys", ["previous_hash"])
    for column in ("tags", "limits"):
        op.add_column("keys", sa.Column(column, sa.JSON, nullable=False, server_default="{}"))

    keys = sa.table("keys", sa.column("id"), sa.column("requests_per_minute"), sa.column("limits", sa.JSON))
    limited = sa.select(keys.c.id, keys.c.requests_per_minute).where(keys.c.requests_per_minute.is_not(None))
    for id, requests_per_minute in op.get_bind().execute(limited).all():
        limits = {"requests_per_minute": requests_per_minute}
        op.execute(keys.update().where(keys.c.id == id).values(limits=limits))
    op.drop_column("keys", "requests_per_minute")
