"""Every message of obstore's that is read, provoked from the real library.

obstore is pinned to a minor version; when these fail after an upgrade, its messages changed.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import obstore
import pytest
from obstore.store import AzureStore, S3Store

from cloudmanager.hosts.obstore_errors import ObstoreFault, fault_of

CODE = (
    b"<?xml version='1.0'?>\n<Error>\n  <Code>SomeCode</Code><Message>some words</Message></Error>"
)
HANDSHAKE = b"\x16\x03"  # how TLS begins


@contextmanager
def answering(reply: bytes | None, tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """A port of a server that reads a request's head, says `reply`, and hangs up.

    With None it says nothing until it is stopped, with ``b""`` it just hangs up.
    """
    stopped = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(raw: socket.socket) -> None:
        # The client's alert, or a client that has gone: both are what the test looks at.
        with contextlib.suppress(OSError), raw:
            client = tls.wrap_socket(raw, server_side=True) if tls is not None else raw
            with client:
                head = b""
                while b"\r\n\r\n" not in head and not head.startswith(HANDSHAKE):
                    block = client.recv(65536)
                    if not block:
                        return
                    head += block
                if reply is None:
                    stopped.wait(60)
                else:
                    client.sendall(reply)

    def accept() -> None:
        while True:
            try:
                raw, _ = listener.accept()
            except OSError:
                return
            if stopped.is_set():
                raw.close()
                return
            threads.append(threading.Thread(target=serve, args=(raw,)))
            threads[-1].start()

    threads = [threading.Thread(target=accept)]
    threads[0].start()
    try:
        yield listener.getsockname()[1]
    finally:
        stopped.set()
        with contextlib.suppress(OSError):
            socket.create_connection(listener.getsockname(), timeout=1).close()
        listener.close()
        for thread in threads:
            thread.join()


def http(status: str, body: bytes = b"", *fields: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *fields]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


def s3(endpoint: str, **more: Any) -> S3Store:
    return S3Store(
        "bucket",
        config={"endpoint": endpoint, "region": "us-east-1"},
        client_options={"allow_http": True, "timeout": timedelta(seconds=1), **more},
        retry_config={"max_retries": 0},
        credential_provider=lambda: {
            "access_key_id": "a",
            "secret_access_key": "b",
            "token": None,
            "expires_at": None,
        },
    )


def azure(endpoint: str) -> AzureStore:
    return AzureStore(
        "container",
        config={
            "account_name": "account",
            "account_key": "a2V5",
            "endpoint": f"{endpoint}/account",
        },
        client_options={"allow_http": True, "timeout": timedelta(seconds=1)},
        retry_config={"max_retries": 0},
    )


CALLS: dict[str, Callable[[Any], object]] = {
    "put": lambda store: obstore.put(store, "a/k", b"x", use_multipart=False),
    "get": lambda store: obstore.get(store, "a/k").bytes(),
    "head": lambda store: obstore.head(store, "a/k"),
    "list": lambda store: list(obstore.list(store)),
}


def fault(call: str, store: Any) -> ObstoreFault:
    with pytest.raises(Exception) as caught:
        CALLS[call](store)
    found = fault_of(caught.value)
    assert found is not None
    return found


@pytest.mark.parametrize("make", [s3, azure])
@pytest.mark.parametrize("call", ["put", "get", "head", "list"])
@pytest.mark.parametrize(
    "status",
    [
        "400 Bad Request",
        "401 Unauthorized",
        "403 Forbidden",
        "404 Not Found",
        "409 Conflict",
        "412 Precondition Failed",
        "429 Too Many Requests",
        "500 Internal Server Error",
        "503 Service Unavailable",
        "507 Insufficient Storage",
    ],
)
def test_status_and_code_are_read(make: Any, call: str, status: str) -> None:
    bodiless = call == "head"
    with answering(http(status, b"" if bodiless else CODE)) as port:
        found = fault(call, make(f"http://127.0.0.1:{port}"))
    code, text = ("", "") if bodiless else ("SomeCode", "some words")
    assert found == ObstoreFault(int(status[:3]), code, text)


@pytest.mark.parametrize("call", ["put", "get", "head", "list"])
@pytest.mark.parametrize(
    ("reply", "transport"),
    [
        (b"", "broken"),
        (None, "timeout"),
        (b"who is there?\r\n\r\n", "garbled"),
        (http("301 Moved Permanently"), "redirect"),
    ],
)
def test_the_kind_of_a_failure_without_an_answer_is_read(
    call: str, reply: bytes | None, transport: str
) -> None:
    with answering(reply) as port:
        assert fault(call, s3(f"http://127.0.0.1:{port}")) == ObstoreFault(transport=transport)


def test_a_body_that_ends_early_is_broken() -> None:
    head = http("200 OK", b"", 'ETag: "x"', "Last-Modified: Wed, 21 Oct 2015 07:28:00 GMT")
    short = head.replace(b"Content-Length: 0", b"Content-Length: 10") + b"short"
    with answering(short) as port:
        assert fault("get", s3(f"http://127.0.0.1:{port}")).transport == "broken"


def test_a_refused_connection_is_read() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        store = s3(f"http://127.0.0.1:{closed.getsockname()[1]}")
        assert fault("get", store).transport == "connect"


def test_a_name_that_cannot_be_resolved_is_read() -> None:
    assert fault("get", s3("http://no-such-host.invalid")).transport == "dns"


def test_a_server_that_speaks_no_tls_is_read() -> None:
    with answering(http("200 OK")) as port:
        assert fault("get", s3(f"https://127.0.0.1:{port}")).transport == "tls"


def test_a_certificate_that_nobody_trusts_is_read(tmp_path: Path) -> None:
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-keyout", "key.pem", "-out", "certificate.pem", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
        ],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "certificate.pem", tmp_path / "key.pem")
    with answering(http("404 Not Found"), tls=context) as port:
        endpoint = f"https://127.0.0.1:{port}"
        assert fault("get", s3(endpoint)).transport == "tls"
        # and the same server is reached when nothing is verified
        assert fault("get", s3(endpoint, allow_invalid_certificates=True)).status == 404


def test_a_key_that_looks_like_an_error_is_not_read_as_one() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        store = s3(f"http://127.0.0.1:{closed.getsockname()[1]}")
        with pytest.raises(Exception) as caught:
            obstore.get(store, "InvalidCertificate/dns error")
    assert fault_of(caught.value) == ObstoreFault(transport="connect")


def test_a_credential_provider_that_fails_is_read() -> None:
    def fail() -> Any:
        raise ValueError("hidden")

    store = S3Store(
        "bucket",
        config={"endpoint": "http://127.0.0.1:1", "region": "us-east-1"},
        client_options={"allow_http": True},
        retry_config={"max_retries": 0},
        credential_provider=fail,
    )
    assert fault("get", store) == ObstoreFault(transport="credentials")


def test_other_exceptions_are_not_obstores() -> None:
    for other in (FileNotFoundError("k"), ValueError("status code: 404"), OSError(5, "x")):
        assert fault_of(other) is None
