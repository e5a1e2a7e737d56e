"""Where the page listens, and whom it answers; without Gradio."""

from __future__ import annotations

import asyncio
import os
import socket

import pytest
from typer.testing import CliRunner

from errata.cli.app import app
from errata.errors import ConfigError
from errata.web.server import LOOPBACK, POLICY, STAY, Gate, free_port, is_loopback, stay_here


def test_a_free_port_is_found_and_a_taken_one_refused():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} of 127.0.0.1 is taken") as found:
            free_port("127.0.0.1", port)
        assert f"--port {port + 1}" in str(found.value.hint)
        other = free_port("127.0.0.1", 0)
        assert other not in (0, port)
    assert free_port("127.0.0.1", other) == other


@pytest.mark.parametrize("host", ["203.0.113.7", "999.1.1.1"])
def test_addresses_of_other_machines_are_refused(host: str):
    with pytest.raises(ConfigError, match="no address of this machine"):
        free_port(host, 0)


def test_a_taken_port_is_a_sentence_before_anything_is_loaded():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = CliRunner().invoke(app, ["web", "--port", port], prog_name="errata")
    assert done.exit_code == 2
    assert "is taken by another program" in done.stderr


def test_without_gradio_the_extra_is_named():
    try:
        import gradio  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        pass
    else:
        pytest.skip("gradio is installed here")
    done = CliRunner().invoke(app, ["web", "--port", "0"], prog_name="errata")
    assert done.exit_code == 1
    assert "pip install 'errata[web]'" in done.stderr


@pytest.mark.parametrize(
    ("host", "here"),
    [("127.0.0.1", True), ("127.1.2.3", True), ("localhost", True), ("::1", True),
     ("0.0.0.0", False), ("192.168.1.2", False), ("example.org", False)],
)  # fmt: skip
def test_which_hosts_only_this_machine_reaches(host: str, here: bool):
    assert is_loopback(host) is here


def test_nothing_is_sent_unless_the_user_has_said_otherwise(monkeypatch: pytest.MonkeyPatch):
    for name in STAY:
        monkeypatch.setenv(name, "x")
    monkeypatch.delenv("GRADIO_ANALYTICS_ENABLED")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    stay_here()
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    assert os.environ["HF_HUB_OFFLINE"] == "0"


def answer(host: bytes | None, hosts: tuple[str, ...] | None) -> tuple[int, dict[bytes, bytes]]:
    """Ask through the gate; return status and headers."""
    sent: list[dict] = []

    async def inner(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})
        await send({"type": "http.response.body", "body": b""})

    async def send(message):
        sent.append(message)

    headers = [] if host is None else [(b"host", host)]
    asyncio.run(Gate(inner, hosts)({"type": "http", "headers": headers}, None, send))
    return sent[0]["status"], dict(sent[0]["headers"])


@pytest.mark.parametrize(
    ("host", "status"),
    [
        (b"127.0.0.1:7860", 200), (b"localhost", 200), (b"[::1]:7860", 200),
        (b"evil.example:7860", 403), (b"127.0.0.1.evil.example", 403), (b"", 403), (None, 403),
    ],
)  # fmt: skip
def test_names_that_a_stranger_points_here_are_refused(host, status):
    """DNS rebinding: a page of a stranger asks this machine under the stranger's name."""
    found, headers = answer(host, LOOPBACK)
    assert found == status
    if status == 200:
        assert headers[b"content-security-policy"] == POLICY.encode()
        assert headers[b"a"] == b"b"
    assert answer(host, None)[0] == 200


def test_the_policy_names_no_other_host():
    assert "http" not in POLICY
    assert "*" not in POLICY
