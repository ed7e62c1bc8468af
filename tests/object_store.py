"""S3 on this machine: moto's server as a process of its own, and a proxy in front of it that fails as networks do.

def test(store):                                   # an empty folder of a bucket, s3://...
    with proxied(monkeypatch, drop=2) as proxy:    # the first two requests find the connection closed
        ...
"""

import contextlib
import http.client
import http.server
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from contextlib import contextmanager

from .servers import serving

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "very-secret",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@contextmanager
def moto_server(log):
    """The address of a server of the S3 API."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        address = f"http://127.0.0.1:{port}"
        for _ in range(600):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/moto-api/", timeout=5):
                break
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        yield address
        process.terminate()


def new_bucket():
    """The address of a new bucket."""
    name = f"videos-{secrets.token_hex(4)}"
    s3("create_bucket", Bucket=name)
    return f"s3://{name}"


def s3(call, **arguments):
    """What boto3, the client of those who made S3, gets for a call."""
    import boto3

    return getattr(boto3.client("s3"), call)(**arguments)


def unfinished(address):
    """Uploads that were begun in a bucket and are invisible in its listing."""
    return s3("list_multipart_uploads", Bucket=address.removeprefix("s3://")).get("Uploads", [])


def full(path, method):
    """What a bucket with a quota answers."""
    return (403, "QuotaExceeded", "The bucket is full, it has reached its quota") if method in ("PUT", "POST") else None


def forbidden(path, method):
    """What a bucket without rights answers."""
    return 403, "AccessDenied", "Access Denied"


class Proxy(http.server.BaseHTTPRequestHandler):
    """Passes requests on, except those that the test wants to fail."""

    protocol_version = "HTTP/1.1"
    target = ""
    drop = cut = mute = 0
    refuse = hold = None
    conditions = True
    count = 0
    lock = threading.Lock()

    def answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        kind = type(self)
        with kind.lock:
            dropped = kind.count < kind.drop
            kind.count += dropped
        if dropped:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if kind.hold and kind.hold(self.path):
            kind.held.set()
            kind.released.wait(120)
            self.close_connection = True
            return
        if kind.refuse and (refused := kind.refuse(self.path, self.command)):
            status, code, message = refused
            text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
            text = b"" if self.command == "HEAD" else text
            self.reply(status, {"Content-Type": "application/xml", "Content-Length": str(len(text))}, text)
            return
        if not kind.conditions and {"if-match", "if-none-match"} & {name.lower() for name in self.headers}:
            text = b"<?xml version='1.0'?><Error><Code>NotImplemented</Code><Message>A header</Message></Error>"
            self.reply(501, {"Content-Type": "application/xml", "Content-Length": str(len(text))}, text)
            return
        self.pass_on(body)

    def pass_on(self, body):
        """Ask the target; what it answers may be cut off."""
        kind = type(self)
        host = urllib.parse.urlsplit(kind.target).netloc
        # Closed before the reply: a client that was killed makes the reply raise.
        with contextlib.closing(http.client.HTTPConnection(host, timeout=60)) as connection:
            connection.request(self.command, self.path, body, {**self.headers, "Host": host})
            response = connection.getresponse()
            data = response.read()
        headers = {
            name: value
            for name, value in response.getheaders()
            if name.lower() not in ("transfer-encoding", "connection")
        }
        if self.command != "HEAD":
            headers = {name: value for name, value in headers.items() if name.lower() != "content-length"}
            headers["Content-Length"] = str(len(data))
        with kind.lock:
            muted = self.command == "PUT" and kind.count < kind.mute
            kind.count += muted
        if muted:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        with kind.lock:
            cut = self.command == "GET" and len(data) > 100_000 and kind.count < kind.cut
            kind.count += cut
        self.reply(response.status, headers, data[: len(data) // 2] if cut else data)
        if cut:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer

    def reply(self, status, headers, data):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments):
        pass


@contextmanager
def proxied(monkeypatch, **ways):
    """Send what goes to S3 through a `Proxy` that fails in these ways; gives its class."""
    made = {
        "target": os.environ["AWS_ENDPOINT_URL"],
        "held": threading.Event(),
        "released": threading.Event(),
        "count": 0,
    }
    ways = {name: staticmethod(way) if callable(way) else way for name, way in ways.items()}
    proxy = type("Failing", (Proxy,), {**made, **ways})
    with serving(proxy) as address, monkeypatch.context() as changed:
        changed.setenv("AWS_ENDPOINT_URL", address)
        fresh_clients()
        try:
            yield proxy
        finally:
            proxy.released.set()
    fresh_clients()


def fresh_clients():
    """s3fs keeps its clients, with the address that they had."""
    from s3fs import S3FileSystem

    S3FileSystem.clear_instance_cache()
