"""Secrets in URLs and options: they are never shown."""

from __future__ import annotations

import json

import pytest

from cellgraph_dask import errors
from cellgraph_dask.cli.group import without_secrets
from cellgraph_dask.errors import SourceError, hide, redact, shown
from cellgraph_dask.machine import remote


@pytest.fixture(autouse=True)
def _forget(monkeypatch):
    monkeypatch.setattr(errors, "_secrets", set())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://bucket/a/b.zarr", "s3://bucket/a/b.zarr"),
        ("https://host:80/a#b", "https://host:80/a#b"),
        ("https://user:word@host/a?token=x&y=z", "https://…@host/a?…"),
        ("https://token@host/a", "https://…@host/a"),
        ("ftp://user:p@ss@host/a", "ftp://…@host/a"),
        ("https://user:what?@host/a", "https://…"),
        ("abfs://container@account.net/a", "abfs://container@account.net/a"),
        ("abfs://user:word@account.net/a", "abfs://…@account.net/a"),
        ("simplecache::https://u:word@host/a?x=1", "simplecache::https://…@host/a?…"),
        (
            "of URL('http://h/a?sig=1') and <http://u:p@h>",
            "of URL('http://h/a?…') and <http://…@h>",
        ),
        ("is it http://h/a? Yes", "is it http://h/a? Yes"),
        ("/local/a?b=c and me@host", "/local/a?b=c and me@host"),
    ],
)
def test_texts(text, expected):
    assert shown(text) == redact(text) == expected
    assert redact(expected) == expected


def test_what_is_given_is_known_wherever_it_appears():
    options = {
        "key": "AKIAEXAMPLE", "secret": "hunter22", "endpoint_url": "http://localhost:9000",
        "client_kwargs": {"headers": {"Authorization": "Bearer abcdef"}, "region_name": "eu-west"},
        "anon": False, "profile": "default",
    }  # fmt: skip
    hide("https://me:pa%24%24word@host/a?sig=abc%2Fdef&v=1", options)
    text = "AKIAEXAMPLE hunter22 http://localhost:9000 Bearer abcdef eu-west pa%24%24word pa$$word"
    expected = "… … http://localhost:9000 … eu-west … …"
    assert redact(text) == expected
    assert redact("GET /a?sig=abc%2Fdef or abc/def&v=1") == "GET /a?sig=… or …&v=1"
    error = SourceError(f"cannot: {text}", 5)
    assert error.args == (f"cannot: {expected}", 5)


def test_paths_in_storage_hide_theirs():
    path = remote.find_path("memory://user:hunter22@bucket/a?sig=abcdef")
    assert "hunter22" not in f"{path} {path!r}"
    assert "abcdef" not in f"{path / 'b'} {path!r}"


def test_a_command_is_repeated_without_them():
    words = [
        "export", "https://u:hunter22@h/a?sig=abcdef", "out", "--resume",
        "--storage-options", json.dumps({"secret": "hunter33"}),
        '--output-storage-options={"secret": "hunter44"}', "--key", "a?b",
    ]  # fmt: skip
    assert list(without_secrets(words)) == [
        "export", "https://…@h/a?…", "out", "--storage-options", "…",
        "--output-storage-options=…", "--key", "a?b",
    ]  # fmt: skip
