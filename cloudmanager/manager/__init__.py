"""CloudManager: the pool, one facade over cache, catalog and hosts.

`pool` is the facade; each of the other rooms does one of its jobs: `staging` and
`uploading` the way in, `placing` the choice of hosts, `ring` their health, `downloading`,
`fetching` and `reading` the way out, `syncing` what waits, `verifying` and `repairing` what
hosts lost or spoiled, `rebuilding` a lost catalog.
"""

from cloudmanager.manager.pool import CloudManager
from cloudmanager.manager.results import (
    CopyVerdict,
    FileInfo,
    QueuedCopy,
    RebuildResult,
    Repair,
    Shortage,
    SyncResult,
    SyncStatus,
    UploadResult,
)

__all__ = [
    "CloudManager",
    "CopyVerdict",
    "FileInfo",
    "QueuedCopy",
    "RebuildResult",
    "Repair",
    "Shortage",
    "SyncResult",
    "SyncStatus",
    "UploadResult",
]
