"""The tables as SQLAlchemy sees them.

Databases are made by the migrations, not from here; ``schema.sql`` and
``schema.postgresql.sql`` are the readable rendering. A test keeps all three alike.

Sizes and counts are 64-bit; times are Unix seconds as double precision, because that is
what the records carry and both databases keep it exactly.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    text,
)

__all__ = ["REVISION", "STATUSES", "VERSION_TABLE", "WAITING", "files", "metadata", "uploads"]

REVISION = "0001"
"""The schema this code works with: the newest revision in `migrations`."""

VERSION_TABLE = "cloudmanager_schema"
"""Holds the revision. Not Alembic's default name: a server database may hold the tables, and
the version table, of another application too."""

STATUSES = ("stored", "queued", "failed", "removing")

WAITING = "status IN ('queued', 'removing')"
"""The condition of the partial indexes. Queries must repeat it letter by letter, without bound
parameters: SQLite uses a partial index only where it can see that the condition holds."""

# Byte order on both databases. PostgreSQL's default collation follows the locale of the
# server, which makes key-set paging depend on it, and costs more per comparison.
_Key = Text().with_variant(Text(collation="C"), "postgresql")

metadata = MetaData()

files = Table(
    "files",
    metadata,
    Column("hash", _Key, nullable=False),
    Column("name", Text, nullable=False),
    Column("name_bytes", LargeBinary),
    Column("size", BigInteger, nullable=False),
    Column("created", Double, nullable=False),
    PrimaryKeyConstraint("hash", name="files_pkey"),
    CheckConstraint(
        "length(hash) = 64 AND hash NOT GLOB '*[^0-9a-f]*'", name="files_hash_form"
    ).ddl_if(dialect="sqlite"),
    CheckConstraint("hash ~ '^[0-9a-f]{64}$'", name="files_hash_form").ddl_if(dialect="postgresql"),
    CheckConstraint("size >= 0", name="files_size_positive"),
    # The key is the hash and every read goes through it: a clustered table keeps the
    # hash once and finds the row in one descent.
    sqlite_with_rowid=False,
)

uploads = Table(
    "uploads",
    metadata,
    Column("hash", _Key, ForeignKey("files.hash", name="uploads_hash_fkey"), nullable=False),
    Column("host", _Key, nullable=False),
    Column("location", _Key, nullable=False),
    Column("status", Text, nullable=False),
    Column("external", Boolean, nullable=False),
    Column("error", Text),
    Column("attempts", Integer, nullable=False),
    Column("stored_at", Double),
    Column("checksum_kind", Text),
    Column("checksum_value", Text),
    Column("checksum_part_size", BigInteger),
    Column("etag", Text),
    Column("verified_at", Double),
    Column("verdict", Text),
    PrimaryKeyConstraint("hash", "host", "location", name="uploads_pkey"),
    CheckConstraint(
        "status IN ('stored', 'queued', 'failed', 'removing')", name="uploads_status_known"
    ),
    CheckConstraint("attempts >= 0", name="uploads_attempts_positive"),
    CheckConstraint(
        "(checksum_kind IS NULL) = (checksum_value IS NULL)", name="uploads_checksum_whole"
    ),
    CheckConstraint("checksum_part_size > 0", name="uploads_part_size_positive"),
    sqlite_with_rowid=False,
)

Index(
    "uploads_waiting",
    uploads.c.hash,
    uploads.c.host,
    uploads.c.location,
    sqlite_where=text(WAITING),
    postgresql_where=text(WAITING),
)
Index(
    "uploads_waiting_by_host",
    uploads.c.host,
    uploads.c.hash,
    uploads.c.location,
    sqlite_where=text(WAITING),
    postgresql_where=text(WAITING),
)

transfer_meter = Table(
    "transfer_meter",
    metadata,
    Column("month", Text, nullable=False),
    Column("incoming", BigInteger, nullable=False),
    Column("outgoing", BigInteger, nullable=False),
    PrimaryKeyConstraint("month", name="transfer_meter_pkey"),
    CheckConstraint(
        "month GLOB '[0-9][0-9][0-9][0-9]-[0-1][0-9]'", name="transfer_meter_month_form"
    ).ddl_if(dialect="sqlite"),
    CheckConstraint("month ~ '^[0-9]{4}-[01][0-9]$'", name="transfer_meter_month_form").ddl_if(
        dialect="postgresql"
    ),
    CheckConstraint("incoming >= 0 AND outgoing >= 0", name="transfer_meter_positive"),
    sqlite_with_rowid=False,
)

cloudmanager_schema = Table(
    VERSION_TABLE,
    metadata,
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name="cloudmanager_schema_pkc"),
)
