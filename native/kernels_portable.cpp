// Four lanes: SSE on x86, NEON on ARM, plain code elsewhere.
#define KERNEL_SET portable
#define LANES 4
#define MOST_VECTORS 12
#define DENSE_VECTORS 3
#include "kernels_impl.h"
