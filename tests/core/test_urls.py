"""What is left of URLs without their credentials: nothing secret, and everything else."""

import pytest

from harness.core.urls import SHOWN, without_credentials


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
        "memory://photos",
        "zip://a/b::/data/photos@2x.zip",
        "postgresql+psycopg://nas@host/studies",
        "sqlite:////data/mine/study.db",
        "/data/photos@home",
        "photos: C:\\me@home",
    ],
)
def test_what_is_no_credential_is_kept(url: str) -> None:
    assert without_credentials(url) == without_credentials(url, SHOWN) == url
