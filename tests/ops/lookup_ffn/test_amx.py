"""The kernels for AMX, on any CPU: their own source, compiled with the tile instructions in plain C++."""

import hashlib
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.slow
def test_the_tile_kernels_on_emulated_instructions(kernels):
    header = HERE / "amx_emulation.h"
    # the second flag makes the key of a library change with the header
    flags = [f'-DLFFN_AMX_EMULATION="{header}"', f"-DEMULATION_{hashlib.sha256(header.read_bytes()).hexdigest()[:16]}"]
    environment = os.environ | {"LOOKUPFFN_CXXFLAGS": shlex.join(flags), "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "amx_checks.py")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=HERE.parents[2], timeout=500)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-1000:]
    assert "skipped" not in result.stdout
