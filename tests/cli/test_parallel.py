"""How many members of a sweep run at once."""

import pickle
import signal

import pytest
import torch

from lookupffn.cli.command_line import read_command_line
from lookupffn.cli.parallel import members_at_once
from lookupffn.cli.sweep import hydra_settings
from lookupffn.signals import Interrupted


@pytest.mark.parametrize(
    ("arguments", "threads", "size", "gpu", "expected"),
    [
        (["experiment=race_tiny", "ffn=gemm", "seed=0,1"], "", 81, False, 8),
        (["experiment=race_tiny", "ffn=gemm", "seed=0,1"], "2", 81, False, 4),
        (["experiment=race_tiny", "ffn=gemm", "seed=0,1"], "16", 81, False, 1),
        (["experiment=race_tiny", "ffn=gemm", "seed=0,1"], "", 3, False, 3),
        (["experiment=race_tiny", "ffn=gemm", "seed=0,1"], "", 81, True, 1),
        (["experiment=race_tiny", "ffn=gemm", "seed=0,1", "hydra/launcher=basic"], "", 81, False, 1),
        (["experiment=race_mini", "ffn=gemm", "seed=0,1"], "", 81, False, 1),
        (["seed=0,1,2", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"], "", 3, True, 2),
    ],
)
def test_members_at_once(arguments, threads, size, gpu, expected, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    monkeypatch.setattr("lookupffn.cli.parallel.usable_cores", lambda: 8)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: gpu)
    settings = hydra_settings("train", read_command_line("train", ["-m", *arguments]))
    assert members_at_once(settings, size) == expected


def test_a_signal_comes_home_from_another_process():
    stop = pickle.loads(pickle.dumps(Interrupted(signal.SIGTERM, "stopped")))
    assert (stop.signum, stop.exit_status, str(stop)) == (signal.SIGTERM, 143, "stopped")
