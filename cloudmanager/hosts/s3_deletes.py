"""Deleting many objects of a bucket."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

from cloudmanager.errors import HostError, ObjectNotFound
from cloudmanager.hosts.s3_errors import Answer, answer_of, refusal

__all__ = ["delete_keys"]

log = logging.getLogger(__name__)

BATCH = 1000
"""Keys that S3 takes in one DeleteObjects request."""

_THREADS = 16
_NOT_IN_XML = re.compile(r"[\x00-\x1f\x7f\ufffe\uffff]")
Mapped = Callable[[str, str], AbstractContextManager[None]]


def delete_keys(
    client: Any, bucket: str, wanted: Mapping[str, str], host: str, mapped: Mapped
) -> None:
    """Delete objects; `wanted` is their whole keys and, for messages, their locations.

    In batches where the provider has them, else one by one. All are tried before the first
    error is raised, which says how many there were.
    """
    keys = list(wanted)
    # XML cannot carry control characters; a URL can.
    single = [key for key in keys if _NOT_IN_XML.search(key)]
    batched = [key for key in keys if not _NOT_IN_XML.search(key)]
    if len(batched) == 1:
        single, batched = single + batched, []
    errors: list[HostError] = []
    for start in range(0, len(batched), BATCH):
        batch = batched[start : start + BATCH]
        try:
            with mapped("delete", wanted[batch[0]]):
                answer = client.delete_objects(
                    Bucket=bucket,
                    Delete={"Objects": [{"Key": key} for key in batch], "Quiet": True},
                )
        except HostError as exc:
            refused = answer_of(exc.__cause__) if exc.__cause__ is not None else None
            if type(exc) is not HostError or refused is None:
                raise
            # The request itself is refused, for none of the reasons that concern every
            # request: a provider without it, or that wants another checksum with it.
            log.debug("%s takes no batches of deletes: %s", host, exc)
            single += batched[start:]
            break
        for each in answer.get("Errors", ()):
            if each.get("Code") in ("NoSuchKey", "NoSuchVersion", "NotFound"):
                continue
            key = each.get("Key", "")
            why = Answer(None, str(each.get("Code") or ""), str(each.get("Message") or ""))
            errors.append(
                refusal(why, host=host, operation="delete", location=wanted.get(key, key))
            )
    errors += _one_by_one(client, bucket, single, wanted, mapped)
    if errors:
        worst = _worst(errors)
        raise _summary(worst, errors, len(keys)) from worst.__cause__


def _one_by_one(
    client: Any, bucket: str, keys: list[str], wanted: Mapping[str, str], mapped: Mapped
) -> list[HostError]:
    def delete(key: str) -> HostError | None:
        try:
            with mapped("delete", wanted[key]):
                client.delete_object(Bucket=bucket, Key=key)
        except ObjectNotFound:
            return None
        except HostError as exc:
            return exc
        return None

    if len(keys) <= 1:
        found = [delete(key) for key in keys]
    else:
        with ThreadPoolExecutor(_THREADS, "s3-delete") as pool:
            found = list(pool.map(delete, keys))
    return [error for error in found if error is not None]


def _worst(errors: list[HostError]) -> HostError:
    """The first error that another try will not cure, or else the first one."""
    return next((error for error in errors if not error.retryable), errors[0])


def _summary(first: HostError, errors: list[HostError], count: int) -> HostError:
    if len(errors) == 1:
        return first
    return type(first)(
        f"{first.message} (and {len(errors) - 1} more of {count} objects failed)",
        host=first.host,
        operation=first.operation,
        location=first.location,
        retryable=first.retryable,
    )
