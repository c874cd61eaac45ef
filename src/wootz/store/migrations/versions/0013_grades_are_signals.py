"""Grades are signals, which the alert rules read; they were kept twice."""

from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    op.drop_table("grades")
