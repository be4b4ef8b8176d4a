"""Files, their copies, and the transfer meter."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_WAITING = sa.text("status IN ('queued', 'removing')")


def upgrade() -> None:
    """Create the tables."""
    sqlite = op.get_bind().dialect.name == "sqlite"
    key = sa.Text() if sqlite else sa.Text(collation="C")
    hash_form = (
        "length(hash) = 64 AND hash NOT GLOB '*[^0-9a-f]*'" if sqlite else "hash ~ '^[0-9a-f]{64}$'"
    )
    month_form = (
        "month GLOB '[0-9][0-9][0-9][0-9]-[0-1][0-9]'"
        if sqlite
        else "month ~ '^[0-9]{4}-[01][0-9]$'"
    )
    op.create_table(
        "files",
        sa.Column("hash", key, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("name_bytes", sa.LargeBinary),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("created", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("hash", name="files_pkey"),
        sa.CheckConstraint(hash_form, name="files_hash_form"),
        sa.CheckConstraint("size >= 0", name="files_size_positive"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "uploads",
        sa.Column(
            "hash", key, sa.ForeignKey("files.hash", name="uploads_hash_fkey"), nullable=False
        ),
        sa.Column("host", key, nullable=False),
        sa.Column("location", key, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("external", sa.Boolean, nullable=False),
        sa.Column("error", sa.Text),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("stored_at", sa.Double),
        sa.Column("checksum_kind", sa.Text),
        sa.Column("checksum_value", sa.Text),
        sa.Column("checksum_part_size", sa.BigInteger),
        sa.Column("etag", sa.Text),
        sa.Column("verified_at", sa.Double),
        sa.Column("verdict", sa.Text),
        sa.PrimaryKeyConstraint("hash", "host", "location", name="uploads_pkey"),
        sa.CheckConstraint(
            "status IN ('stored', 'queued', 'failed', 'removing')", name="uploads_status_known"
        ),
        sa.CheckConstraint("attempts >= 0", name="uploads_attempts_positive"),
        sa.CheckConstraint(
            "(checksum_kind IS NULL) = (checksum_value IS NULL)", name="uploads_checksum_whole"
        ),
        sa.CheckConstraint("checksum_part_size > 0", name="uploads_part_size_positive"),
        sqlite_with_rowid=False,
    )
    for name, columns in (
        ("uploads_waiting", ["hash", "host", "location"]),
        ("uploads_waiting_by_host", ["host", "hash", "location"]),
    ):
        op.create_index(name, "uploads", columns, sqlite_where=_WAITING, postgresql_where=_WAITING)
    op.create_table(
        "transfer_meter",
        sa.Column("month", sa.Text, nullable=False),
        sa.Column("incoming", sa.BigInteger, nullable=False),
        sa.Column("outgoing", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("month", name="transfer_meter_pkey"),
        sa.CheckConstraint(month_form, name="transfer_meter_month_form"),
        sa.CheckConstraint("incoming >= 0 AND outgoing >= 0", name="transfer_meter_positive"),
        sqlite_with_rowid=False,
    )
