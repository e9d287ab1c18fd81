"""What is left of URLs without their credentials: nothing secret, and everything else."""

import pytest

from harness.core.urls import SHOWN, explain, without_credentials


@pytest.mark.parametrize(
    ("url", "left"),
    [
        ("https://someone:secret@host/photos", "https://host/photos"),
        ("https://secret@host:8443/photos", "https://host:8443/photos"),
        ("http://secret:@host/photos@2x", "http://host/photos@2x"),
        ("s3://AKIA:sec/ret+secret@bucket/photos", "s3://bucket/photos"),
        ("ftp://someone:sec@secret@host/photos", "ftp://host/photos"),
        ("zip://*::https://someone:secret@host/photos.zip", "zip://*::https://host/photos.zip"),
        ("simplecache::ftp://someone:secret@host/photos", "simplecache::ftp://host/photos"),
        ("postgresql+psycopg://nas:secret@host:5432/studies", "postgresql+psycopg://host:5432/studies"),
        ("postgresql://host/db?user=nas&password=secret&sslmode=require", "postgresql://host/db?user=nas&password=…&sslmode=require"),
        ("https://host/photos?sv=1&sig=secret%2B&se=2", "https://host/photos?sv=1&sig=…&se=2"),
        ("https://host/a.zip?X-Amz-Credential=secret&X-Amz-Signature=secret", "https://host/a.zip?X-Amz-Credential=…&X-Amz-Signature=…"),
        ("ftp://someone:sec@ret#secret@host/photos@2x", "ftp://host/photos@2x"),
        ("https://someone:sec@ret#secret@host/photos", "https://host/photos"),
        ("postgresql://nas:my secret@host/studies", "postgresql://host/studies"),
        ("postgresql://nas:a://secret@host/studies", "postgresql://host/studies"),
        ("postgresql://nas:a?secret@host/studies", "postgresql://host/studies"),
        ("https://a::secret@host/photos", "https://host/photos"),
        ("https://host/photos?pass=secret&size=2", "https://host/photos?pass=…&size=2"),
        ("https://host/photos?auth=secret&code=secret;size=2", "https://host/photos?auth=…&code=…;size=2"),
        ("https://host/a;token=secret/photos", "https://host/a;token=…/photos"),
        ("mssql+pyodbc:///?odbc_connect=SERVER%3Dhost%3BPWD%3Dsecret%3B&x=1", "mssql+pyodbc:///?odbc_connect=SERVER%3Dhost%3BPWD%3D…&x=1"),
        ("mssql+pyodbc:///?odbc_connect=SERVER=host;PWD={my;secret};UID=nas", "mssql+pyodbc:///?odbc_connect=SERVER=host;PWD=…;UID=nas"),
        ("tried https://a:secret@one/x and ftp://b:secret@two/y", "tried https://one/x and ftp://two/y"),
    ],
)  # fmt: skip
def test_credentials_are_left_out(url: str, left: str) -> None:
    assert without_credentials(url) == left
    assert without_credentials(left) == left
    assert "secret" not in without_credentials(url, SHOWN)


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket/photos",
        "sftp://someone@host/photos",
        "abfs://container@account.dfs.core.windows.net/photos",
        "github://owner:repository@main/photos",
        "https://host:8443/photos@2x",
        "https://host/photos@2x?keepalives_idle=20&size=3",
        "http://[::1]:8000/photos@2x",
        "http://host:8080?mail=someone@work",
        "http://host:8080#someone@work",
        "https://host/photos?bypass=1&country_code=us&author=me",
        "memory://photos",
        "memory://photos:mine/me@work",
        "zip://photos::/data/me@work/p.zip",
        "zip://a:b::/data/me@work/p.zip",
        "zip://photos::me@work/p.zip",
        "tar://photos::simplecache::sftp://me@host/p.tar",
        "ftp://host is away: ask me@work",
        "zip://a/b::/data/photos@2x.zip",
        "postgresql+psycopg://nas@host/studies",
        "sqlite:////data/mine/study.db",
        "/data/photos@home",
        "photos: C:\\me@home",
    ],
)
def test_what_is_no_credential_is_kept(url: str) -> None:
    assert without_credentials(url) == without_credentials(url, SHOWN) == url


@pytest.mark.parametrize(
    ("url", "seen"),
    [
        ("ftp://someone:12/34@host/photos", "ftp://…@host/photos"),
        ("postgresql://nas:12/34@host/studies", "postgresql://…@host/studies"),
        ("postgresql://nas:12#34@host/studies", "postgresql://…@host/studies"),
    ],
)
def test_what_may_be_a_port_is_kept_where_it_must_be_found(url: str, seen: str) -> None:
    assert without_credentials(url) == url
    assert without_credentials(url, SHOWN) == without_credentials(seen, SHOWN) == seen


def test_what_a_driver_says_has_no_password() -> None:
    error = OSError("host someone:12/34 refused p%40ss and p@ss, and 12/34")
    said = explain(error, "ftp://someone:12/34@host/x")
    assert "12/34" not in said
    assert "p@ss" not in (said := explain(error, "sftp://someone:p%40ss@host/x"))
    assert "p%40ss" not in said
