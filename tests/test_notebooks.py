"""The notebooks run on any model directory or folder of runs, wherever Jupyter starts them."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys

import pytest
from planted_ladder import plant, write_tokens
from real_models import fetch_smollm2
from scaling_runs import UNROUNDED, losses

from core import artifacts
from core.artifacts import LAYOUT, ROOT, write_json, write_jsonl
from core.stages import load_config
from data.tokenizers.bpe import BytePairTokenizer
from model.directory import save_model
from model.hf.import_model import import_model
from train.pretrain import STAGE
from train.scaling.forms import HOFFMANN
from train.scaling.ladder.plan import plan_ladder

# Of ml_collections, which loads configs.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
RUN = "runs/quickstart-cpu"     # what the notebooks open, under the checkout
LADDER = "runs/ladder"
HAS_MATPLOTLIB = importlib.util.find_spec("matplotlib") is not None


@pytest.fixture(scope="module")
def checkout(params, config, tmp_path_factory):
    """A folder that holds a run's last model, as `scripts/quickstart.sh` leaves it, and a ladder.
    """
    root = tmp_path_factory.mktemp("checkout")
    folder = root / RUN / "rl"
    # 93 ordinary tokens and 5 special ones: the 98 of the tiny model.
    ranks = {bytes([b]): i for i, b in enumerate(range(32, 125))}
    BytePairTokenizer(ranks).save(root / "tokenizer")
    save_model(folder, params, config, root / "tokenizer", chat=True, context_tokens=64)
    write_json(folder / "lineage.json", {"layout": LAYOUT, "command": "python", "commit": None,
                                         "fingerprint": "ab", "inputs": {}})
    write_jsonl(folder / "metrics.jsonl", [{"step": step, "loss": 0.5} for step in range(5)])
    _plant_ladder(root)
    return root


def _plant_ladder(root) -> None:
    """The ladder of CPUs, whose losses follow Hoffmann's law."""
    write_tokens(root, pages=60_000_000, heldout=1000)
    given = ["--config=configs/ladder.py:cpu"]
    planned = plan_ladder(load_config(given, "ladder"), given, "with_head", parents=root,
                          out=root / LADDER)
    for run in planned.runs:
        plant(STAGE, run, losses(HOFFMANN, UNROUNDED, [run.params], [run.tokens])[0])


def _cells(path) -> list[str]:
    return ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"]
            if cell["cell_type"] == "code"]


def _found_model(names) -> None:
    assert names["model"].config.V == 98


def _found_law(names) -> None:
    """That of the planted runs, its forecast, and the plan of that run."""
    assert len(names["runs"].names) == 15
    assert names["report"].fit.theta_P == pytest.approx(UNROUNDED, rel=0.01)
    ahead, run = names["ahead"], names["planned"]
    truth, = losses(HOFFMANN, UNROUNDED, [ahead["params"]], [ahead["tokens"]])
    assert ahead["loss"] == pytest.approx(truth, rel=1e-3)
    assert run.flops == pytest.approx(names["budget"], rel=1e-6) and run.num_chips == 8


FOUND = {"look_inside": _found_model, "open_a_model": _found_model, "scaling": _found_law}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebooks_cells_run_in_its_folder_and_elsewhere(path, checkout, tmp_path, monkeypatch):
    monkeypatch.setattr(artifacts, "ROOT", checkout)
    for place in (path.parent, tmp_path):
        monkeypatch.chdir(place)
        names = {}
        for number, cell in enumerate(_cells(path)):
            if HAS_MATPLOTLIB or "draw_all(" not in cell:
                exec(compile(cell, f"{path.name}, code cell {number}", "exec"), names)
        FOUND[path.stem](names)
    assert not list(tmp_path.iterdir()), "a notebook leaves nothing behind"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_its_outputs(path):
    for cell in json.loads(path.read_text())["cells"]:
        assert not cell.get("outputs") and cell.get("execution_count") is None


@pytest.mark.full
def test_a_real_model_is_looked_into(tmp_path, monkeypatch):
    """SmolLM2 in the place of the quickstart's model."""
    import_model(fetch_smollm2(), tmp_path / RUN / "rl")
    monkeypatch.setattr(artifacts, "ROOT", tmp_path)
    names = {}
    for cell in _cells(ROOT / "notebooks/look_inside.ipynb"):
        exec(cell, names)
    assert names["model"].config.N == 30
    assert names["bits"].mean() < 5, "it expects plain English"
    assert names["loss_N"][-1] < 5 < 10 < names["loss_N"][15], "only the last layers know it"


@pytest.mark.full
@pytest.mark.skipif(not importlib.util.find_spec("nbconvert"), reason="needs the extra `notebooks`")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_jupyter_executes_a_notebook(path, checkout, tmp_path):
    """In a copy of its place, so that its root is the folder of `checkout`."""
    copied = tmp_path / "notebooks" / path.name
    copied.parent.mkdir()
    (tmp_path / "runs").symlink_to(checkout / "runs")
    for package in artifacts.OUR_PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package)     # a link would lead back
    copied.write_text(path.read_text())
    done = subprocess.run(
        [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute", copied, "--output",
         "out.ipynb"], env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True,
        text=True)
    assert done.returncode == 0, done.stderr
    cells = json.loads((copied.parent / "out.ipynb").read_text())["cells"]
    assert all(cell["outputs"] for cell in cells if cell["cell_type"] == "code")
