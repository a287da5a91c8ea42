"""The metrics file of a resumed run tells one story."""

from train.metrics import MetricsFile, read_metrics


def _write(path, restored_step, steps):
    file = MetricsFile(path, restored_step)
    for step in steps:
        file.write(step, {"loss": step / 10})
    file.close()


def test_a_resumed_run_leaves_the_file_of_one_that_never_stopped(tmp_path):
    _write(tmp_path / "whole.jsonl", 0, range(1, 9))
    _write(tmp_path / "resumed.jsonl", 0, range(1, 7))  # killed at 6, its checkpoint is of 4
    with open(tmp_path / "resumed.jsonl", "a") as file:
        file.write('{"step": 7, "lo')  # torn by the kill
    _write(tmp_path / "resumed.jsonl", 4, range(5, 9))
    assert (tmp_path / "resumed.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert [row["step"] for row in read_metrics(tmp_path / "resumed.jsonl")] == list(range(1, 9))


def test_a_run_from_the_start_drops_what_an_earlier_one_wrote(tmp_path):
    _write(tmp_path / "metrics.jsonl", 0, [1, 2])
    _write(tmp_path / "metrics.jsonl", 0, [1])
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 0.1}]


def test_what_is_written_can_be_read_at_once(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl", 0)
    file.write(1, {"loss": 0.1})
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1
    file.close()
