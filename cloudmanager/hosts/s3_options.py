"""What can be set for an S3 host."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cloudmanager.errors import ConfigurationError
from cloudmanager.hosts.options import read_options
from cloudmanager.hosts.s3_place import normal_endpoint

__all__ = ["MOST_PARTS", "S3Options"]

MIB = 1024 * 1024
MOST_PARTS = 10_000
"""Parts that S3 allows for one object."""

_CHOICES = {
    "addressing_style": ("auto", "path", "virtual"),
    "sse": ("AES256", "aws:kms"),
    "checksum": ("sha256", "none"),
}
_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@dataclass(frozen=True, slots=True)
class S3Options:
    """Options of an S3 host. Secrets do not show in its repr.

    Attributes
    ----------
    region, profile, endpoint_url:
        None leaves them to boto3: its configuration files, its environment variables.
    access_key_id, secret_access_key, session_token:
        Win over every other credential; the first two come together.
    addressing_style:
        ``path`` or ``virtual`` (the bucket in the host name); ``auto`` is ``virtual`` on Amazon
        S3 and ``path`` elsewhere.
    storage_class:
        Such as ``STANDARD_IA``; None leaves it to the bucket.
    sse, sse_kms_key_id:
        Server-side encryption: ``AES256`` or ``aws:kms``; a key alone means ``aws:kms``.
    ca_bundle, verify_tls:
        A PEM file to trust instead of the system's certificates; whether to verify at all.
    part_size:
        Bytes per part of a large object: 16 MiB; more where 10,000 parts would not do.
    concurrency:
        Parts that one `put` sends at the same time: 4.
    checksum:
        ``sha256`` lets the server check every body by its SHA-256; ``none`` is for providers
        that refuse those headers, and uses Content-MD5.
    aliases:
        Older URLs of the same place, whose locations this host owns as well.
    """

    region: str | None = None
    profile: str | None = None
    endpoint_url: str | None = None
    access_key_id: str | None = field(default=None, repr=False)
    secret_access_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    addressing_style: str = "auto"
    storage_class: str | None = None
    sse: str | None = None
    sse_kms_key_id: str | None = None
    ca_bundle: str | None = None
    verify_tls: bool = True
    part_size: int = 16 * MIB
    concurrency: int = 4
    checksum: str = "sha256"
    aliases: tuple[str, ...] = ()

    @classmethod
    def parse(cls, name: str, options: Mapping[str, Any]) -> S3Options:
        """Read the options of the host `name`.

        Raises
        ------
        ConfigurationError
            For an unknown option, or a value that does not fit; values are never shown, as
            they may be secrets in the wrong place.
        """
        values = read_options(
            cls, name, options, kind="an S3", piece="part_size", untyped={"verify_tls"}
        )
        verify = values.get("verify_tls", True)
        if isinstance(verify, str):
            verify = _TRUTH.get(verify.strip().lower())
        if not isinstance(verify, bool):
            raise ConfigurationError(f"host {name}: verify_tls must be true or false")
        values["verify_tls"] = verify
        if "sse_kms_key_id" in values:
            values.setdefault("sse", "aws:kms")
        made = cls(**values)
        made._check(name)
        return made

    def _check(self, name: str) -> None:
        for key, choices in _CHOICES.items():
            if getattr(self, key) is not None and getattr(self, key) not in choices:
                raise ConfigurationError(f"host {name}: {key} must be {' or '.join(choices)}")
        if (self.access_key_id is None) != (self.secret_access_key is None):
            raise ConfigurationError(
                f"host {name}: access_key_id and secret_access_key must be given together"
            )
        if self.session_token is not None and self.access_key_id is None:
            raise ConfigurationError(f"host {name}: session_token needs an access_key_id")
        if self.sse_kms_key_id is not None and self.sse != "aws:kms":
            raise ConfigurationError(f"host {name}: sse_kms_key_id needs sse aws:kms")
        if not 5 * MIB <= self.part_size <= 5 * 1024 * MIB:
            raise ConfigurationError(f"host {name}: part_size must be 5 MiB to 5 GiB")
        if not 1 <= self.concurrency <= 64:
            raise ConfigurationError(f"host {name}: concurrency must be 1 to 64")
        if self.ca_bundle is not None and not os.path.isfile(os.path.expanduser(self.ca_bundle)):
            raise ConfigurationError(f"host {name}: there is no ca_bundle file {self.ca_bundle!r}")
        if self.endpoint_url is not None:
            try:
                normal_endpoint(self.endpoint_url)
            except ValueError as exc:
                raise ConfigurationError(f"host {name}: endpoint_url: {exc}") from exc

    def size_of_parts(self, size: int) -> int:
        """Bytes per part of an object of `size` bytes.

        Decided by the size alone, so that whoever resumes an upload cuts it the same way;
        in whole MiB, since some providers want equal and even parts.
        """
        least = -(-size // MOST_PARTS)
        return max(self.part_size, -(-least // MIB) * MIB)
