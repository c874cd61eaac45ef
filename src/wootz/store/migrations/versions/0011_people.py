"""People and groups, sign-ins under way, sessions that can be told apart, attributes, and erasures."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    for table in ("accounts", "keys"):
        op.add_column(table, sa.Column("attributes", sa.JSON, nullable=True))
    op.create_table(
        "people",
        sa.Column("user_id", sa.String, sa.ForeignKey("accounts.id", name="fk_people_user_id_accounts")),
        sa.Column("subject", sa.String, nullable=True),
        sa.Column("external_id", sa.String, nullable=True),
        sa.Column("active", sa.Boolean, nullable=False),
        sa.Column("granted", sa.JSON, nullable=False),
        sa.Column("claimed_groups", sa.JSON, nullable=False),
        sa.Column("profile", sa.JSON, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("changed_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("user_id", name="pk_people"),
        sa.UniqueConstraint("subject", name="uq_people_subject"),
    )
    op.create_table(
        "groups",
        sa.Column("id", sa.String, nullable=False),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("external_id", sa.String, nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("changed_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_groups"),
        sa.UniqueConstraint("name", name="uq_groups_name"),
    )
    op.create_table(
        "group_members",
        sa.Column("group_id", sa.String, sa.ForeignKey("groups.id", name="fk_group_members_group_id_groups")),
        sa.Column("user_id", sa.String, sa.ForeignKey("people.user_id", name="fk_group_members_user_id_people")),
        sa.PrimaryKeyConstraint("group_id", "user_id", name="pk_group_members"),
    )
    op.create_index("ix_group_members_user_id", "group_members", ["user_id"])
    op.create_table(
        "sign_ins",
        sa.Column("state_hash", sa.String, nullable=False),
        sa.Column("browser_hash", sa.String, nullable=False),
        sa.Column("nonce", sa.String, nullable=False),
        sa.Column("verifier", sa.String, nullable=False),
        sa.Column("next", sa.String, nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("state_hash", name="pk_sign_ins"),
    )
    # Whoever is signed in signs in again: old sessions have no ids and no last use.
    op.drop_table("sessions")
    op.create_table(
        "sessions",
        sa.Column("id_hash", sa.String, nullable=False),
        sa.Column("id", sa.String, nullable=False),
        sa.Column("key_id", sa.String, sa.ForeignKey("keys.id", name="fk_sessions_key_id_keys"), nullable=False),
        sa.Column("method", sa.String, nullable=False),
        sa.Column("csrf_token", sa.String, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("used_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id_hash", name="pk_sessions"),
    )
    op.create_index("ix_sessions_key_id", "sessions", ["key_id"])
    op.create_table(
        "erasures",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("asked_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_erasures"),
    )
    op.add_column("requests", sa.Column("prompt_hash", sa.String, nullable=True))
    op.add_column("requests", sa.Column("prompt_chars", sa.Integer, nullable=True))
