"""Bounds that Python and the C++ kernels share: stated here, handed to the compiler as definitions."""

MAX_PROBES = 4  # the kernels keep the best few terms in registers
MAX_BITS = 24  # of a code: codes are exact in float32 up to here

COMPILER_DEFINITIONS = (f"-DLFFN_MAX_PROBES={MAX_PROBES}", f"-DLFFN_MAX_BITS={MAX_BITS}")
