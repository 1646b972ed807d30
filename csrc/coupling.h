// Coupling coefficients at run time: the exact Python table as printed when building (l <= table_l_max),
// and whatever Python registers later for larger degrees.
#pragma once

#include "api.h"

namespace clebsch {

// One non-zero coefficient; m1, m2, m3 are component indices 0..2l.
struct CouplingEntry {
  unsigned char m1, m2, m3;
  double value;
};

struct CouplingBlock {
  int l1, l2, l3, size;
  const CouplingEntry* entries;
};

CLEBSCH_API extern const CouplingBlock coupling_blocks[];
CLEBSCH_API extern const int coupling_block_count;
CLEBSCH_API extern const int table_l_max;

}  // namespace clebsch
