"""URLs without the passwords in them: all that is printed, recorded or logged of a URL goes through here."""

import re

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


def without_credentials(text: str, shown: str = "") -> str:
    """Return a URL, or a text with URLs, without passwords, with `shown` in their place; secret parameters are `…`."""
    return _SECRETS.sub(r"\1…", _CREDENTIALS.sub(shown, text))
