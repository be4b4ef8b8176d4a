"""Every exception that cloudmanager raises on purpose.

::

    CloudManagerError
    ├── ConfigurationError          settings, flags, URLs: fix them and run again
    │   └── UnknownHost             no host of that name or URL scheme
    ├── HostError                   host, operation, location, retryable
    │   ├── ObjectNotFound          the object is not there
    │   ├── ContainerNotFound       the bucket, container or folder is not there
    │   ├── AccessDenied            wrong credentials, or not allowed
    │   ├── HostUnavailable         transient: time-out, reset, DNS, 429, 5xx
    │   ├── HostFull                quota or disk exhausted
    │   ├── ObjectArchived          needs to be restored from an archive tier first
    │   ├── IntegrityError          the host answered with the wrong bytes
    │   └── Unsupported             the host lacks this capability (raised before any I/O)
    ├── NoGoodCopy                  no host could give the right bytes of a file
    ├── SourceError                 the file that was given
    │   ├── SourceChanged           it changed while it was read
    │   └── NotARegularFile         a directory, a device, a socket, a pipe
    ├── CacheError                  the local cache directory
    │   ├── CacheFull               no room, and nothing that may be evicted
    │   ├── CacheUnusable           read-only, not ours, not writable, on a full disk
    │   └── CacheCorrupt            the index cannot be read
    ├── CatalogError                the database
    │   ├── CatalogUnavailable      no answer, or locked by somebody for too long
    │   ├── CatalogNotSetUp         the database has no schema: run cm_setup_db
    │   ├── CatalogTooNew           made by a newer cloudmanager
    │   └── NotACatalog             a directory, or a file that is no database
    ├── UnknownFile                 no file of the pool has that hash; also a KeyError
    ├── AmbiguousHash               a shortened hash that fits several files
    └── Busy                        another process is doing the opposite right now

Wrong arguments raise the built-in ``ValueError``; a missing source file raises
``FileNotFoundError``. A message is one line that says what was tried, on what, and what
to do next; it never holds a secret.

This module imports nothing from the package.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "AccessDenied",
    "AmbiguousHash",
    "Busy",
    "CacheCorrupt",
    "CacheError",
    "CacheFull",
    "CacheUnusable",
    "CatalogError",
    "CatalogNotSetUp",
    "CatalogTooNew",
    "CatalogUnavailable",
    "CloudManagerError",
    "ConfigurationError",
    "ContainerNotFound",
    "HostError",
    "HostFull",
    "HostUnavailable",
    "IntegrityError",
    "NoGoodCopy",
    "NotACatalog",
    "NotARegularFile",
    "ObjectArchived",
    "ObjectNotFound",
    "SourceChanged",
    "SourceError",
    "UnknownFile",
    "UnknownHost",
    "Unsupported",
]


class CloudManagerError(Exception):
    """Base of all errors that cloudmanager raises on purpose.

    `retryable` is True only when the same call may well succeed later without anybody
    changing anything.
    """

    retryable: bool = False


class ConfigurationError(CloudManagerError):
    """A setting, a flag or a URL is wrong or missing."""


class UnknownHost(ConfigurationError):
    """No host has that name, or no kind of host has that URL scheme."""


class HostError(CloudManagerError):
    """A host did not do what was asked.

    Parameters
    ----------
    message:
        What went wrong, in the host's words where it has any, without a secret.
    host:
        The name of the host in the pool.
    operation:
        The call of the host contract: ``put``, ``get``, ``stat``, ``list``, ``delete``, …
    location:
        The URL or key it was about; ``""`` when it was about the host as a whole.
    retryable:
        Overrides the class default.
    """

    def __init__(
        self,
        message: str,
        *,
        host: str,
        operation: str,
        location: str = "",
        retryable: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.host = host
        self.operation = operation
        self.location = location
        if retryable is not None:
            self.retryable = retryable

    def __str__(self) -> str:
        about = f" {self.location}" if self.location else ""
        return f"{self.operation}{about} on host {self.host}: {self.message}"


class ObjectNotFound(HostError):
    """The object is not on the host."""


class ContainerNotFound(HostError):
    """The bucket, container or folder itself is missing."""


class AccessDenied(HostError):
    """The host refused the credentials, or they do not allow this."""


class HostUnavailable(HostError):
    """A transient failure: time-out, reset, DNS failure, 429, 5xx, SlowDown."""

    retryable = True


class HostFull(HostError):
    """The host has no room left (quota, disk full)."""


class ObjectArchived(HostError):
    """The object lies in an archive tier and must be restored before it can be read."""


class IntegrityError(HostError):
    """What the host returned, or says it stored, is not what was asked for."""


class Unsupported(HostError):
    """The host lacks this capability. Raised before any I/O."""


class NoGoodCopy(CloudManagerError):
    """No host could give the right bytes of the file `sha256`.

    `errors` holds what each host that was tried said, in that order; empty when no host of
    the pool has a copy. `spoiled` is for the caller that keeps the books: what was found
    about each copy.
    """

    def __init__(
        self,
        sha256: str,
        errors: Sequence[HostError] = (),
        spoiled: Sequence[object] = (),
    ) -> None:
        super().__init__(sha256)
        self.sha256 = sha256
        self.errors = tuple(errors)
        self.spoiled = tuple(spoiled)
        self.retryable = any(exc.retryable for exc in errors)

    @property
    def wrong(self) -> bool:
        """Whether a host gave wrong bytes."""
        return any(isinstance(exc, IntegrityError) for exc in self.errors)

    def __str__(self) -> str:
        if not self.errors:
            return (
                f"{self.sha256} is on no host of this pool; "
                "`cloudmanager info` shows where it should be"
            )
        reasons = "; ".join(str(exc) for exc in self.errors)
        return f"no host could give {self.sha256}: {reasons}"


class SourceError(CloudManagerError):
    """The file given to upload cannot be used."""


class SourceChanged(SourceError):
    """The file changed while it was read; nothing was stored under a wrong hash."""


class NotARegularFile(SourceError):
    """A directory, device, socket or pipe where a file was expected."""


class CacheError(CloudManagerError):
    """The local cache directory cannot do what was asked."""


class CacheFull(CacheError):
    """The cache cannot make room: the file is larger than it, or all the rest is pinned."""


class CacheUnusable(CacheError):
    """The cache directory cannot be used: read-only, no permission, disk full."""


class CacheCorrupt(CacheError):
    """The index of the cache cannot be read; ``cloudmanager cache check --fix`` rebuilds it."""


class CatalogError(CloudManagerError):
    """The database cannot do what was asked."""


class CatalogUnavailable(CatalogError):
    """The database does not answer, or has been locked by somebody else for too long."""

    retryable = True


class CatalogNotSetUp(CatalogError):
    """The database has no cloudmanager schema, or an older one; run ``cm_setup_db``."""


class CatalogTooNew(CatalogError):
    """The schema was made by a newer cloudmanager than this one."""


class NotACatalog(CatalogError):
    """A directory, or a file that is not a database."""


class UnknownFile(CloudManagerError, KeyError):
    """No file of the pool has the hash, or one that begins like that."""

    def __init__(self, given: str) -> None:
        super().__init__(given)
        self.given = given

    def __str__(self) -> str:
        return f"no file of the pool has the hash {self.given}"


class AmbiguousHash(CloudManagerError):
    """A shortened hash fits more than one file."""


class Busy(CloudManagerError):
    """Another process is working on the same file; try again when it is done."""

    retryable = True
