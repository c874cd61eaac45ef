"""Tasks: pictures, videos, speech and transcripts under way or made."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_table(
        "tasks",
        sa.Column("id", sa.String, nullable=False),
        sa.Column("key_id", sa.String, nullable=True),
        sa.Column("request_id", sa.String, nullable=False),
        sa.Column("route", sa.String, nullable=False),
        sa.Column("model", sa.String, nullable=False),
        sa.Column("upstream_id", sa.String, nullable=False),
        sa.Column("status", sa.String, nullable=False),
        sa.Column("output", sa.JSON, nullable=False),
        sa.Column("usage", sa.JSON, nullable=False),
        sa.Column("urls", sa.JSON, nullable=False),
        sa.Column("submitted_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_tasks"),
    )
    op.create_index("ix_tasks_key_id", "tasks", ["key_id"])
    op.create_index("ix_tasks_submitted_at", "tasks", ["submitted_at"])
