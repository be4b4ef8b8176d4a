"""The catalog: what we know about files and their copies, in SQLite or PostgreSQL.

Rooms: `tables` (the schema as SQLAlchemy sees it), `records` (rows to and from the house's
records), `queries` (the `Catalog`), `holds` (who works on which file), `database` (engine and
transactions), `border` (foreign exceptions become ours), `lookup` (the one hot read),
`schema` (set-up and upgrades) with its `migrations`.
"""

from __future__ import annotations

from cloudmanager.catalog.queries import Catalog, HostCount
from cloudmanager.catalog.schema import set_up

__all__ = ["Catalog", "HostCount", "set_up"]
