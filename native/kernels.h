// What every instruction set implements: one table of functions over blocks of channels.
#pragma once
#include <cstddef>
#include <cstdint>

#include "group_kernels.h"

namespace hydraprune {

// out[c * out_stride + i] = bias[c] + sum over taps t of c of weights[t] * base[offsets[t] + i], 0 <= i < vectors * lanes.
struct SparseArgs {
    const void* offsets;  // in floats, uint16_t or uint32_t
    const float* weights;
    const uint32_t* begin;  // first tap of each channel
    const uint32_t* end;    // one behind the last
    const float* bias;
    const float* base;
    float* out;
    size_t out_stride;
    int channels;
    bool add;  // to what stands in out, instead of the bias
    bool relu;
};

// The same sums where every channel has a weight at every offset; weights are [block][tap][channel of block].
struct DenseArgs {
    const float* weights;
    const uint32_t* offsets;  // in floats
    size_t taps;
    const float* bias;
    const float* base;
    float* out;
    size_t out_stride;
    int channels;  // of this block, at most dense_block
    bool relu;
};

// A copy of a plane: dst[i] = plane[i + shift] where the mask has the lane, else 0.
struct Shift {
    size_t dst;             // floats from the start of the channel
    ptrdiff_t shift;        // floats
    int vectors, tail;      // tail: floats of the last vector
    const uint32_t* masks;  // for each vector the lanes that lie inside the map
};

constexpr int kDenseBlock = 8;

struct Kernels {
    const char* name;
    int lanes;             // floats of a vector
    int most_vectors;      // of a sparse tile
    int most_dense;        // vectors of a dense tile
    void (*const* sparse[2])(const SparseArgs&);  // [offsets of 32 bits][vectors], half a vector at 0
    void (*const* dense)(const DenseArgs&);    // [vectors]
    void (*sparse_dot[2])(const SparseArgs&);  // one number a channel
    void (*dense_dot)(const float* weights, const float* x, size_t taps, const float* bias, float* out, int channels);
    void (*shift)(const float* plane, size_t plane_stride, float* dst, size_t dst_stride, int channels,
                  const Shift* copies, int count);
    void (*relu)(float* x, const float* from, size_t n);
    void (*affine)(float* x, const float* from, size_t n, float scale, float shift, bool relu);
    void (*add)(float* x, const float* from, const float* other, size_t n, bool relu);
    // 2 x 2 windows, stride 2, of rows `pitch` floats apart; NaN where one is, as in max_rows
    void (*max_pool)(const float* plane, int pitch, float* out, int out_pitch, int rows, int columns);
    void (*every)(const float* from, float* to, int count, int step);  // to[i] = from[i * step]
    // Every second number of every row: out[row * columns + i] = from[row * from_pitch + 2 * i] where the mask has i, or 0
    void (*every_second)(const float* from, size_t from_pitch, float* out, int rows, int columns, const uint32_t* masks);
    void (*max_rows)(float* out, const float* row, size_t n);  // out = max(out, row)
    void (*sum_rows)(float* out, const float* row, size_t n);  // out += row
    const GroupKernels group;
};

const Kernels* avx512_kernels();  // null where the build or the machine lacks it
const Kernels* avx2_kernels();
const Kernels* portable_kernels();

}  // namespace hydraprune
