// What every instruction set implements: one table of functions over blocks of channels.
#pragma once
#include <cstddef>
#include <cstdint>

namespace hydraprune {

// One kept weight: where its input starts, in bytes from the base, and its value.
struct Tap {
    uint32_t offset;
    float weight;
};

// out[c * out_stride + i] = bias[c] + sum over taps t of c of weight_t * base[offset_t + i], 0 <= i < vectors * lanes.
struct SparseArgs {
    const Tap* taps;
    const uint32_t* begin;  // first tap of each channel
    const uint32_t* end;    // one behind the last
    const float* bias;
    const float* base;
    float* out;
    size_t out_stride;
    int channels;
    bool relu;
};

// The same sums where every channel has a weight at every offset; weights are [block][tap][channel of block].
struct DenseArgs {
    const float* weights;
    const uint32_t* offsets;
    size_t taps;
    const float* bias;
    const float* base;
    float* out;
    size_t out_stride;
    int channels;  // of this block, at most dense_block
    bool relu;
};

// A copy of a plane for the taps of one column (and one phase of a stride): dst[i] = plane[i + shift] or 0.
struct Shift {
    size_t dst;             // floats from the start of the channel's copies
    ptrdiff_t shift;        // floats
    int vectors;
    const uint32_t* masks;  // for each vector the lanes that lie inside the map
};

constexpr int kDenseBlock = 8;

struct Kernels {
    const char* name;
    int lanes;             // floats of a vector
    int most_vectors;      // of a sparse tile
    int most_dense;        // vectors of a dense tile
    void (*const* sparse)(const SparseArgs&);  // [vectors]
    void (*const* dense)(const DenseArgs&);    // [vectors]
    void (*sparse_dot)(const SparseArgs&);     // one number a channel
    void (*dense_dot)(const float* weights, const float* x, size_t taps, const float* bias, float* out, int channels);
    void (*shift)(const float* plane, size_t plane_stride, float* dst, size_t dst_stride, int channels,
                  const Shift* copies, int count);
    void (*relu)(float* x, const float* from, size_t n);
    void (*affine)(float* x, const float* from, size_t n, float scale, float shift);
    void (*add)(float* x, const float* from, const float* other, size_t n);
    // 2 x 2 windows, stride 2, to `rows` rows; rows of the input are one vector (then `rows` is even) or pairs of them
    void (*max_pool_rows)(const float* plane, float* out, int rows, int width);
    void (*every)(const float* from, float* to, int count, int step);  // to[i] = from[i * step]
    void (*max_rows)(float* out, const float* row, size_t n);  // out = max(out, row)
    void (*sum_rows)(float* out, const float* row, size_t n);  // out += row
};

const Kernels* avx512_kernels();  // null where the build or the machine lacks it
const Kernels* avx2_kernels();
const Kernels* portable_kernels();

}  // namespace hydraprune
