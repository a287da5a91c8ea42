"""A page on which people label answers: which is better, an order, or an ideal answer.

    python -m serve.label --inputs=pairs.jsonl --out=runs/labels
    python -m serve.label --inputs=rankings.jsonl --out=runs/labels --labels_per_item=2
    python -m serve.label --inputs=prompts.jsonl --out=runs/demonstrations --annotator=ana

`--inputs` is a file or folder in any layout of `data.layouts`: answers to one prompt, whose order
and authors are not shown, or prompts alone, to each of which an answer is written. Each annotator
says a name and sees the answers in an order of their own. `/progress` shows counts, speed and
agreement. `preferences.jsonl` in `--out` is what `align.reward`, `align.dpo` and `eval.agreement`
read, and `eval.arena` where the input names `models`; `demonstrations.jsonl` what `align.sft` does.
Their `meta` names the `annotator` and the `item`, with `time`, `secs`, `reason` and `flags` of each
answer; the answers are in the order in which they were shown, and `order` has their places in the
input. A label is on the disk before the page shows the next item; the same command goes on with the
rest.

Only this machine can connect, and names are taken on trust. To let others in, forward the port
(`ssh -L`), or put a proxy with a login before it and name it with `--allowed_hosts`.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from absl import flags

from core import entry
from core.errors import UserError
from core.progress import log
from data.layouts.faults import Faults
from serve.labelling.forms import parse_name
from serve.labelling.items import WORKS, read_items
from serve.labelling.store import EXPORTS, Store
from serve.web.errors import WebError


def label() -> dict[str, Any]:
    """Serves the page until a signal comes; returns the command's result."""
    try:
        from serve.labelling.app import Server, make_app
        from serve.web.sockets import bind_socket
    except ImportError as error:
        raise UserError("the labelling page", f"needs the package {error.name}",
                        "pip install -e '.[serve]'") from None
    from serve.labelling.work import Settings, Work
    values = flags.FLAGS
    for name in ("inputs", "out"):
        if not values[name].value:
            raise UserError(f"--{name}", "is missing", f"name a path: --{name}=PATH")
    faults = Faults("label")
    items = read_items(Path(values.inputs), values.work, faults)
    faults.report()
    settings = Settings(values.labels_per_item, values.seed, _only_annotator())
    listener = bind_socket("127.0.0.1", values.port)
    listener.listen()       # those who connect now are answered once the server runs
    store = Store(Path(values.out))
    work = Work(items, store, settings)
    kinds = ", ".join(f"{num} to {kind}" for kind, num in Counter(
        item.kind for item in items.values()).items())
    log(f"{kinds}; {work.num_done_items()} of {len(items)} are done: "
        f"http://127.0.0.1:{listener.getsockname()[1]}/ ; Ctrl-C ends it")
    Server(make_app(work, hosts=values.allowed_hosts)).run(sockets=[listener])
    store.close()
    return {"out": values.out, "items": len(items), "items_done": work.num_done_items(),
            **{Path(name).stem: len(store.rows(name)) for name in EXPORTS},
            "annotators": Counter(event["annotator"] for event in store.live.values()),
            "left_out": dict(faults.counts)}


def _only_annotator() -> str:
    name = flags.FLAGS.annotator
    try:
        return parse_name(name) if name else ""
    except WebError as error:
        raise UserError(f"--annotator={name!r}", str(error), "choose a shorter name") from None


if __name__ == "__main__":
    flags.DEFINE_string("inputs", None, "File or folder of answers to compare, or of prompts.")
    flags.DEFINE_string("out", None, "Folder of the labels; it may hold earlier ones.")
    flags.DEFINE_enum("work", None, WORKS, "Compare answers, or write one to each prompt; by "
                      "default the first row decides.")
    flags.DEFINE_string("annotator", None, "The only annotator; by default each says a name.")
    flags.DEFINE_integer("labels_per_item", 1, "Annotators who label an item.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Of the order of answers.", lower_bound=0)
    flags.DEFINE_integer("port", 8001, "Port; 0 is any free one.", lower_bound=0,
                         upper_bound=65535)
    flags.DEFINE_list("allowed_hosts", [], "Names of this server in requests, beside localhost.")
    entry.run(label)
