"""Downloads: cached, checked, fetched again when damaged, and clear when they cannot be had."""

from __future__ import annotations

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from errata.data import load_cases
from errata.data._download import fetch
from errata.data.counterfact import CounterFact
from errata.errors import ConfigError, DataError

RECORD = (
    b'[{"case_id": 1, "prompt": "A b", "target_new": "x", "subject": "A", "ground_truth": "y",'
    b' "rephrase_prompt": "A c", "locality_prompt": "D b", "locality_ground_truth": "y"}]'
)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A server on this machine; `content` is what it serves, `short` by how much it ends early."""
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path / "cache"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            server.asked += 1
            content = server.content.get(self.path)
            if content is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) - server.short])

        def log_message(self, format, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.short, server.content = 0, 0, {"/d/file.json": RECORD}
    server.url = f"http://127.0.0.1:{server.server_address[1]}/d/file.json"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_file_is_fetched_once_and_verified_afterwards(place):
    path = fetch(place.url)
    assert path.read_bytes() == RECORD
    assert path.parent.parent.name == "cache"
    recorded = path.with_name("file.json.sha256").read_text()
    assert recorded == f"{hashlib.sha256(RECORD).hexdigest()}  file.json\n"
    assert fetch(place.url) == path
    assert place.asked == 1


def test_a_damaged_file_in_the_cache_is_fetched_again(place, capsys):
    path = fetch(place.url)
    path.write_bytes(RECORD[:20])
    assert fetch(place.url).read_bytes() == RECORD
    assert place.asked == 2
    assert "damaged" in capsys.readouterr().err


def test_a_file_without_its_checksum_is_fetched_again(place):
    path = fetch(place.url)
    path.with_name("file.json.sha256").unlink()
    path.write_bytes(b"half")
    assert fetch(place.url).read_bytes() == RECORD


def test_a_changed_publication_is_noticed(place):
    path = fetch(place.url)
    path.unlink()
    place.content["/d/file.json"] = RECORD + b" "
    with pytest.raises(DataError, match=r"expected [0-9a-f]{64}\n.*delete .*file\.json\.sha256"):
        fetch(place.url)
    assert not path.exists()


def test_a_known_checksum_is_held_against_the_download(place):
    with pytest.raises(DataError, match="has SHA-256"):
        fetch(place.url, sha256="0" * 64)
    right = hashlib.sha256(RECORD).hexdigest()
    assert fetch(place.url, sha256=right, filename="other.json").name == "other.json"


def test_a_transfer_that_ends_early_leaves_nothing(place, tmp_path):
    place.short = 7
    with pytest.raises(DataError, match=f"ended after {len(RECORD) - 7} of {len(RECORD)} bytes"):
        fetch(place.url)
    assert list((tmp_path / "cache" / "data").iterdir()) == []


def test_no_network_says_what_to_do_instead(place):
    url = place.url.replace("file.json", "absent.json")
    with pytest.raises(DataError, match=r"HTTP 404(.|\n)*by hand and use --data zsre:PATH"):
        fetch(url, data="zsre")
    with pytest.raises(DataError, match="cannot fetch"):
        fetch("http://127.0.0.1:9/x.json")


def test_a_name_alone_downloads(place, monkeypatch):
    monkeypatch.setattr(CounterFact, "published", {"all": place.url})
    loaded = load_cases("counterfact")
    assert [case.id for case in loaded.cases] == ["1"]
    assert loaded.source == place.url
    assert loaded.split == "all"
    assert load_cases("counterfact").version == loaded.version
    assert place.asked == 1
    with pytest.raises(ConfigError, match=r"counterfact:PATH"):
        load_cases("counterfact", split="edit")
