"""The file of recorded requests: what it may hold, and that nothing else gets through."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from service.model.gates.golden import Protocol
from service.preflight.golden import requests
from service.preflight.golden.requests import RequestsError, read

PREDICT = "/v1/models/ranker:predict"


def written(folder: Path, *lines: Any) -> Path:
    file = folder / "golden.jsonl"
    file.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return file


def test_the_path_tells_the_protocol_and_where_readiness_is_asked(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        {"path": PREDICT, "body": {"instances": [1.5]}},
        {"path": "/v1/models/ranker/versions/3:classify", "body": {}},
        {"path": "/v2/models/ranker/versions/2/infer", "body": {}},
        {"path": "/score?user=7"},
    )
    found = read(file)
    assert [(one.protocol, one.ready_path) for one in found] == [
        (Protocol.TENSORFLOW_SERVING, "/v1/models/ranker"),
        (Protocol.TENSORFLOW_SERVING, "/v1/models/ranker/versions/3"),
        (Protocol.KSERVE_V2, "/v2/models/ranker/versions/2/ready"),
        (Protocol.HTTP_JSON, None),
    ]
    assert [(one.id, one.method, one.body) for one in (found[0], found[3])] == [
        ("line-1", "POST", b'{"instances":[1.5]}'),
        ("line-4", "GET", b""),
    ]


def test_a_named_protocol_holds_for_every_line(tmp_path: Path) -> None:
    file = written(tmp_path, {"path": PREDICT, "body": {}})
    (one,) = read(file, Protocol.HTTP_JSON)
    assert (one.protocol, one.ready_path) == (Protocol.HTTP_JSON, None)


def test_nan_in_a_recorded_body_is_sent_as_it_was(tmp_path: Path) -> None:
    file = written(tmp_path, f'{{"path": "{PREDICT}", "body": {{"instances": [NaN, -Infinity]}}}}\n')
    assert read(file)[0].body == b'{"instances":[NaN,-Infinity]}'


def test_empty_lines_are_passed_over_and_lines_keep_their_numbers(tmp_path: Path) -> None:
    file = written(tmp_path, "\n\r\n", {"path": PREDICT, "body": 1}, "   \n", {"path": PREDICT, "body": 2})
    assert [one.id for one in read(file)] == ["line-3", "line-5"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[1, 2]\n", "no JSON object"),
        ("{\n", "no JSON object"),
        ("[" * 100_000 + "\n", "no JSON object"),
        ('{"path": "/a", "body": ' + "[" * 5000 + "]" * 5000 + "}\n", "no JSON object"),
        ({"path": "/a", "url": "http://elsewhere"}, "unknown key 'url'"),
        ({"body": {}}, "'path' must be"),
        ({"path": 7}, "'path' must be"),
        ({"path": "http://elsewhere/a"}, "'path' must be"),
        ({"path": "//elsewhere/a"}, "'path' must be"),
        ({"path": "/a/../admin"}, "'path' must be"),
        ({"path": "/a/./b"}, "'path' must be"),
        ({"path": "/a/%2e%2e/admin"}, "'path' must be"),
        ({"path": "/a b"}, "'path' must be"),
        ({"path": "/a\r\nX-Injected: 1"}, "'path' must be"),
        ({"path": "/a#fragment"}, "'path' must be"),
        ({"path": "/" + "a" * 3000}, "'path' must be"),
        ({"path": "/a", "method": "DELETE"}, "'method' must be"),
        ({"path": "/a", "id": "two words"}, "'id' must be"),
        ({"path": "/a", "headers": ["x"]}, "'headers' must be"),
        ({"path": "/a", "headers": {f"X-{i}": "1" for i in range(21)}}, "'headers' must be"),
        ({"path": "/a", "headers": {"X": "a\r\nY: b"}}, "printable"),
        ({"path": "/a", "headers": {"X: Y": "1"}}, "printable"),
        ({"path": "/a", "headers": {"X": 1}}, "printable"),
        ({"path": "/a", "headers": {"AUTHORIZATION": "Bearer s3cret"}}, "carries credentials"),
        ({"path": "/a", "headers": {"Cookie": "a=b"}}, "carries credentials"),
        ({"path": "/a", "headers": {"Host": "inside"}}, "belongs to the connection"),
        ({"path": "/a", "headers": {"Transfer-Encoding": "chunked"}}, "belongs to the connection"),
    ],
)
def test_what_is_no_request_is_refused_with_its_line_and_without_its_secrets(
    tmp_path: Path, line: Any, said: str
) -> None:
    file = written(tmp_path, {"path": PREDICT, "body": 1}, line)
    with pytest.raises(RequestsError, match=f"line 2: .*{said}") as raised:
        read(file)
    assert "s3cret" not in str(raised.value)


def test_two_requests_may_not_share_an_id(tmp_path: Path) -> None:
    with pytest.raises(RequestsError, match="the same id"):
        read(written(tmp_path, {"id": "line-2", "path": "/a"}, {"path": "/b"}))


def test_an_empty_file_is_not_a_file_of_requests(tmp_path: Path) -> None:
    with pytest.raises(RequestsError, match="are empty"):
        read(written(tmp_path, "\n\n"))


@pytest.mark.parametrize(
    ("limit", "value", "said"),
    [("MAX_REQUESTS", 2, "more than 2"), ("MAX_LINE_BYTES", 20, "line 1: longer"), ("MAX_FILE_BYTES", 50, "larger")],
)
def test_each_limit_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int, said: str) -> None:
    file = written(tmp_path, *({"path": f"/prediction-{i}"} for i in range(3)))
    assert len(read(file)) == 3
    monkeypatch.setattr(requests, limit, value)
    with pytest.raises(RequestsError, match=said):
        read(file)


def test_a_file_outside_the_folder_is_not_read_whichever_way_leads_there(tmp_path: Path) -> None:
    folder = tmp_path / "golden"
    folder.mkdir()
    outside = written(tmp_path, {"path": "/a"})
    (folder / "link.jsonl").symlink_to(outside)
    inside = written(folder, {"path": "/a"})
    (folder / "inner.jsonl").symlink_to(inside)
    assert len(read(folder / "inner.jsonl", below=folder)) == 1
    for way in (folder / "link.jsonl", folder / ".." / outside.name):
        with pytest.raises(RequestsError, match="lead out of the folder"):
            read(way, below=folder)


def test_a_pipe_a_folder_and_a_missing_file_are_errors_and_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(RequestsError, match="no regular file"):
        read(tmp_path / "pipe")
    for name in (".", "missing.jsonl"):
        with pytest.raises(RequestsError, match="cannot read"):
            read(tmp_path / name)
