"""How Alembic runs the revisions: in the transaction of the connection it is handed."""

from __future__ import annotations

from alembic import context

from cloudmanager.catalog.tables import VERSION_TABLE

context.configure(
    connection=context.config.attributes["connection"],
    version_table=VERSION_TABLE,
    # SQLite rolls DDL back like anything else; Alembic supposes that it does not, because the
    # driver's default mode gets in the way, and that mode is off here.
    transactional_ddl=True,
)
context.run_migrations()
