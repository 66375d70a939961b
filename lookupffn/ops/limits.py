"""Numbers that Python and the C++ kernels share: stated here, handed to the compiler as LFFN_<name>."""

MAX_PROBES = 4  # the kernels keep the best few terms in registers
MAX_BITS = 24  # of a code: codes are exact in float32 up to here
SMALLEST_BLOCK = 16  # smaller blocks of BH4 are joined: a vector of AVX-512
TILE = 48  # tokens that pass through BH4 and the hash together
LEAST_FOR_DIGITS = 96  # tokens: below, reading the digits of the weights takes longer
CHECKED_BYTES = 128 << 10  # of BH4's weights that a thread compares at a time with those that were folded
CHECKED_ALONE = 3  # such pieces: for so few, waking the other threads takes longer
CODES_AT_ONCE = 24 << 20  # bytes of codes and scores, or of sums that become bfloat16

# of a layer that is prepared for int8
TABLE_GROUP = 16  # tables that are hashed together
FEW_A_THREAD = 8  # tokens: fewer, and threads share the weights instead
READ_BYTES = 4 << 20  # of the tokens that are looked up at a time: every chunk of columns passes over it
SLICE_BYTES = 256 << 10  # of a slice of the tables, which stays in the second-level cache
SLICE_TOKENS = 1024  # that pass over a chunk's slices together
# multiply-adds a cycle of one core with vectors of 512 bits; relative to each other they hold for others too
FLOAT32_RATE, BF16_RATE, INT8_RATE, TILES_RATE = 16, 32, 64, 512
PASSES = 3  # loads, stores and conversions of a factor of BH4, in levels of butterflies

COMPILER_DEFINITIONS = tuple(f"-DLFFN_{name}={value}" for name, value in dict(globals()).items() if name.isupper())
