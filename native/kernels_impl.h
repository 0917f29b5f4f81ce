// The kernels, written once with the compiler's vector types; each instruction set compiles them with its own flags.
// Before this file is included LANES, MOST_VECTORS, DENSE_VECTORS and KERNEL_SET are defined. It includes nothing of the
// standard library that has code in headers: inline functions compiled for one machine must not serve another.
#include "kernels.h"

#if defined(__AVX__)
#include <immintrin.h>
#endif

namespace hydraprune {
namespace {

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef float half_vec __attribute__((vector_size(2 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));

template <class Vector>
struct Unaligned {
    typedef Vector type __attribute__((aligned(4), may_alias));
};
template <class Vector = vec>
inline Vector splat(float value) {
    return value - Vector{};
}
template <class Vector = vec>
inline Vector load(const float* p) {
    return *reinterpret_cast<const typename Unaligned<Vector>::type*>(p);
}
template <class Vector>
inline void store(float* p, Vector v) {
    *reinterpret_cast<typename Unaligned<Vector>::type*>(p) = v;
}
template <class Vector>
inline Vector larger(Vector a, Vector b) {  // NaN where one is
    return a != a ? a : a > b ? a : b;
}
template <class Vector>
inline Vector rectified(Vector x) {  // NaN stays NaN
    return Vector{} > x ? Vector{} : x;
}

inline vec masked(vec x, uint32_t lanes) {
#if LANES == 16 && defined(__AVX512F__)
    return _mm512_maskz_mov_ps(static_cast<__mmask16>(lanes), x);
#else
    ivec bits;
    for (int i = 0; i < LANES; ++i) bits[i] = 1 << i;
    const ivec keep = ((static_cast<int32_t>(lanes) - ivec{}) & bits) != 0;
    return reinterpret_cast<vec>(reinterpret_cast<ivec>(x) & keep);
#endif
}

inline void store_part(float* p, vec x, int count) {
#if LANES == 16 && defined(__AVX512F__)
    _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << count) - 1), x);
#else
    for (int i = 0; i < count; ++i) p[i] = x[i];
#endif
}

// Each tap: broadcast its weight, multiply-add it with one input vector per accumulator. Few vectors need several taps
// in flight to hide the latency of the additions; then the weights, not the inputs, are most of what is read.
template <class Offset, int N, class Vector = vec>
void sparse(const SparseArgs& a) {
    constexpr int kFlight = N >= 6 ? 1 : N >= 3 ? 2 : N == 2 ? 4 : 8;
    const Offset* const offsets = static_cast<const Offset*>(a.offsets);
    const float* const weights = a.weights;
    const float* const base = a.base;
    for (int c = 0; c < a.channels; ++c) {
        float* const out = a.out + c * a.out_stride;
        Vector sums[kFlight][N];
#pragma GCC unroll 16
        for (int u = 0; u < kFlight; ++u)
#pragma GCC unroll 16
            for (int j = 0; j < N; ++j) sums[u][j] = u ? Vector{} : a.add ? load<Vector>(out + j * LANES) : splat<Vector>(a.bias[c]);
        size_t tap = a.begin[c];
        const size_t end = a.end[c];
        for (; tap + kFlight <= end; tap += kFlight) {
            if (kFlight >= 4) {
                __builtin_prefetch(weights + tap + 256);
                __builtin_prefetch(offsets + tap + 256);
            }
#pragma GCC unroll 16
            for (int u = 0; u < kFlight; ++u) {
                const float* const in = base + offsets[tap + u];
                const Vector weight = splat<Vector>(weights[tap + u]);
#pragma GCC unroll 16
                for (int j = 0; j < N; ++j) sums[u][j] += weight * load<Vector>(in + j * LANES);
            }
        }
        if (kFlight > 1)
            for (; tap < end; ++tap) {
                const float* const in = base + offsets[tap];
                const Vector weight = splat<Vector>(weights[tap]);
#pragma GCC unroll 16
                for (int j = 0; j < N; ++j) sums[0][j] += weight * load<Vector>(in + j * LANES);
            }
#pragma GCC unroll 16
        for (int j = 0; j < N; ++j) {
#pragma GCC unroll 16
            for (int half = kFlight / 2; half; half /= 2)
#pragma GCC unroll 16
                for (int u = 0; u < half; ++u) sums[u][j] += sums[u + half][j];
            store(out + j * LANES, a.relu ? rectified(sums[0][j]) : sums[0][j]);
        }
    }
}

template <int C, int N>
void dense_part(const DenseArgs& a, int first) {
    vec sums[C][N];
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c)
#pragma GCC unroll 16
        for (int j = 0; j < N; ++j) sums[c][j] = splat(a.bias[first + c]);
    const float* weight = a.weights + first;
    for (size_t t = 0; t < a.taps; ++t, weight += kDenseBlock) {
        const float* const in = a.base + a.offsets[t];
        vec x[N];
#pragma GCC unroll 16
        for (int j = 0; j < N; ++j) x[j] = load(in + j * LANES);
#pragma GCC unroll 16
        for (int c = 0; c < C; ++c) {
            const vec w = splat(weight[c]);
#pragma GCC unroll 16
            for (int j = 0; j < N; ++j) sums[c][j] += w * x[j];
        }
    }
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) {
        float* const out = a.out + (first + c) * a.out_stride;
#pragma GCC unroll 16
        for (int j = 0; j < N; ++j) store(out + j * LANES, a.relu ? rectified(sums[c][j]) : sums[c][j]);
    }
}

// A block of channels shares every input load; fewer channels at a time where the accumulators run out.
template <int N>
void dense(const DenseArgs& a) {
    constexpr int kSums = LANES == 16 ? 24 : 12;
    constexpr int kChannels = 8 * N <= kSums ? 8 : 4 * N <= kSums ? 4 : 2;
    int first = 0;
    for (; first + kChannels <= a.channels; first += kChannels) dense_part<kChannels, N>(a, first);
    for (; first < a.channels; ++first) dense_part<1, N>(a, first);
}

template <class Offset>
void sparse_dot(const SparseArgs& a) {
    const Offset* const offsets = static_cast<const Offset*>(a.offsets);
    for (int c = 0; c < a.channels; ++c) {
        float sums[4] = {a.bias[c], 0, 0, 0};
        size_t tap = a.begin[c];
        const size_t end = a.end[c];
        for (; tap + 4 <= end; tap += 4)
#pragma GCC unroll 4
            for (int u = 0; u < 4; ++u) sums[u] += a.weights[tap + u] * a.base[offsets[tap + u]];
        for (; tap < end; ++tap) sums[0] += a.weights[tap] * a.base[offsets[tap]];
        const float sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
        a.out[c * a.out_stride] = a.relu && 0 > sum ? 0 : sum;
    }
}

void dense_dot(const float* weights, const float* x, size_t taps, const float* bias, float* out, int channels) {
    for (int c = 0; c < channels; ++c, weights += taps) {
        vec sums[4] = {};
        size_t t = 0;
        for (; t + 4 * LANES <= taps; t += 4 * LANES)
#pragma GCC unroll 4
            for (int u = 0; u < 4; ++u) sums[u] += load(weights + t + u * LANES) * load(x + t + u * LANES);
        float sum = bias[c];
        for (; t < taps; ++t) sum += weights[t] * x[t];
        const vec all = (sums[0] + sums[1]) + (sums[2] + sums[3]);
        for (int i = 0; i < LANES; ++i) sum += all[i];
        out[c] = sum;
    }
}

void shift(const float* plane, size_t plane_stride, float* dst, size_t dst_stride, int channels, const Shift* copies,
           int count) {
    for (int c = 0; c < channels; ++c, plane += plane_stride, dst += dst_stride)
        for (int k = 0; k < count; ++k) {
            const Shift& copy = copies[k];
            const float* from = plane + copy.shift;
            float* to = dst + copy.dst;
            for (int i = 0; i < copy.vectors; ++i) {
                const uint32_t lanes = copy.masks[i];
                // Vectors wholly in the padding are not read: they lie outside the plane.
                const vec x = lanes ? masked(load(from + i * LANES), lanes) : vec{};
                if (i + 1 < copy.vectors || copy.tail == LANES) store(to + i * LANES, x);
                else store_part(to + i * LANES, x, copy.tail);
            }
        }
}

void relu(float* x, const float* from, size_t n) {
    for (size_t i = 0; i < n; i += LANES) store(x + i, rectified(load(from + i)));
}

void affine(float* x, const float* from, size_t n, float scale, float offset, bool rectify) {
    const vec s = splat(scale), o = splat(offset);
    for (size_t i = 0; i < n; i += LANES) {
        const vec y = load(from + i) * s + o;
        store(x + i, rectify ? rectified(y) : y);
    }
}

void add(float* x, const float* from, const float* other, size_t n, bool rectify) {
    for (size_t i = 0; i < n; i += LANES) {
        const vec y = load(from + i) + load(other + i);
        store(x + i, rectify ? rectified(y) : y);
    }
}

void max_rows(float* out, const float* row, size_t n) {
    for (size_t i = 0; i < n; i += LANES) store(out + i, larger(load(out + i), load(row + i)));
}

void sum_rows(float* out, const float* row, size_t n) {
    for (size_t i = 0; i < n; i += LANES) store(out + i, load(out + i) + load(row + i));
}

// Every second number of left and right, from number `first` on.
inline vec evens_or_odds(vec left, vec right, int first) {
#if defined(__clang__)
    vec out;
    for (int i = 0; i < LANES; ++i) out[i] = (i < LANES / 2 ? left : right)[2 * i % LANES + first];
    return out;
#else
    ivec picked;
    for (int i = 0; i < LANES; ++i) picked[i] = 2 * i + first;
    return __builtin_shuffle(left, right, picked);
#endif
}

// The greater of every two neighbours of left and right.
inline vec halved(vec left, vec right) { return larger(evens_or_odds(left, right, 0), evens_or_odds(left, right, 1)); }

void max_pool(const float* plane, int pitch, float* out, int out_pitch, int rows, int columns) {
    for (int y = 0; y < rows; ++y, plane += 2 * pitch, out += out_pitch)
        for (int x = 0; x < columns; x += LANES) {
            const float *const upper = plane + 2 * x, *const lower = upper + pitch;
            const vec left = larger(load(upper), load(lower));
            if (columns - x > LANES / 2) {
                const vec both = halved(left, larger(load(upper + LANES), load(lower + LANES)));
                if (columns - x >= LANES) store(out + x, both);
                else store_part(out + x, both, columns - x);
            } else {
                store_part(out + x, halved(left, left), columns - x);
            }
        }
}

void every_second(const float* from, size_t from_pitch, float* out, int rows, int columns, const uint32_t* masks) {
    for (int y = 0; y < rows; ++y, from += from_pitch, out += columns)
        for (int i = 0; i < columns; i += LANES) {
            vec x{};
            if (masks[i / LANES]) {  // else it may lie anywhere outside the plane
                const vec left = load(from + 2 * i);
                const vec right = columns - i > LANES / 2 ? load(from + 2 * i + LANES) : left;
                x = masked(evens_or_odds(left, right, 0), masks[i / LANES]);
            }
            if (columns - i >= LANES) store(out + i, x);
            else store_part(out + i, x, columns - i);
        }
}

void every(const float* from, float* to, int count, int step) {
    if (step == 1)
        for (int i = 0; i < count; ++i) to[i] = from[i];
    else
        for (int i = 0; i < count; ++i) to[i] = from[i * step];
}

template <class Offset>
void (*const sparse_table[])(const SparseArgs&) = {
    sparse<Offset, 1, half_vec>, sparse<Offset, 1>, sparse<Offset, 2>,  sparse<Offset, 3>,  sparse<Offset, 4>,
    sparse<Offset, 5>, sparse<Offset, 6>,  sparse<Offset, 7>,  sparse<Offset, 8>,
#if MOST_VECTORS > 8
    sparse<Offset, 9>, sparse<Offset, 10>, sparse<Offset, 11>, sparse<Offset, 12>,
#endif
#if MOST_VECTORS > 12
    sparse<Offset, 13>, sparse<Offset, 14>, sparse<Offset, 15>, sparse<Offset, 16>,
#endif
};
void (*const dense_table[])(const DenseArgs&) = {
    nullptr, dense<1>, dense<2>, dense<3>,
#if DENSE_VECTORS > 3
    dense<4>, dense<5>, dense<6>,
#endif
};

#include "group_kernels_impl.h"

}  // namespace

#define QUOTED(x) #x
#define NAME(x) QUOTED(x)
#define JOINED_(a, b) a##b
#define JOINED(a, b) JOINED_(a, b)
const Kernels* JOINED(KERNEL_SET, _kernels)() {
#if defined(__x86_64__) && LANES > 4
    __builtin_cpu_init();
#if LANES == 16
    if (!__builtin_cpu_supports("avx512f")) return nullptr;
#else
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return nullptr;
#endif
#endif
    static const Kernels table = {
        NAME(KERNEL_SET), LANES, MOST_VECTORS, DENSE_VECTORS,
        {sparse_table<uint16_t>, sparse_table<uint32_t>}, dense_table, {sparse_dot<uint16_t>, sparse_dot<uint32_t>},
        dense_dot, shift,
        relu, affine, add, max_pool, every, every_second, max_rows, sum_rows, group_kernels,
    };
    return &table;
}

}  // namespace hydraprune
