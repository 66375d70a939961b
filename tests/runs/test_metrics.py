import json
from pathlib import Path

from lookupffn.runs.metrics import truncate_metrics
from lookupffn.runs.reading import read_metrics


def test_metrics_are_cut_at_the_checkpoint(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(tmp_path) == []
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in (2, 4, 6)) + '{"step": 8, "lo')
    assert [line["step"] for line in read_metrics(tmp_path)] == [2, 4, 6]
    truncate_metrics(path, 4)
    assert path.read_text() == '{"step": 2}\n{"step": 4}\n'
