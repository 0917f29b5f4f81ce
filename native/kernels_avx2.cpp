#if defined(__AVX2__) && defined(__FMA__)
#define KERNEL_SET avx2
#define LANES 8
#define MOST_VECTORS 12
#define DENSE_VECTORS 3
#include "kernels_impl.h"
#else
#include "kernels.h"
namespace hydraprune {
const Kernels* avx2_kernels() { return nullptr; }
}  // namespace hydraprune
#endif
