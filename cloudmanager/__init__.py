"""A content-addressed pool of files on many clouds.

    import cloudmanager
    cm = cloudmanager.CloudManager("catalog.sqlite3", "storage/", "20GiB")

Nothing heavy is imported until it is used: ``import cloudmanager`` loads no SDK and no
SQLAlchemy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cloudmanager._version import __version__

if TYPE_CHECKING:
    from cloudmanager.manager import CloudManager, UploadResult

__all__ = ["CloudManager", "UploadResult", "__version__"]


def __getattr__(name: str) -> Any:
    if name in ("CloudManager", "UploadResult"):
        from cloudmanager import manager

        return getattr(manager, name)
    raise AttributeError(f"module 'cloudmanager' has no attribute {name!r}")
