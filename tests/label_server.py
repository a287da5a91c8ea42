"""Labelling servers in this process, for tests."""

import contextlib

from starlette.testclient import TestClient

from core.artifacts import write_jsonl
from data.layouts.faults import Faults
from serve.labelling.app import make_app
from serve.labelling.items import read_items
from serve.labelling.store import Store
from serve.labelling.work import Settings, Work

SCRIPT = "<script>alert('x')</script> & \u202e\x1b[2J"
PAIRS = [{"prompt": f"What is {i}?" if i else f"Say {SCRIPT}",
          "rejected": f"no {i}" if i else SCRIPT,
          "chosen": f"yes, {i} is a number, and a longer answer to it"} for i in range(8)]
CLOCK = 1_000_000.0


class Server:
    """A labelling server in this process, and its clock."""

    def __init__(self, folder, rows, *, work=None, **settings):
        write_jsonl(folder / "inputs.jsonl", rows)
        self.out, self.faults, self.now = folder / "out", Faults("label"), CLOCK
        items = read_items(folder / "inputs.jsonl", work, self.faults)
        self.store = Store(self.out)
        self.work = Work(items, self.store, Settings(clock=lambda: self.now, **settings))
        self.client = TestClient(make_app(self.work), base_url="http://127.0.0.1:8001")

    def next(self, annotator):
        return self.ok(self.client.get("/api/next", params={"annotator": annotator}))

    def post(self, path, **body):
        return self.client.post(f"/api/{path}", json=body)

    def ok(self, reply):
        assert reply.status_code == 200, reply.text
        return reply.json()

    def label(self, shown, **body):
        """Labels what is shown; the reply."""
        self.now += 10
        return self.post("label", **head(shown), **body)

    def run(self, annotator, ranks_of):
        """A whole session: labels until nothing is left; what was shown."""
        seen, shown = [], self.next(annotator)
        while shown["item"]:
            seen.append(shown["item"])
            shown = self.ok(self.label(shown, ranks=ranks_of(shown["item"]["answers"])))
        return seen


def head(shown):
    return {"annotator": shown["annotator"], "item": shown["item"]["id"],
            "ticket": shown["item"]["ticket"]}


def by_length(answers):
    return [1, 2] if len(answers[0]) > len(answers[1]) else [2, 1]


@contextlib.contextmanager
def servers(folder):
    """Gives a function that makes servers of rows in a folder; closes them."""
    made = []

    def make(rows=PAIRS, **settings):
        made.append(Server(folder, rows, **settings))
        return made[-1]

    try:
        yield make
    finally:
        for server in made:
            server.client.close()
            server.store.close()
