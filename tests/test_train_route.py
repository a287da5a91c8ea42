"""The route from `train/pretrain.py` to attention stays short enough to be read at one go.

CONTRIBUTING.md lists it for newcomers; both are checked against a real first step of the default
run, traced function by function.
"""

import re
import sys
from pathlib import Path

import pytest
from small_tokens import write_artifacts

from configs.quickstart import get_config
from core.artifacts import ROOT
from model.attention import backends
from train import loop, pretrain

pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")     # Daft's

MAX_CALLS, MAX_FILES = 12, 15


class Arrived(Exception):
    """Attention was reached."""


def _place(frame):
    """File and function of a frame of ours, or None."""
    path = Path(frame.f_code.co_filename)
    if not path.is_relative_to(ROOT) or {".venv", "tests"} & set(path.relative_to(ROOT).parts):
        return None
    return str(path.relative_to(ROOT)), frame.f_code.co_name


@pytest.fixture(scope="module")
def route(tmp_path_factory):
    """(file, function) of each call from `build` to `attend`; all files entered by the step."""
    workdir = tmp_path_factory.mktemp("route")
    write_artifacts(workdir)
    config = get_config("smoke")
    config.pretrain.run.tasks = {}
    calls, files = [], set()

    def attend(*_):
        sys.setprofile(None)
        frame = sys._getframe(1)
        while frame:
            calls.insert(0, _place(frame))
            frame = frame.f_back
        raise Arrived

    def profile(frame, event, _):
        if event == "call" and _place(frame):
            files.add(_place(frame)[0])

    def run(self, *args):
        step = self._train_step

        def traced_step(*state_and_batch):
            patch.setattr(backends, "attend", attend)
            sys.setprofile(profile)
            return step(*state_and_batch)

        self._train_step = traced_step
        return sound_run(self, *args)

    sound_run = loop.Loop.run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Loop, "run", run)
        try:
            with pytest.raises(Arrived):
                pretrain.build(config, {name: workdir / name for name in ("tokens", "corpus")},
                               workdir)
        finally:
            sys.setprofile(None)
    calls = [call for call in calls if call]
    calls = [*calls[calls.index(("train/pretrain.py", "build")):],
             ("model/attention/reference.py", "attend")]
    return calls, files | {file for file, _ in calls}


def test_the_route_is_short(route):
    calls, files = route
    assert len(calls) - 1 <= MAX_CALLS, calls
    assert len(files) <= MAX_FILES, sorted(files)


def test_the_guide_for_newcomers_lists_the_route(route):
    calls, _ = route
    guide = (ROOT / "CONTRIBUTING.md").read_text()
    listed = re.findall(r"^\| `([\w/.]+)` \| `(\w+)` \|", guide, re.MULTILINE)
    assert listed == calls
