#if defined(__AVX512F__)
#define KERNEL_SET avx512
#define LANES 16
#define MOST_VECTORS 16
#define DENSE_VECTORS 6
#include "kernels_impl.h"
#else
#include "kernels.h"
namespace hydraprune {
const Kernels* avx512_kernels() { return nullptr; }
}  // namespace hydraprune
#endif
