"""A server with OpenAI's API on loopback, in a thread of the test's process."""

import contextlib
import dataclasses
import threading
import time

import jax

from data.tokenizers.bpe import BytePairTokenizer
from eval.respond.loaded import LoadedModel
from model.families.registry import init
from serve.api.metrics import Metrics, ModelMetrics
from serve.api.worker import Worker

BYTES = BytePairTokenizer({bytes([i]): i for i in range(256)})
CAPACITY, NUM_SLOTS = 128, 3
HELLO = [{"role": "user", "content": "Hello."}]
GREEDY = {"model": "tiny", "messages": HELLO, "max_tokens": 12, "temperature": 0}


def make_model(config, execution, tokenizer=BYTES):
    """A model over bytes that answers in turns."""
    config = dataclasses.replace(config, V=tokenizer.vocab_size)
    params = jax.jit(lambda key: init(config, key))(jax.random.key(3))
    return LoadedModel(params, config, execution, tokenizer, chat=True, context_tokens=CAPACITY,
                       name="tiny@0123")


def make_worker(model, metrics, name, *, num_slots, capacity, max_queue, **how):
    """A worker that is counted under a name, not yet started."""
    metrics.models[name] = ModelMetrics(num_slots)
    return Worker(model, num_slots=num_slots, capacity=capacity, max_queue=max_queue,
                  metrics=metrics.models[name], **how)


@contextlib.contextmanager
def serving(workers, encoders, metrics, *, request_secs=60.0, arena=None, **how):
    """Serves until the end of the block; yields the URL without a path, and what is served."""
    from serve.api.app import Served  # of optional packages
    from serve.api.server import Server
    from serve.web.sockets import bind_socket

    served = Served(workers, encoders, metrics, request_secs, arena)
    listener = bind_socket("127.0.0.1", 0)
    server = Server(served, **how)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", served
    finally:
        server.close()
        thread.join()


@contextlib.contextmanager
def serving_model(model, *, max_queue=16, **how):
    """Serves one model as "tiny"; see `serving`."""
    metrics = Metrics()
    worker = make_worker(model, metrics, "tiny", num_slots=NUM_SLOTS, capacity=CAPACITY,
                         max_queue=max_queue)
    worker.start()
    with serving({"tiny": worker}, {}, metrics, **how) as found:
        yield found


def await_idle(served, secs=20.0):
    """Waits until nothing runs; whether all slots are free."""
    limit = time.monotonic() + secs
    while time.monotonic() < limit:
        busy = [own.busy.value + own.waiting.value for own in served.metrics.models.values()]
        if not served.num_open and not any(busy):
            return True
        time.sleep(0.01)
    return False
