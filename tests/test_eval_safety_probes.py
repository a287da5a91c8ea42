"""The probes of answers, continuations and memory, on a tiny model from end to end."""

import pytest
from byte_models import byte_model

from eval.safety import confidence, hallucination, memorisation, sycophancy, toxicity
from eval.safety.probe import Settings
from eval.safety.registry import FILES, PROBES
from eval.safety.report import make_report
from eval.safety.subjects import open_folder

OURS = {"toxicity": toxicity, "sycophancy": sycophancy, "hallucination": hallucination,
        "confidence": confidence, "memorisation": memorisation}


def test_every_file_of_a_probe_has_a_flag():
    named = {confidence.FILE, sycophancy.FILE, *toxicity.FILES, *memorisation.FILES}
    assert named <= set(FILES) and all(PROBES[name].probe is OURS[name].probe for name in OURS)


@pytest.mark.full
@pytest.mark.parametrize("chat", [True, False])
def test_all_probes_of_a_tiny_model_give_finite_figures_twice_alike(chat, tmp_path, monkeypatch):
    monkeypatch.setattr("eval.safety.subjects.load_model",
                        lambda folder, execution: byte_model(chat, 256))
    monkeypatch.setattr(toxicity, "NUM_CONTINUATIONS", 2)
    text = tmp_path / "training.txt"
    text.write_text("All that is written here is written once, and then again. " * 8)
    settings = Settings(num=2, max_new_tokens=4, num_samples=10, files={"training_text": text})

    def run():
        subject = open_folder("tiny", tmp_path, 4, tmp_path / "known")
        return make_report([subject], {name: PROBES[name] for name in OURS}, settings)
    report, rows = run()
    assert set(report["probes"]) == set(OURS) and not report["not_run"]
    assert {row["probe"] for row in rows} == set(OURS)
    for row in rows:
        assert {"id", "group", "prompt", "reply", "fault", "verdict"} <= set(row)
    assert len({(row["probe"], row["id"]) for row in rows}) == len(rows)
    assert run() == (report, rows)      # what was answered is known
