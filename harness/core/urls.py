"""URLs of fsspec (`s3://…`, `gs://…`, `ftp://…`): what all that read or write there have in common."""

import re
from collections.abc import Mapping
from typing import Any

_STAMPS = (
    *("size", "ETag", "etag", "mtime", "LastModified", "last_modified", "updated", "created", "modify"),
    *("CRC", "date_time"),
)
_LOGIN = re.compile(r"(?<!abfs:)(?<!abfss:)//([^/\s]*)@")  # Azure's URLs name a container there
_QUERY = re.compile(r"(://[^\s'\"?]*)\?[^\s'\"]*")


def is_url(source: str) -> bool:
    """Whether a text is a URL rather than a path."""
    return "://" in source


def without_credentials(url: str) -> str:
    """Return a URL without what may be secret in it: who logs in, and a query."""
    return _QUERY.sub(r"\1", _LOGIN.sub("//", url))


def explain(error: BaseException, url: str) -> str:
    """Return the first line of what a driver says, without the credentials of the URL."""
    text = (str(error).splitlines() or [""])[0] or type(error).__name__
    for login in _LOGIN.findall(url):
        for secret in (login, login.partition(":")[2]):
            text = text.replace(secret, "…") if secret else text
    return without_credentials(text)


def stamps(entry: Mapping[str, Any]) -> list[Any]:
    """Return what changes of a driver's description of a file when the file is written again."""
    return [entry.get(key) for key in _STAMPS]
