"""Indexes for what identity providers ask for, one by one, when they bring thousands of people up to date."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    for table in ("accounts", "groups"):
        op.create_index(f"ix_{table}_lower_name", table, [sa.text("lower(name)")])
    for table in ("people", "groups"):
        op.create_index(f"ix_{table}_external_id", table, ["external_id"])
