// Kernels for a group of images side by side: one pixel of one channel is a vector with a lane for each image.
#pragma once
#include <cstddef>
#include <cstdint>

#include "span.h"

namespace hydraprune {

// A rectangle of outputs of every channel: out[c][y][x] = bias[c] + sum over taps t of c of
// weights[t] * base[offsets[t] + y * in_row + x * in_column]. Strides are in floats, those of bits in bits' elements.
struct Tile {
    const int32_t* offsets;
    const float* weights;
    const uint32_t* begin;  // first tap of each channel, and one behind the last
    const float* bias;      // null: 0
    const float* base;
    size_t in_row, in_column;
    float* out;
    size_t out_stride, out_row, out_column;
    int channels;
    bool add;               // to what stands in out
    uint16_t* signs;        // rectify, and write which lanes are not; null: as they are
    const uint16_t* kept;   // 0 in lanes without a bit; null: in none
    size_t bit_stride, bit_row, bit_column;
    bool relu;
};

constexpr int kTileRows = 3, kTileColumns = 5;  // 1, 2, 4 and 1, 2, 4, 8, 16 pixels

struct GroupKernels {
    int most_pixels;  // of a tile
    void (*const* tiles)(const Tile&);  // [step: 1, 2, any][rows][columns]
    // x[i] = from[i] * scale + offset, n pixels of a row; signs as in a tile, where `relu`
    void (*affine)(float* x, const float* from, int n, float scale, float offset, bool relu, uint16_t* signs);
    void (*sum)(float* x, const float* one, const float* other, int n, bool relu, uint16_t* signs);
    void (*keep)(float* x, int n, const uint16_t* signs);
    void (*give)(float* x, const float* from, int n, float scale, bool add);
    // One row of a pooled map; `plane` is the first pixel of the channel. `best` (may be null) takes the place of the
    // greatest number in its window, of the first of several and of the last NaN, for each lane.
    void (*max_row)(const float* plane, size_t pitch, Span row, const Span* columns, int n, float* out, int32_t* best);
    void (*mean_row)(const float* plane, size_t pitch, Span row, const Span* columns, int n, float* out);
    // Their gradients, added.
    void (*give_max_row)(float* plane, size_t pitch, Span row, const Span* columns, int n, const float* from,
                         const int32_t* best);
    void (*give_mean_row)(float* plane, size_t pitch, Span row, const Span* columns, int n, const float* from);
};

}  // namespace hydraprune
