"""The ledger's rows tell what happened on the way: attempts, caches, prices, tags."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    # The defaults are what rows from before are taken for; every new row brings its own values.
    with op.batch_alter_table("requests") as table:
        table.add_column(sa.Column("cache_write_tokens", sa.Integer, nullable=False, server_default="0"))
        table.add_column(sa.Column("reasoning_tokens", sa.Integer, nullable=False, server_default="0"))
        table.add_column(sa.Column("priced", sa.Boolean, nullable=False, server_default=sa.true()))
        table.add_column(sa.Column("price", sa.String, nullable=True))
        table.add_column(sa.Column("queue_time", sa.Double, nullable=True))
        table.add_column(sa.Column("team_id", sa.String, nullable=True))
        table.add_column(sa.Column("tags", sa.JSON, nullable=True))
        table.add_column(sa.Column("deployment", sa.String, nullable=True))
        table.add_column(sa.Column("num_attempts", sa.Integer, nullable=False, server_default="0"))
        table.add_column(sa.Column("lane", sa.String, nullable=False, server_default="interactive"))
        table.add_column(sa.Column("cache", sa.String, nullable=False, server_default="off"))
        table.add_column(sa.Column("tools", sa.JSON, nullable=True))
        table.add_column(sa.Column("timeline", sa.JSON, nullable=True))
