"""An arena on loopback whose models are written by the test, or are tiny ones."""

import contextlib
import json
import random
import threading

import httpx
from api_server import BYTES, serving

from eval.respond.loaded import LoadedModel
from serve.api.metrics import Metrics
from serve.api.streaming import Piece

NAMES = ("quartz", "basalt", "gneiss")
SCRIPT = "<script>document.title = 'run'</script> & \u202e\x1b[2J"


class NoGrammars:
    """No answer follows a grammar."""

    def make_guide(self, constraint):
        assert constraint is None


class Scripted:
    """Stands where a `Worker` does: what it says is the test's.

    Args:
        text: of every answer, which comes at once; None leaves it to `say`.
    """

    grammars, is_alive, adapters, call_form = NoGrammars(), True, {}, None

    def __init__(self, name, config, execution, text=None, capacity=4096):
        self.model = LoadedModel({}, config, execution, BYTES, chat=True, context_tokens=capacity,
                                 name=f"{name}-folder@fingerprint-of-{name}")
        self.capacity, self.text, self.error, self.is_full = capacity, text, None, False
        self.answers, self.cancelled, self._open = [], [], []
        self._lock = threading.Lock()

    def fingerprint(self, _name):
        return self.model.name

    @property
    def num_open(self):
        return len(self._open)

    def check_room(self, _count):
        pass

    def submit(self, answers):
        if self.error is not None:
            raise self.error
        with self._lock:
            self.answers += answers
            self._open += answers
        if self.text is not None:
            self.say(self.text)
            self.end()

    def cancel(self, answers):
        with self._lock:
            for answer in answers:
                if answer in self._open:
                    self._open.remove(answer)
                    self.cancelled.append(answer)

    def say(self, text):
        """Adds to all open answers."""
        for answer in [*self._open]:
            answer.emit(Piece(text))

    def end(self, finish="stop", error=None):
        """Ends all open answers."""
        with self._lock:
            ended, self._open = self._open, []
        for answer in ended:
            answer.emit(Piece(error=error) if error else Piece(finish=finish))

    def close(self):
        pass


@contextlib.contextmanager
def arena_of(workers, folder, *, seed=0, **how):
    """Serves an arena of these workers; yields a client of it, and the arena."""
    from serve.arena.arena import Arena
    from serve.arena.store import VoteStore
    arena = Arena(workers, VoteStore(folder), 60.0, rng=random.Random(seed))
    metrics = how.pop("metrics", None) or Metrics()
    with serving(workers, {}, metrics, arena=arena, **how) as (url, _served), \
            httpx.Client(base_url=url, trust_env=False, timeout=60.0) as client:
        yield client, arena


def scripted(config, execution, names=NAMES, text="An answer of some length, as models write it."):
    """Workers by name that all say a text."""
    return {name: Scripted(name, config, execution, text) for name in names}


def events_of(reply):
    """The events of a stream, as they come."""
    for line in reply.iter_lines():
        if line:
            yield json.loads(line.removeprefix("data: "))


def ask(client, prompt="Hello.", battle="", **how):
    """A whole turn; its events."""
    with client.stream("POST", "/arena/ask", json={"prompt": prompt, "battle": battle},
                       **how) as reply:
        assert reply.status_code == 200, reply.read()
        return [*events_of(reply)]


def texts_of(events):
    """Both answers, put together."""
    return ["".join(found["texts"][side] for found in events if "texts" in found)
            for side in range(2)]


def vote(client, battle, verdict="a", **fields):
    """The reply to a vote."""
    return client.post("/arena/vote", json={"battle": battle, "verdict": verdict, **fields})


def code_of(reply):
    """Status and code of an error."""
    return reply.status_code, reply.json()["error"]["code"]


