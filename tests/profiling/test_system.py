"""What the system says about itself."""

import mmap
import subprocess
import sys

import pytest

from lookupffn.profiling.system import peak_resident_bytes


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not say")
def test_the_peak_of_a_started_process_is_its_own():
    """A parent's peak is not its child's: what several processes need is told by it."""
    held = mmap.mmap(-1, 600 << 20)
    for page in range(0, len(held), 4096):
        held[page] = 1
    own = peak_resident_bytes()
    code = "from lookupffn.profiling.system import peak_resident_bytes; print(peak_resident_bytes())"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert own >= 600 << 20 and 0 < int(result.stdout) < 600 << 20
    held.close()
