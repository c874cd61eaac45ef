"""From one model to another: migrations with their steps; what users and graders think of answers."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.create_table(
        "migrations",
        sa.Column("id", sa.String, nullable=False),
        sa.Column("alias", sa.String, nullable=False),
        sa.Column("old", sa.String, nullable=False),
        sa.Column("new", sa.String, nullable=False),
        sa.Column("plan", sa.JSON, nullable=True),
        sa.Column("stage", sa.String, nullable=False),
        sa.Column("step", sa.Integer, nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("stage_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("open_alias", sa.String, nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_migrations"),
        sa.UniqueConstraint("open_alias", name="uq_migrations_open_alias"),
    )
    op.create_index("ix_migrations_alias_started_at", "migrations", ["alias", "started_at"])
    op.create_table(
        "migration_steps",
        sa.Column("migration_id", sa.String, nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("stage", sa.String, nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("actor", sa.String, nullable=False),
        sa.Column("why", sa.Text, nullable=False),
        sa.Column("gates", sa.JSON, nullable=True),
        sa.PrimaryKeyConstraint("migration_id", "number", name="pk_migration_steps"),
    )
    op.create_table(
        "feedback",
        sa.Column("request_id", sa.String, nullable=False),
        sa.Column("rated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("rating", sa.Double, nullable=False),
        sa.Column("label", sa.String, nullable=True),
        sa.PrimaryKeyConstraint("request_id", name="pk_feedback"),
    )
    op.create_index("ix_feedback_rated_at", "feedback", ["rated_at"])
    op.create_table(
        "grades",
        sa.Column("request_id", sa.String, nullable=False),
        sa.Column("grader", sa.String, nullable=False),
        sa.Column("model", sa.String, nullable=False),
        sa.Column("deployment", sa.String, nullable=True),
        sa.Column("graded_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("score", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("request_id", "grader", name="pk_grades"),
    )
    op.create_index("ix_grades_model_graded_at", "grades", ["model", "graded_at"])
