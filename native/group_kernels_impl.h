// Included by kernels_impl.h, whose vectors these use.

// A bit for each lane that ReLU lets through: all but those of at most 0, so NaN too.
inline uint16_t positive(vec x) {
#if LANES == 16 && defined(__AVX512F__)
    return static_cast<uint16_t>(_mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_NLE_UQ));
#elif LANES == 8 && defined(__AVX__)
    return static_cast<uint16_t>(_mm256_movemask_ps(_mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_NLE_UQ)));
#else
    const ivec below = x <= vec{};
    uint16_t bits = 0;
    for (int i = 0; i < LANES; ++i) bits |= static_cast<uint16_t>((below[i] ? 0 : 1) << i);
    return bits;
#endif
}

template <int R, int C, int S>
void tile(const Tile& a) {
    constexpr int kFlight = R * C >= 6 ? 1 : R * C >= 3 ? 2 : R * C == 2 ? 4 : 8;
    const size_t column = S ? S * LANES : a.in_column;
    for (int c = 0; c < a.channels; ++c) {
        vec sums[kFlight][R][C];
        const vec start = splat(a.bias ? a.bias[c] : 0.f);
#pragma GCC unroll 16
        for (int u = 0; u < kFlight; ++u)
#pragma GCC unroll 16
            for (int y = 0; y < R; ++y)
#pragma GCC unroll 16
                for (int x = 0; x < C; ++x) sums[u][y][x] = u ? vec{} : start;
        size_t tap = a.begin[c];
        const size_t end = a.begin[c + 1];
        for (; tap + kFlight <= end; tap += kFlight)
#pragma GCC unroll 16
            for (int u = 0; u < kFlight; ++u) {
                const float* const in = a.base + a.offsets[tap + u];
                const vec weight = splat(a.weights[tap + u]);
#pragma GCC unroll 16
                for (int y = 0; y < R; ++y)
#pragma GCC unroll 16
                    for (int x = 0; x < C; ++x) sums[u][y][x] += weight * load(in + y * a.in_row + x * column);
            }
        if (kFlight > 1)
            for (; tap < end; ++tap) {
                const float* const in = a.base + a.offsets[tap];
                const vec weight = splat(a.weights[tap]);
#pragma GCC unroll 16
                for (int y = 0; y < R; ++y)
#pragma GCC unroll 16
                    for (int x = 0; x < C; ++x) sums[0][y][x] += weight * load(in + y * a.in_row + x * column);
            }
        float* const out = a.out + c * a.out_stride;
#pragma GCC unroll 16
        for (int y = 0; y < R; ++y)
#pragma GCC unroll 16
            for (int x = 0; x < C; ++x) {
#pragma GCC unroll 16
                for (int half = kFlight / 2; half; half /= 2)
#pragma GCC unroll 16
                    for (int u = 0; u < half; ++u) sums[u][y][x] += sums[u + half][y][x];
                float* const to = out + y * a.out_row + x * a.out_column;
                const size_t bit = c * a.bit_stride + y * a.bit_row + x * a.bit_column;
                vec value = sums[0][y][x];
                if (a.add) value += load(to);
                if (a.signs) a.signs[bit] = positive(value);
                if (a.relu) value = rectified(value);
                if (a.kept) value = masked(value, a.kept[bit]);
                store(to, value);
            }
    }
}

inline vec finished(vec value, bool relu, uint16_t* sign) {
    if (sign) *sign = positive(value);
    return relu ? rectified(value) : value;
}

void group_affine(float* x, const float* from, int n, float scale, float offset, bool relu, uint16_t* signs) {
    const vec s = splat(scale), o = splat(offset);
    for (int i = 0; i < n; ++i)
        store(x + i * LANES, finished(load(from + i * LANES) * s + o, relu, signs ? signs + i : nullptr));
}

void group_sum(float* x, const float* one, const float* other, int n, bool relu, uint16_t* signs) {
    for (int i = 0; i < n; ++i)
        store(x + i * LANES,
              finished(load(one + i * LANES) + load(other + i * LANES), relu, signs ? signs + i : nullptr));
}

void group_keep(float* x, int n, const uint16_t* signs) {
    for (int i = 0; i < n; ++i) store(x + i * LANES, masked(load(x + i * LANES), signs[i]));
}

void group_give(float* x, const float* from, int n, float scale, bool add) {
    const vec s = splat(scale);
    for (int i = 0; i < n; ++i) {
        const vec value = load(from + i * LANES) * s;
        store(x + i * LANES, add ? load(x + i * LANES) + value : value);
    }
}

inline ivec chosen(ivec which, ivec one, ivec other) { return (which & one) | (~which & other); }

void group_max_row(const float* plane, size_t pitch, Span row, const Span* columns, int n, float* out, int32_t* best) {
    for (int i = 0; i < n; ++i) {
        vec most = load(plane + row.begin * pitch + columns[i].begin * LANES);
        ivec place{};
        int32_t at = 0;
        for (int y = row.begin; y < row.end; ++y)
            for (int x = columns[i].begin; x < columns[i].end; ++x, ++at) {
                const vec value = load(plane + y * pitch + x * LANES);
                const ivec better = (value > most) | (value != value);
                most = reinterpret_cast<vec>(chosen(better, reinterpret_cast<ivec>(value), reinterpret_cast<ivec>(most)));
                place = chosen(better, at - ivec{}, place);
            }
        store(out + i * LANES, most);
        if (best) store(reinterpret_cast<float*>(best + i * LANES), reinterpret_cast<vec>(place));
    }
}

void group_mean_row(const float* plane, size_t pitch, Span row, const Span* columns, int n, float* out) {
    for (int i = 0; i < n; ++i) {
        vec sum{};
        for (int y = row.begin; y < row.end; ++y)
            for (int x = columns[i].begin; x < columns[i].end; ++x) sum += load(plane + y * pitch + x * LANES);
        store(out + i * LANES, sum * splat(row.factor * columns[i].factor));
    }
}

void group_give_max_row(float* plane, size_t pitch, Span row, const Span* columns, int n, const float* from,
                        const int32_t* best) {
    for (int i = 0; i < n; ++i) {
        const vec value = load(from + i * LANES);
        const ivec place = reinterpret_cast<ivec>(load(reinterpret_cast<const float*>(best + i * LANES)));
        int32_t at = 0;
        for (int y = row.begin; y < row.end; ++y)
            for (int x = columns[i].begin; x < columns[i].end; ++x, ++at) {
                float* const to = plane + y * pitch + x * LANES;
                const ivec here = place == at - ivec{};
                store(to, load(to) + reinterpret_cast<vec>(here & reinterpret_cast<ivec>(value)));
            }
    }
}

void group_give_mean_row(float* plane, size_t pitch, Span row, const Span* columns, int n, const float* from) {
    for (int i = 0; i < n; ++i) {
        const vec value = load(from + i * LANES) * splat(row.factor * columns[i].factor);
        for (int y = row.begin; y < row.end; ++y)
            for (int x = columns[i].begin; x < columns[i].end; ++x) {
                float* const to = plane + y * pitch + x * LANES;
                store(to, load(to) + value);
            }
    }
}

#if LANES == 16
#define WIDE(...) __VA_ARGS__
#else
#define WIDE(...) nullptr
#endif
#define TILES_OF_STEP(S)                                                                            \
    tile<1, 1, S>, tile<1, 2, S>, tile<1, 4, S>, tile<1, 8, S>, WIDE(tile<1, 16, S>),               \
    tile<2, 1, S>, tile<2, 2, S>, tile<2, 4, S>, WIDE(tile<2, 8, S>), nullptr,                      \
    tile<4, 1, S>, tile<4, 2, S>, WIDE(tile<4, 4, S>), nullptr, nullptr
void (*const tile_table[])(const Tile&) = {TILES_OF_STEP(1), TILES_OF_STEP(2), TILES_OF_STEP(0)};
#undef TILES_OF_STEP
#undef WIDE

const GroupKernels group_kernels = {
    LANES == 16 ? 16 : 8, tile_table, group_affine, group_sum, group_keep, group_give,
    group_max_row, group_mean_row, group_give_max_row, group_give_mean_row,
};
