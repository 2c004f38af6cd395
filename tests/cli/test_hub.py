"""Pushing to a local stand-in of the Hub's HTTP interface."""

import base64
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pandas as pd
import pytest
from typer.testing import CliRunner

from effbench.cli import app
from effbench.plugin import InputError
from effbench.publish.card import card
from effbench.publish.hub import Hub
from tests.board.test_leaderboard import board_of, trials
from tests.cli.test_publish import put, sketched

TOKEN = "hf_abcdefghijklmnopqrstuvwxyz"  # noqa: S105  # made up


class Stand(ThreadingHTTPServer):
    """Answers as the Hub does, and keeps what it was asked."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.asked = []
        self.statuses = {}
        self.mode = "regular"
        self.stored = {}

    def bodies(self, end):
        return [body for path, _, body in self.asked if path.endswith(end)]

    def committed(self):
        """The header of the only commit, and its files by path."""
        [body] = self.bodies("/commit/main")
        header, *entries = [json.loads(line) for line in body.splitlines()]
        files = {e["value"]["path"]: base64.b64decode(e["value"]["content"]) for e in entries if e["key"] == "file"}
        files |= {e["value"]["path"]: self.stored[e["value"]["oid"]] for e in entries if e["key"] == "lfsFile"}
        return header, files


class Answer(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = self.path.partition("?")[0]
        self.server.asked.append((path, dict(self.headers), body))
        end = path.rpartition("/")[2] if "preupload" not in path else "preupload"
        status = self.server.statuses.get(end, 200)
        self._answer(status, self._content(path, end, body) if status == 200 else {"error": f"no, {TOKEN}"})

    def do_GET(self):
        self._answer(404, {"error": "not found"})

    def do_PUT(self):
        self.server.stored[self.path.rpartition("/")[2]] = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append((self.path, dict(self.headers), b""))
        self._answer(200, {})

    def _content(self, path, end, body):
        url = self.server.url
        if end == "create":
            return {"url": f"{url}/datasets/org/name"}
        if end == "preupload":
            files = [file["path"] for file in json.loads(body)["files"]]
            modes = {name: self.server.mode if name.endswith((".parquet", ".png")) else "regular" for name in files}
            return {"files": [{"path": name, "uploadMode": mode, "shouldIgnore": False} for name, mode in modes.items()]}
        if end == "batch":
            objects = json.loads(body)["objects"]
            return {
                "transfer": "basic",
                "objects": [o | {"actions": {"upload": {"href": f"{url}/store/{o['oid']}"}}} for o in objects],
            }
        if path.endswith("/commit/main"):
            return {"commitUrl": f"{url}/datasets/org/name/commit/abc", "commitOid": "abc"}
        return {"errors": [], "warnings": []}

    def _answer(self, status, content):
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    server = Stand()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def push(tmp_path):
    put(tmp_path / "results", "alpha", {"full": 1000, "fast": 2000})

    def run(*arguments):
        formats = [word for name in ("markdown", "parquet", "csv") for word in ("--format", name)]
        to = ["--to", str(tmp_path / "site")]
        done = CliRunner().invoke(app, ["publish", str(tmp_path / "results"), *to, *formats, "--hub", "org/name", *arguments])
        said = done.output + str(done.exception or "")
        assert TOKEN not in said
        assert all(TOKEN.encode() not in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
        return done

    return run


def test_one_commit_has_the_card_and_the_tables(hub, push):
    done = push()
    assert done.exit_code == 0, done.exception
    assert f"pushed: {hub.url}/datasets/org/name/commit/abc" in done.output
    [created] = map(json.loads, hub.bodies("/api/repos/create"))
    assert (created["organization"], created["name"], created["type"]) == ("org", "name", "dataset")
    assert created.get("visibility") == "private" or created.get("private") is True
    assert [path for path, _, _ in hub.asked if "/commit/" in path] == ["/api/datasets/org/name/commit/main"]
    header, files = hub.committed()
    assert header["value"]["summary"] == "Update the leaderboards"
    assert files.keys() == {"README.md", "LEADERBOARD.md", "leaderboard.parquet", "trials.parquet"}
    assert {"full", "fast"} == {*pd.read_parquet(io.BytesIO(files["leaderboard.parquet"]))["stack"]}


def test_public_only_where_asked(hub, push):
    push("--hub-public")
    [created] = map(json.loads, hub.bodies("/api/repos/create"))
    assert created.get("visibility", "public") == "public"
    assert created.get("private") in (None, False)


def test_plots_go_along(hub, push, monkeypatch):
    monkeypatch.setattr("effbench_plugins.plots.style.drawn", sketched)
    push("--format", "plots")
    _, files = hub.committed()
    assert {"plots/machine/alpha/tiny-llama-on-docs-quality-train-speed.svg"} < files.keys()


def test_the_token_is_in_headers_alone(hub, push):
    push()
    assert {headers.get("Authorization", headers.get("authorization")) for _, headers, _ in hub.asked} == {f"Bearer {TOKEN}"}
    assert not [path for path, _, body in hub.asked if TOKEN.encode() in body or TOKEN in path]


def test_large_files_go_through_the_store(hub, push, monkeypatch):
    hub.mode = "lfs"
    monkeypatch.setattr("huggingface_hub._commit_api.is_xet_available", lambda: False)  # that protocol has no stand-in
    assert push().exit_code == 0
    _, files = hub.committed()
    assert len(hub.stored) == 2
    assert len(pd.read_parquet(io.BytesIO(files["trials.parquet"]))) > 0


@pytest.mark.parametrize(
    ("where", "status", "words"),
    [
        ("create", 401, "token is not valid"),
        ("create", 403, "may not write"),
        ("main", 403, "may not write"),
        ("main", 500, "500"),
    ],
)
def test_what_the_hub_refuses_is_one_line(hub, push, where, status, words):
    hub.statuses[where] = status
    done = push()
    assert isinstance(done.exception, InputError)
    assert words in str(done.exception)
    assert "\n" not in str(done.exception)


def test_without_a_token_nothing_is_sent(hub, push, monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    done = push()
    assert isinstance(done.exception, InputError)
    assert "HF_TOKEN" in str(done.exception)
    assert hub.asked == []


def test_without_a_network_the_error_is_one_line(push, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    done = push()
    assert isinstance(done.exception, InputError)
    assert "cannot push to http://127.0.0.1:9" in str(done.exception)
    assert "\n" not in str(done.exception)


@pytest.mark.parametrize("repo", ["name", "a/b/c", "/b", "a/", "../x", "a b/c", "a/b\n", "a/$x"])
def test_an_impossible_name_is_refused(repo):
    with pytest.raises(InputError, match="ORG/NAME"):
        Hub(repo, None, private=True)


def test_the_token_never_travels_in_the_clear():
    for endpoint in ("http://example.org", "http://127.0.0.1.example.org", "ftp://localhost.org", "huggingface.co"):
        with pytest.raises(InputError, match="https"):
            Hub("a/b", endpoint, private=True)
    assert Hub("a/b", None, private=True).endpoint == "https://huggingface.co"


def test_without_parquet_there_is_no_dataset():
    with pytest.raises(InputError, match="parquet"):
        Hub("a/b", None, private=True).push({"LEADERBOARD.md": b""}, [])


def header_of(text):
    import yaml

    begin, header, body = text.split("---\n", 2)
    assert begin == ""
    return yaml.safe_load(header), body


def test_the_card_says_what_it_is_and_how_to_load_it():
    header, body = header_of(card([board_of(trials())], "org/name", 5_000, ["LEADERBOARD.md"]))
    assert header["license"] == "apache-2.0"
    assert header["size_categories"] == ["1K<n<10K"]
    assert {c["config_name"]: c["data_files"] for c in header["configs"]} == {
        "leaderboard": "leaderboard.parquet",
        "trials": "trials.parquet",
    }
    assert header["pretty_name"]
    for words in (
        "`tiny-llama`",
        "`machine`",
        'load_dataset("org/name", "trials"',
        "pd.read_parquet",
        "Holm",
        "Apache License",
    ):
        assert words in body
    assert "[`LEADERBOARD.md`](LEADERBOARD.md)" in body
    assert "index.html" not in body


def test_hostile_names_change_neither_the_header_nor_the_table():
    hostile = "x`|y\n---\nlicense: other <script>\x1b"
    board = board_of([r.model_copy(update={"machine": hostile}) for r in trials()])
    header, body = header_of(card([board], "org/name", 10, []))
    assert header["license"] == "apache-2.0"
    [row] = [line for line in body.splitlines() if "script" in line]
    assert row.count("|") == 8
    assert row.count("`") == 10
    assert "\x1b" not in body


@pytest.mark.parametrize(
    ("rows", "category"), [(999, "n<1K"), (1_000, "1K<n<10K"), (100_000, "100K<n<1M"), (10**8, "10M<n<100M")]
)
def test_the_size_is_that_of_the_trials(rows, category):
    assert header_of(card([], "a/b", rows, []))[0]["size_categories"] == [category]
