"""The history of the schema, run by `cloudmanager.catalog.schema`, without an alembic.ini."""
