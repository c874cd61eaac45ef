"""What was asked and answered, where that is kept."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.create_table(
        "bodies",
        sa.Column("request_id", sa.String, nullable=False),
        sa.Column("user", sa.String, nullable=True),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("request", sa.Text, nullable=False),
        sa.Column("answer", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("request_id", name="pk_bodies"),
    )
    op.create_index("ix_bodies_user", "bodies", ["user"])
    op.create_index("ix_bodies_expires_at", "bodies", ["expires_at"])
