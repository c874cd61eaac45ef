"""What is certain of an answer: its structure, and how its numbers were computed."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.add_column("requests", sa.Column("guarantee", sa.String, nullable=True))
    op.add_column("requests", sa.Column("arithmetic", sa.String, nullable=True))
