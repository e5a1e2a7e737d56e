"""The server of the page: where it listens, who may ask, and how it ends."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from errata.errors import ConfigError
from errata.web.files import LIMIT
from errata.web.models import Models
from errata.web.room import Room

if TYPE_CHECKING:
    from errata.model.lm import LM

LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Hosts that only this machine reaches."""

POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self'; worker-src 'self' blob:; frame-ancestors 'none'; form-action 'self'; "
    "base-uri 'self'; object-src 'none'"
)
"""What a browser may fetch for the page: nothing from elsewhere."""

STAY = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
}
"""Settings of the environment under which nothing is sent; what is set already stays."""


def stay_here() -> None:
    """Let no package of this process send anything; to be called before they are imported."""
    for name, value in STAY.items():
        os.environ.setdefault(name, value)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a host."""
    return host in LOOPBACK or host.startswith("127.")


def free_port(host: str, port: int) -> int:
    """Return the port to listen at, if nobody does yet.

    Args:
        host: Name or address of this machine.
        port: The port; 0: any that is free.

    Raises:
        ConfigError: If it is taken, or this machine has no such address.
    """
    try:
        family, *_, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            if os.name != "nt":  # a port that was in use a moment ago is free
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return int(probe.getsockname()[1])
    except socket.gaierror:
        raise ConfigError(
            f"--host {host} is no address of this machine", "Example: --host 127.0.0.1"
        ) from None
    except PermissionError:
        raise ConfigError(
            f"you may not use port {port}", "Choose one from 1024 on: --port 7860"
        ) from None
    except OSError as error:
        if "address" in str(error).lower() and "use" not in str(error).lower():
            raise ConfigError(
                f"--host {host} is no address of this machine", "Example: --host 127.0.0.1"
            ) from None
        raise ConfigError(
            f"port {port} of {host} is taken by another program",
            f"Choose another: errata web --port {port + 1 if port < 65535 else 0}, or --port 0 "
            "for any that is free.",
        ) from None


class Gate:
    """Lets in requests that name this server, and tells browsers to fetch nothing elsewhere.

    A page of a stranger may have its own name point to this machine; its requests name that.

    Args:
        app: What is behind it.
        hosts: Names by which the server may be called; None: any.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], hosts: Sequence[str] | None) -> None:
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._hosts is not None and self._named(scope) not in self._hosts:
            await send({"type": "http.response.start", "status": 403, "headers": []})
            await send({"type": "http.response.body", "body": b"not a name of this server\n"})
            return

        async def guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"content-security-policy", POLICY.encode()),
                    (b"referrer-policy", b"no-referrer"),
                    (b"x-content-type-options", b"nosniff"),
                ]
            await send(message)

        await self._app(scope, receive, guarded)

    @staticmethod
    def _named(scope: Any) -> str:
        found = dict(scope.get("headers", ())).get(b"host", b"").decode("latin-1")
        return found.rpartition(":")[0].strip("[]") if ":" in found else found


class _Middleware(NamedTuple):
    """A class that is put in front of an app, as Starlette takes it."""

    cls: type
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@contextmanager
def serving(
    load: Callable[[str], LM],
    first: str,
    named: Sequence[str] = (),
    *,
    host: str = LOOPBACK[0],
    port: int = 7860,
) -> Iterator[str]:
    """Serve the page inside the block; afterwards all work has ended and all files are gone.

    Args:
        load: Loads a model by name.
        first: The model that a new tab begins with.
        named: Models that may be chosen besides those that errata brings.
        host: Where to listen.
        port: The port; 0: any that is free.

    Yields:
        The address of the page.

    Raises:
        ConfigError: If the port is taken.
        MissingExtra: If Gradio is not installed.
    """
    stay_here()
    port = free_port(host, port)
    from errata.web.page import STYLE, Page, gr

    here = is_loopback(host)
    room = Room(Models(load, named, anywhere=here))
    before = os.environ.get("GRADIO_TEMP_DIR")
    os.environ["GRADIO_TEMP_DIR"] = str(room.folder / "gradio")
    page = Page(room, first)
    gate = _Middleware(Gate, (), {"hosts": (*LOOPBACK, host) if here else None})
    try:
        page.blocks.queue(default_concurrency_limit=None)
        page.blocks.launch(
            server_name=host, server_port=port, share=False, inbrowser=False, quiet=True,
            prevent_thread_lock=True, footer_links=[], run_history=False, ssr_mode=False,
            enable_monitoring=False, mcp_server=False, max_file_size=LIMIT, pwa=False,
            css=STYLE.read_text(encoding="utf-8"),
            theme=_theme(gr),
            app_kwargs={"middleware": [gate]},
        )  # fmt: skip
        shown = f"[{host}]" if ":" in host else host
        yield f"http://{shown}:{port}/"
    finally:
        room.close()
        page.blocks.close(verbose=False)
        if before is None:
            os.environ.pop("GRADIO_TEMP_DIR", None)
        else:
            os.environ["GRADIO_TEMP_DIR"] = before


def _theme(gr: Any) -> Any:
    """Return colours and fonts: those of the system, since none are fetched."""
    fonts = {"font": ("system-ui", "sans-serif"), "font_mono": ("ui-monospace", "monospace")}
    theme = gr.themes.Default(primary_hue="blue", **fonts)
    return theme.set(  # Gradio's own greys are too pale to read
        body_text_color_subdued="*neutral_600", body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600", block_info_text_color_dark="*neutral_300",
    )  # fmt: skip


def until_ended() -> None:
    """Wait for Ctrl-C or a request to end."""
    ended = threading.Event()
    earlier = signal.signal(signal.SIGTERM, lambda *_: ended.set())
    try:
        while not ended.wait(0.5):
            pass
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, earlier)
