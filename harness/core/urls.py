"""URLs of fsspec (`s3://…`, `gs://…`, `ftp://…`) and databases: what all that read, write or name them have in common.

All that is printed, recorded or logged of a URL goes through `without_credentials`.
"""

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, quote_plus, unquote

SHOWN = "…@"  # in place of credentials, where people read
_PATHS = ("file", "git", "github", "libarchive", "local", "memory", "tar", "zip")  # have none; github://OWNER:REPO@REF
_LOGIN = "".join(rf"(?<!\b{scheme}://)" for scheme in _PATHS) + r"(?<=://)[^:/\s@?#\[]*:(?![:\s])"  # but for a password
_PORT = r"\d{1,5}(?:[/?#\s]|$)"
_CREDENTIALS = re.compile(
    rf"{_LOGIN}(?!{_PORT})(?:[^/\s?]*|(?:(?!::)[^\n@])*)@"  # a name alone is a user or a container,
    r"|(?<=http://)[^/\s?#]*@|(?<=https://)[^/\s?#]*@"  # but for HTTP, where it may be a token
)
_DOUBTFUL = re.compile(rf"{_CREDENTIALS.pattern}|(?<!http://)(?<!https://){_LOGIN}[^\s@]*@")  # or a port and a path
_NAMES = "password|passwd|pwd|secret|token|signature|credential|key"
_SECRETS = re.compile(
    rf"([?&](?:[\w.-]*(?:{_NAMES})|sig|pass|auth|code)=)(?:(?!;\w+=)[^&\s#'\"])+"
    rf"|(;(?:[\w.-]*(?:{_NAMES})|sig|pass|auth|code)=)(?:\{{[^}}]*\}}|[^;/&\s#'\"]+)"
    rf"|((?:{_NAMES})%(?:25)*3D)[^&\s#'\"]+",  # in a parameter of parameters
    re.IGNORECASE,
)
_STAMPS = (
    *("size", "ETag", "etag", "mtime", "LastModified", "last_modified", "updated", "created", "modify"),
    *("CRC", "date_time"),
)


def is_url(source: str) -> bool:
    """Whether a text is a URL rather than a path."""
    return "://" in source


def without_credentials(text: str, shown: str = "") -> str:
    """Return a URL, or a text with URLs, without passwords, with `shown` in their place; secret parameters are `…`.

    What may be a port and a path as well as a password, `ftp://a:12/34@b`, is left out only where it is `shown`:
    whoever reads a record must find what it names.
    """
    pattern = _DOUBTFUL if shown else _CREDENTIALS
    return _SECRETS.sub(lambda found: f"{found[1] or found[2] or found[3]}…", pattern.sub(shown, text))


def explain(error: BaseException, url: str) -> str:
    """Return the first line of what a driver says, without the credentials of the URL."""
    text = (str(error).splitlines() or [""])[0] or type(error).__name__
    for login in _DOUBTFUL.findall(url):
        text = without_secrets(text, login[:-1], login[:-1].partition(":")[2])
    return without_credentials(text, SHOWN)


def without_secrets(text: str, *secrets: str) -> str:
    """Return a text without some secrets, as they are or as a URL spells them."""
    for secret in secrets:
        for spelt in (secret, unquote(secret), quote(secret, safe=""), quote_plus(secret)):
            text = text.replace(spelt, "…") if spelt else text
    return text


def stamps(entry: Mapping[str, Any]) -> list[Any]:
    """Return what changes of a driver's description of a file when the file is written again."""
    return [entry.get(key) for key in _STAMPS]
