"""A real web server that lists and gives files to those alone who know a password."""

import base64
import contextlib
import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PASSWORD = "s3cr3t-of-nobody"


class _Guard(http.server.SimpleHTTPRequestHandler):
    expected = f"Basic {base64.b64encode(f'someone:{PASSWORD}'.encode()).decode()}"

    def send_head(self) -> Any:
        if self.headers.get("Authorization") == self.expected:
            return super().send_head()
        self.send_response(401)
        self.send_header("WWW-Authenticate", 'Basic realm="images"')
        self.end_headers()
        return None

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextlib.contextmanager
def guarded(folder: Path) -> Iterator[tuple[str, str]]:
    """Serve a folder; yield its URL without the password and with it."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Guard, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    place = f"127.0.0.1:{server.server_address[1]}"
    try:
        yield f"http://{place}", f"http://someone:{PASSWORD}@{place}"
    finally:
        server.shutdown()
        server.server_close()
