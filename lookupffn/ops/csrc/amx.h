// The matrix tiles (AMX) of the CPU: whether this process may use them, and their shape.
#pragma once

#include <cstdint>

#if defined(LFFN_AMX_EMULATION)  // a header with the few instructions in plain C++: for tests on other CPUs
#include LFFN_AMX_EMULATION
#define LFFN_TILES_INT8 1
#define LFFN_TILES_BF16 1
#elif defined(__AMX_TILE__) && defined(__linux__)
#if defined(__AMX_INT8__)
#define LFFN_TILES_INT8 1
#endif
#if defined(__AMX_BF16__)
#define LFFN_TILES_BF16 1
#endif
#endif

#if defined(LFFN_TILES_INT8) || defined(LFFN_TILES_BF16)

#if !defined(LFFN_AMX_EMULATION)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace lookupffn {

// The system grants the 8 KB of tile state a thread once, to the process.
inline bool tiles_permitted() {
#if defined(LFFN_AMX_EMULATION)
  return true;
#else
  constexpr long REQUEST = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool granted = syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
  return granted;
#endif
}

// For _tile_loadconfig: all eight tiles of 16 rows of 64 bytes.
struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

}  // namespace lookupffn

#endif
