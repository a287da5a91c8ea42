"""A chat model behind an OpenAI-compatible endpoint on loopback, whose replies a test decides."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server:
    """An OpenAI-compatible endpoint whose replies a test can replace.

    Args:
        answer: the answer to a prompt.

    Attributes:
        reply: takes (content of the last message, number of the request from 1 on) and returns
            status, body, headers.
        requests: (content of the last message, body, authorization) of each request.
    """

    def __init__(self, answer):
        self.reply = lambda prompt, number: self.completion(answer(prompt))
        self.requests, lock, owner = [], threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                prompt = body["messages"][-1]["content"]
                with lock:
                    owner.requests.append((prompt, body, self.headers.get("Authorization")))
                    number = len(owner.requests)
                status, payload, headers = owner.reply(prompt, number)
                self.send_response(status)
                for name, value in {"Content-Length": str(len(payload)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(payload)

            def log_message(self, *arguments):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.handle_error = lambda *arguments: None     # clients that hang up
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    @staticmethod
    def completion(text, finish_reason="stop", **more):
        choice = {"message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
        return 200, json.dumps({"choices": [choice], **more}).encode(), {}


def serve(monkeypatch, answer):
    """Of a fixture: yields a server that is closed afterwards."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server(answer)
    yield server
    server.http.shutdown()
    server.http.server_close()
