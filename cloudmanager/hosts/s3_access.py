"""How to reach an S3 place: credentials, the two engines, and what each of them must not do.

boto3 finds the credentials, the region and the endpoint, speaks every request that is not
about the bytes of a small or whole object, and signs links. obstore moves small objects up
and whole objects down. Both make one try per call and neither reads anything from the
environment that boto3's resolution has not found.
"""

from __future__ import annotations

import logging
import os
import threading
from datetime import UTC, timedelta
from typing import TYPE_CHECKING, Any

from cloudmanager.errors import ConfigurationError, HostError
from cloudmanager.hosts import s3_place
from cloudmanager.hosts.obstore_fork import obstore_works_here
from cloudmanager.hosts.s3_errors import mapped
from cloudmanager.hosts.s3_options import S3Options
from cloudmanager.hosts.s3_place import Place
from cloudmanager.hosts.s3_signing import sign_with_known_hashes

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from obstore.store import S3Credential, S3Store

__all__ = ["Access"]

_CONNECTIONS = 64
_FAR = timedelta(days=7)
_DEFAULT_REGION = "us-east-1"
# What obstore takes from the environment and no option can undo. boto3 knows none of them:
# they are meant for other programs, or for one host among several.
_LEAKING = {
    "AWS_SERVER_SIDE_ENCRYPTION",
    "AWS_SSE_BUCKET_KEY_ENABLED",
    "AWS_SSE_CUSTOMER_KEY_BASE64",
    "AWS_SSE_KMS_KEY_ID",
}

log = logging.getLogger(__name__)


class Access:
    """The way to one place. Thread-safe; nothing is loaded or connected before it is needed."""

    def __init__(self, name: str, url: str, options: S3Options, time_limit: float) -> None:
        self.name = name
        self.options = options
        self.time_limit = time_limit
        try:
            self._endpoint, self._bucket, self._path = s3_place.parse_url(url)
        except ValueError as exc:
            raise ConfigurationError(f"host {name}: {exc}") from exc
        if self._endpoint is not None and options.endpoint_url is not None:
            same = s3_place.normal_endpoint(options.endpoint_url) == self._endpoint
            if not same:
                raise ConfigurationError(
                    f"host {name}: the URL names another endpoint than the option endpoint_url"
                )
        self._pid: int | None = None
        self._lock = threading.RLock()
        self._session: Any = None
        self._resolved: str | None = None
        self._place: Place | None = None
        self._client: Any = None
        self._stores: tuple[S3Store, S3Store] | None = None
        self._without_obstore = False

    # -- what is known without a connection ------------------------------------------------

    @property
    def place(self) -> Place:
        """Where it is. For an ``s3://`` URL boto3 says which endpoint is meant."""
        if self._place is None:
            with mapped(self.name, "location"):
                endpoint = s3_place.normal_endpoint(self._endpoint_url())
            self._place = Place.make(endpoint, self._bucket, self._path)
        return self._place

    def looked(self) -> str:
        """Where the credentials came from, for a message; never a secret."""
        if self.options.access_key_id is not None:
            return "used were the host's options access_key_id and secret_access_key"
        try:
            found = self._boto_session().get_credentials()
            profile = self.options.profile or self._boto_session().profile_name
        except Exception:  # noqa: BLE001 - it only adds to the message of another error
            return "the credentials could not be looked up"
        if found is None:
            return f"no credentials were found (profile {profile})"
        return f"used were the credentials from {found.method} (profile {profile})"

    # -- engines ---------------------------------------------------------------------------

    @property
    def client(self) -> Any:
        """The boto3 client. May ask Amazon once in which region the bucket is."""
        self._same_process()
        if self._client is None:
            with self._lock:
                if self._client is None:
                    self._client = self._connect()
        return self._client

    @property
    def reader(self) -> S3Store | None:
        """The obstore store for whole objects down; None where obstore cannot be used."""
        stores = self._both()
        return stores[0] if stores else None

    @property
    def writer(self) -> S3Store | None:
        """The obstore store for small objects up; None where obstore cannot be used."""
        stores = self._both()
        return stores[1] if stores else None

    def close(self) -> None:
        """Close the connections of this process."""
        client, self._client, self._stores = self._client, None, None
        if client is not None and self._pid == os.getpid():
            client.close()

    def _same_process(self) -> None:
        """Refuse to go on in a forked process.

        Connections and the threads behind obstore do not survive a fork: a call there would
        hang for ever, or mix two processes' answers on one connection.
        """
        if self._pid is None:
            self._pid = os.getpid()
        elif self._pid != os.getpid():
            raise HostError(
                "this host was used before the process was forked; open it again in the new "
                "process, or start processes with the method 'spawn'",
                host=self.name,
                operation="connect",
            )

    # -- boto3 -----------------------------------------------------------------------------

    def _boto_session(self) -> Any:
        if self._session is None:
            import boto3

            options = self.options
            self._session = boto3.session.Session(
                aws_access_key_id=options.access_key_id,
                aws_secret_access_key=options.secret_access_key,
                aws_session_token=options.session_token,
                region_name=options.region,
                profile_name=options.profile,
            )
        return self._session

    def _endpoint_url(self) -> str:
        """The endpoint, as the URL or the options name it, or as boto3 resolves it."""
        given = self.options.endpoint_url or self._endpoint
        if given is not None:
            return given
        if self._resolved is None:
            with self._lock:
                probe = self._boto_session().client("s3", region_name=self._region(None))
                self._resolved = probe.meta.endpoint_url
                probe.close()
        return self._resolved

    def _region(self, endpoint: str | None) -> str:
        named = s3_place.region_of(endpoint) if endpoint else None
        if known := self.options.region or named:
            return known
        configured: str | None = self._boto_session().region_name
        return configured or _DEFAULT_REGION

    def _new_client(self, region: str) -> Any:
        from botocore.config import Config

        endpoint = self._endpoint_url()
        # Over TLS the transport protects the body and a checksum goes with it; hashing it
        # once more for the signature would cost as much as the upload. Without TLS it is signed.
        encrypted = endpoint.lower().startswith("https:")
        s3: Any = {"addressing_style": self._style()}
        if encrypted:
            s3["payload_signing_enabled"] = False
        client = self._boto_session().client(
            "s3",
            region_name=region,
            # What boto3 found itself is left to it: Amazon's endpoint depends on the region.
            endpoint_url=self.options.endpoint_url or self._endpoint,
            verify=self._verify(),
            config=Config(
                signature_version="s3v4",
                retries={"total_max_attempts": 1, "mode": "standard"},  # ours decides
                connect_timeout=self.time_limit,
                read_timeout=self.time_limit,
                max_pool_connections=_CONNECTIONS,
                # Many providers refuse the newer checksums; we send our own where they help.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                s3=s3,
            ),
        )
        sign_with_known_hashes(client)
        return client

    def _style(self) -> str:
        if self.options.addressing_style != "auto":
            return self.options.addressing_style
        if not s3_place.is_amazon(self._endpoint_url()):
            return "path"
        if self.options.endpoint_url or self._endpoint:
            return "virtual"
        configured = self._boto_session()._session.get_config_variable("s3") or {}
        style: str | None = configured.get("addressing_style")
        return style or "auto"

    def _verify(self) -> bool | str | None:
        if not self.options.verify_tls:
            return False
        if self.options.ca_bundle is not None:
            return os.path.expanduser(self.options.ca_bundle)
        return None

    def _connect(self) -> Any:
        region = self._region(self._endpoint_url())
        client = self._new_client(region)
        if s3_place.is_amazon(client.meta.endpoint_url):
            real = self._region_of_bucket(client)
            if real is not None and real != region:
                # obstore follows no redirect, and links must be signed for the real region.
                client.close()
                client = self._new_client(real)
        return client

    def _region_of_bucket(self, client: Any) -> str | None:
        from botocore.exceptions import ClientError

        try:
            answer: Any = client.head_bucket(Bucket=self._bucket)
        except ClientError as exc:  # Amazon names the region also when it refuses
            answer = exc.response
        headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        region: str | None = headers.get("x-amz-bucket-region")
        return region

    # -- obstore ---------------------------------------------------------------------------

    def _both(self) -> tuple[S3Store, S3Store] | None:
        self._same_process()
        if self._stores is None and not self._without_obstore:
            with self._lock:
                if self._stores is None:
                    self._stores = self._new_stores()
                    self._without_obstore = self._stores is None
        return self._stores

    def _reached(self) -> tuple[str, str]:
        """Endpoint and region. Only Amazon has to be asked for the region of a bucket, and
        only there does boto3 choose the endpoint: elsewhere it is not loaded for this."""
        given = self.options.endpoint_url or self._endpoint
        if given is not None and not s3_place.is_amazon(given):
            return s3_place.normal_endpoint(given), self._region(given)
        meta = self.client.meta
        return meta.endpoint_url, meta.region_name

    def _new_stores(self) -> tuple[S3Store, S3Store] | None:
        from obstore.store import S3Store

        if not obstore_works_here():
            return None
        options = self.options
        endpoint, region = self._reached()
        encrypted = endpoint.startswith("https:")
        if encrypted and options.verify_tls and (options.ca_bundle or self._configured_bundle()):
            return None  # it takes no bundle of certificates
        if leaking := sorted(_LEAKING.intersection(os.environ)):
            log.info("host %s works without obstore because of %s", self.name, ", ".join(leaking))
            return None
        config: Any = {
            "region": region,
            "unsigned_payload": False,
            # obstore lets the environment fill in what is not said here.
            "s3_express": False,
            "skip_signature": False,
            "request_payer": False,
            "disable_tagging": False,
            "conditional_put": "etag",
        }
        if options.checksum == "sha256":
            config["checksum_algorithm"] = "SHA256"
        else:
            return None  # it sends no Content-MD5, so nothing would protect the body
        if options.sse is not None:
            config["server_side_encryption"] = options.sse
        if options.sse_kms_key_id is not None:
            config["sse_kms_key_id"] = options.sse_kms_key_id
        if self._virtual(endpoint):
            scheme, _, host = endpoint.partition("://")
            if not host.startswith(f"{self._bucket}."):
                host = f"{self._bucket}.{host}"
            endpoint = f"{scheme}://{host}"
            config["virtual_hosted_style_request"] = True
        else:
            config["virtual_hosted_style_request"] = False
        # The second name is another setting, which would win over the first.
        config["endpoint"] = config["aws_endpoint_url_s3"] = endpoint
        provider = self._provider()
        limit = timedelta(seconds=self.time_limit)
        network: Any = {
            "connect_timeout": limit,
            "allow_http": not encrypted,
            "allow_invalid_certificates": not options.verify_tls,
            "pool_max_idle_per_host": str(_CONNECTIONS),
        }

        def make(**limits: timedelta) -> S3Store:
            both: Any = {**network, **limits}
            return S3Store(
                self._bucket,
                config=config,
                client_options=both,
                retry_config={"max_retries": 0},
                credential_provider=provider,
            )

        # `timeout` ends a whole request, `read_timeout` a silence; while a body is sent
        # there is silence, so each direction needs its own.
        return make(timeout=_FAR, read_timeout=limit), make(timeout=limit)

    def _configured_bundle(self) -> str | None:
        bundle: str | None = self._boto_session()._session.get_config_variable("ca_bundle")
        return bundle

    def _provider(self) -> Callable[[], S3Credential]:
        """What hands obstore the credentials: those of the options, or what boto3 finds."""
        options = self.options
        if options.access_key_id is not None and options.secret_access_key is not None:
            given: S3Credential = {
                "access_key_id": options.access_key_id,
                "secret_access_key": options.secret_access_key,
                "token": options.session_token,
                "expires_at": None,
            }
            return lambda: given
        credentials = self._boto_session().get_credentials()
        if credentials is None:
            from botocore.exceptions import NoCredentialsError

            raise NoCredentialsError
        return lambda: _credential(credentials)

    def _virtual(self, endpoint: str) -> bool:
        style = self._style()
        if style == "auto":
            # A dot in the bucket's name does not fit Amazon's certificate.
            return s3_place.is_amazon(endpoint) and "." not in self._bucket
        return style == "virtual"


def _credential(credentials: Any) -> S3Credential:
    """What botocore holds now, with its real expiry, so that obstore asks again in time."""
    frozen = credentials.get_frozen_credentials()
    # No public attribute has it. Static credentials have none and never expire.
    expires: datetime | None = getattr(credentials, "_expiry_time", None)
    return {
        "access_key_id": frozen.access_key,
        "secret_access_key": frozen.secret_key,
        "token": frozen.token,
        "expires_at": None if expires is None else expires.astimezone(UTC),  # it takes no other
    }
