"""Alembic's entry point: migrate over the connection, and inside the transaction, that `migration.upgrade` holds."""

from alembic import context

from wootz.store.database import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    transactional_ddl=True,
    render_as_batch=True,
)
context.run_migrations()
