"""URLs of fsspec (`s3://…`, `gs://…`, `ftp://…`) and databases: what all that read, write or name them have in common.

All that is printed, recorded or logged of a URL goes through `without_credentials`.
"""

import re
from collections.abc import Mapping
from typing import Any

SHOWN = "…@"  # in place of credentials, where people read
_USER = r"[^:/\s@?#\[]*"
_PASSWORD = r"(?:[^/\s?#]*|(?!\d+(?:/|$))(?:(?!://)[^\s@])*)"  # with a slash in it, too, but for a port and a path
_CREDENTIALS = re.compile(
    rf"(?<=http://)[^/\s?#]*@|(?<=https://)[^/\s?#]*@"  # a name alone may be a token
    rf"|(?<!github://)(?<=://){_USER}:{_PASSWORD}@"  # elsewhere it is a user or a container; github://OWNER:REPOSITORY@
)
_SECRETS = re.compile(
    r"([?&](?:[\w.-]*(?:password|passwd|pwd|secret|token|signature|credential|key)|sig)=)[^&\s#'\"]+", re.IGNORECASE
)
_STAMPS = (
    *("size", "ETag", "etag", "mtime", "LastModified", "last_modified", "updated", "created", "modify"),
    *("CRC", "date_time"),
)


def is_url(source: str) -> bool:
    """Whether a text is a URL rather than a path."""
    return "://" in source


def without_credentials(text: str, shown: str = "") -> str:
    """Return a URL, or a text with URLs, without passwords, with `shown` in their place; secret parameters are `…`."""
    return _SECRETS.sub(r"\1…", _CREDENTIALS.sub(shown, text))


def explain(error: BaseException, url: str) -> str:
    """Return the first line of what a driver says, without the credentials of the URL."""
    text = (str(error).splitlines() or [""])[0] or type(error).__name__
    for login in _CREDENTIALS.findall(url):
        for secret in (login[:-1], login[:-1].partition(":")[2]):
            text = text.replace(secret, "…") if secret else text
    return without_credentials(text, SHOWN)


def stamps(entry: Mapping[str, Any]) -> list[Any]:
    """Return what changes of a driver's description of a file when the file is written again."""
    return [entry.get(key) for key in _STAMPS]
