"""A server in this process that speaks as OpenAI-compatible ones do, and misbehaves on demand."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, Any, dict[str, str]]


class Stub:
    """What the server does.

    Attributes:
        says: From model and question to the text of the answer, or to `(text, tokens)` with pairs
            of tokens and log probabilities.
        models: What it serves; None: it does not tell.
        before: Called with path and body first; what it returns is sent in place of an answer.
        seen: Bodies of the questions, in order.
        keys: What came as authorisation.
        style: `completions` or `content`: how log probabilities are told; empty: not at all.
        most: Most requests that were under way at once.
    """

    def __init__(self, says: Callable[[str, str], Any], models: list[str] | None = None) -> None:
        self.says = says
        self.models = models
        self.before: Callable[[str, dict[str, Any]], Reply | None] = lambda path, body: None
        self.seen: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.style = "completions"
        self.delay = 0.0
        self.now = self.most = 0
        self.lock = threading.Lock()

    def answer(self, path: str, body: dict[str, Any]) -> Reply:
        early = self.before(path, body)
        if early is not None:
            return early
        if path.endswith("/models"):
            if self.models is None:
                return 404, {"error": {"message": "no such path"}}, {}
            return 200, {"data": [{"id": name} for name in self.models]}, {}
        self.seen.append(body)
        chat = path.endswith("/chat/completions")
        question = body["messages"][-1]["content"] if chat else body["prompt"]
        said = self.says(body.get("model", ""), question)
        text, tokens = said if isinstance(said, tuple) else (said, [])
        choice: dict[str, Any] = {"message": {"content": text}} if chat else {"text": text}
        if tokens and self.style == "content":
            choice["logprobs"] = {
                "content": [
                    {"token": t, "logprob": p, "top_logprobs": [{"token": t, "logprob": p}]}
                    for t, p in tokens
                ]
            }
        elif tokens and self.style:
            choice["logprobs"] = {
                "tokens": [t for t, _ in tokens],
                "token_logprobs": [p for _, p in tokens],
                "top_logprobs": [{t: p} for t, p in tokens],
            }
        return 200, {"model": body.get("model", ""), "choices": [choice]}, {}


@contextmanager
def served(stub: Stub) -> Iterator[str]:
    """Run it on a free port; yields the address."""

    class Handler(BaseHTTPRequestHandler):
        def reply(self) -> None:
            with stub.lock:
                stub.now += 1
                stub.most = max(stub.most, stub.now)
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else {}
            stub.keys.append(self.headers.get("Authorization"))
            time.sleep(stub.delay)
            code, document, headers = stub.answer(self.path, body)
            data = document if isinstance(document, bytes) else json.dumps(document).encode()
            with stub.lock:
                stub.now -= 1
            try:
                self.send_response(code)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
            except OSError:
                pass  # the client has gone

        do_GET = do_POST = reply

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
