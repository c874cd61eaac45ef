"""Bodies are encrypted, with keys that lie here locked; a prompt's fixed beginning has a hash of its own."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    op.create_table(
        "body_keys",
        sa.Column("id", sa.String, nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("wrapped_key", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_body_keys"),
    )
    # A server encrypts what lies here in plain when it starts: it has the key, and a migration has none.
    with op.batch_alter_table("bodies") as table:
        table.add_column(sa.Column("sealed", sa.LargeBinary, nullable=True))
        table.add_column(sa.Column("sealed_with", sa.String, nullable=True))
        table.alter_column("request", existing_type=sa.Text, nullable=True)
        table.alter_column("answer", existing_type=sa.Text, nullable=True)
    op.add_column("requests", sa.Column("template_hash", sa.String, nullable=True))
