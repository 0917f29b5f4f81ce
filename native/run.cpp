// Running a planned program: block of channels by block of channels through each pipeline.
#include <algorithm>
#include <cstring>

#include "program.h"

namespace hydraprune {
namespace {

int divide_up(int a, int b) { return (a + b - 1) / b; }

}  // namespace

void Program::run(const std::vector<Input>& inputs, float* arena, float* const* scratch, Team& team) const {
    for (const auto& p : pipelines_)
        team.run(divide_up(p.channels, p.block), [&](int piece, int thread) {
            const int c0 = piece * p.block;
            run_block(p, c0, std::min(p.block, p.channels - c0), inputs, arena, scratch[thread]);
        });
}

void Program::run_block(const Pipeline& p, int c0, int count, const std::vector<Input>& inputs, float* arena,
                        float* scratch) const {
    run_root(p, c0, count, inputs, arena, scratch + p.slot[p.root_slot]);
    for (const Op& op : p.ops) {
        const Node& node = network_[op.node];
        const Plane& to = slot_[op.node];
        const size_t floats = count * to.stride;
        float* const from = scratch + p.slot[op.from];
        float* const out = op.to < 0 ? nullptr : scratch + p.slot[op.to];
        switch (op.type) {
            case Op::relu:
                kernels_.relu(out, from, floats);
                break;
            case Op::affine:
                if (to.stride == 1)
                    for (int c = 0; c < count; ++c) {
                        const float y = from[c] * node.scale[c0 + c] + node.offset[c0 + c];
                        out[c] = op.rectify && 0 > y ? 0 : y;
                    }
                else
                    for (int c = 0; c < count; ++c)
                        kernels_.affine(out + c * to.stride, from + c * to.stride, to.stride, node.scale[c0 + c],
                                        node.offset[c0 + c], op.rectify);
                break;
            case Op::add:
                run_add(p, op, c0, count, arena, scratch);
                break;
            case Op::pool:
                run_pool(op, slot_[node.in[0]], to, from, out, count);
                break;
            case Op::plain:
                write_plain(op.node, from, arena + buffers_[op.buffer].at, c0, count);
                break;
            case Op::copies: {
                const Layout& layout = *layouts_[op.layout];
                write_copies(layout, to, from, arena + buffers_[op.buffer].at + c0 * layout.stride, count);
                break;
            }
        }
    }
}

void Program::run_add(const Pipeline& p, const Op& op, int c0, int count, const float* arena, float* scratch) const {
    const Plane& to = slot_[op.node];
    const bool here = op.other >= 0;
    const Plane& with = here ? slot_[op.summand] : stored_[op.summand];
    const float* const from = scratch + p.slot[op.from];
    const float* const summand =
        here ? scratch + p.slot[op.other] : arena + buffers_[op.other_buffer].at + with.lead + c0 * with.stride;
    float* const out = scratch + p.slot[op.to];
    if (with.stride == to.stride && with.pitch == to.pitch) {
        kernels_.add(out, from, summand, count * to.stride, op.rectify);
        return;
    }
    const bool whole = with.pitch == to.pitch && to.stride % kernels_.lanes == 0;  // else vectors reach the next channel
    for (int c = 0; c < count; ++c) {
        const size_t at = c * to.stride, other = c * with.stride;
        if (whole) {
            kernels_.add(out + at, from + at, summand + other, static_cast<size_t>(to.h) * to.pitch, op.rectify);
            continue;
        }
        for (int y = 0; y < to.h; ++y) {
            const size_t row = at + static_cast<size_t>(y) * to.pitch;
            const float* const other_row = summand + other + static_cast<size_t>(y) * with.pitch;
            for (int x = 0; x < to.w; ++x) {
                const float sum = from[row + x] + other_row[x];
                out[row + x] = op.rectify && 0 > sum ? 0 : sum;
            }
        }
    }
}

void Program::run_root(const Pipeline& p, int c0, int count, const std::vector<Input>& inputs, const float* arena,
                       float* out) const {
    if (p.import < 0) return run_conv(p, c0, count, arena, out);
    const Plane& to = slot_[p.root];
    const Input& input = inputs[p.import];
    const Plane& from = input.plane;
    for (int c = 0; c < count; ++c)
        for (int y = 0; y < to.h; ++y) {
            const float* row = input.data + (c0 + c) * from.stride + static_cast<size_t>(y) * from.pitch;
            float* pixels = out + c * to.stride + static_cast<size_t>(y) * to.pitch * lanes_;
            if (lanes_ == 1) {
                std::memcpy(pixels, row, to.w * sizeof(float));
                continue;
            }
            for (int x = 0; x < to.w; ++x, pixels += lanes_) {
                for (int i = 0; i < input.images; ++i) pixels[i] = row[i * input.image_stride + x];
                for (int i = input.images; i < lanes_; ++i) pixels[i] = 0;
            }
        }
}

void Program::run_conv(const Pipeline& p, int c0, int count, const float* arena, float* out) const {
    const Conv& conv = p.conv;
    const Plane& to = slot_[p.root];
    const int source = network_[p.root].in[0];
    const Plane& plain = stored_[source];
    const float* in = arena + buffers_[conv.buffer].at + (conv.layout < 0 ? plain.lead : 0);
    const bool wide = conv.narrow.empty();
    const void* const offsets = wide ? static_cast<const void*>(conv.wide.data()) : conv.narrow.data();
    if (conv.method == Method::sparse_each) {
        const int first = c0 * conv.pixels, number = count * conv.pixels;
        const SparseArgs args{offsets, conv.weights.data(), conv.begin.data() + first, conv.end.data() + first,
                              conv.bias.data() + first, in, out, static_cast<size_t>(lanes_), number, false, conv.relu};
        if (lanes_ == 1) kernels_.sparse_dot[wide](args);
        else kernels_.sparse[wide][conv.vectors](args);
        return;
    }
    if (conv.method == Method::dense_each && lanes_ == 1) {
        const size_t whole = network_[source].shape.c * plain.stride;
        kernels_.dense_dot(conv.weights.data() + c0 * whole, in, whole, conv.bias.data() + c0, out, count);
        if (conv.relu) kernels_.relu(out, out, count);
        return;
    }
    const bool dense = conv.method != Method::sparse;
    const size_t channels = network_[p.root].shape.c;
    const int rows = conv.method == Method::dense_each ? 1 : static_cast<int>(conv.row_class.size());
    const int tile = conv.method == Method::dense_each ? conv.vectors : conv.tile;
    const Layout* layout = conv.layout < 0 ? nullptr : layouts_[conv.layout].get();
    if (choice_[p.root].direct) {
        const Window& k = network_[p.root].window;
        in -= static_cast<size_t>(k.ph) * plain.pitch + k.pw;
    }
    for (int y = 0; y < rows; ++y) {
        const float* row = in;
        if (lanes_ > 1 && y) row += static_cast<size_t>(y) * (layout ? layout->pitch : to.w) * lanes_;
        float* const to_row = out + static_cast<size_t>(y) * to.w * lanes_;
        const int kind = conv.row_class[y];
        for (int v = 0; v < conv.vectors; v += tile) {
            const int vectors = std::min(tile, conv.vectors - v);
            const size_t at = static_cast<size_t>(v) * kernels_.lanes;
            if (!dense) {
                for (int d = 0; d < conv.depth; ++d) {
                    const size_t first = (kind + d) * channels + c0;
                    kernels_.sparse[wide][conv.half ? 0 : vectors](
                        {offsets, conv.weights.data(), conv.begin.data() + first, conv.end.data() + first,
                         conv.bias.data() + c0, row + at + conv.start[d], to_row + at, to.stride, count, d > 0,
                         conv.relu && d + 1 == conv.depth});
                }
                continue;
            }
            const size_t begin = conv.row_taps[0][kind], taps = conv.row_taps[1][kind] - begin;
            for (int c = 0; c < count; c += kDenseBlock)
                kernels_.dense[vectors](
                    {conv.weights.data() + (static_cast<size_t>(c0 + c) / kDenseBlock * conv.offsets.size() + begin) * kDenseBlock,
                     conv.offsets.data() + begin, taps, conv.bias.data() + c0 + c, row + at,
                     to_row + at + c * to.stride, to.stride, std::min(kDenseBlock, count - c), conv.relu});
        }
    }
}

void Program::run_pool(const Op& op, const Plane& from, const Plane& to, const float* in, float* out,
                       int count) const {
    const Node& node = network_[op.node];
    const auto halves = [](const std::vector<Span>& spans) {
        for (size_t i = 0; i < spans.size(); ++i)
            if (spans[i].begin != static_cast<int>(2 * i) || spans[i].end != static_cast<int>(2 * i + 2)) return false;
        return true;
    };
    const bool fast = node.maximum && lanes_ == 1 && halves(node.rows) && halves(node.columns);
    for (int c = 0; c < count; ++c, in += from.stride, out += to.stride) {
        if (fast) {
            kernels_.max_pool(in, from.pitch, out, to.pitch, to.h, to.w);
            continue;
        }
        for (int y = 0; y < to.h; ++y) {
            const Span& rows = node.rows[y];
            float* pixel = out + static_cast<size_t>(y) * to.pitch * lanes_;
            for (int x = 0; x < to.w; ++x, pixel += lanes_) {
                const Span& columns = node.columns[x];
                const float factor = rows.factor * columns.factor;
                if (lanes_ > 1) {
                    bool first = true;
                    for (int iy = rows.begin; iy < rows.end; ++iy)
                        for (int ix = columns.begin; ix < columns.end; ++ix, first = false) {
                            const float* at = in + (static_cast<size_t>(iy) * from.pitch + ix) * lanes_;
                            if (first) std::memcpy(pixel, at, lanes_ * sizeof(float));
                            else (node.maximum ? kernels_.max_rows : kernels_.sum_rows)(pixel, at, lanes_);
                        }
                    if (!node.maximum) kernels_.affine(pixel, pixel, lanes_, factor, 0, false);
                    continue;
                }
                const float* corner = in + static_cast<size_t>(rows.begin) * from.pitch;
                float value = node.maximum ? corner[columns.begin] : 0;
                for (int iy = rows.begin; iy < rows.end; ++iy, corner += from.pitch)
                    for (int ix = columns.begin; ix < columns.end; ++ix) {
                        const float here = corner[ix];
                        if (node.maximum) value = value != value || value > here ? value : here;  // NaN where one is
                        else value += here;
                    }
                *pixel = node.maximum ? value : value * factor;
            }
        }
    }
}

void Program::write_plain(int n, const float* in, float* buffer, int c0, int count) const {
    const Plane &from = slot_[n], &to = stored_[n];
    if (c0 == 0) std::fill(buffer, buffer + to.lead, 0.f);
    float* out = buffer + to.lead + c0 * to.stride;
    if (!stored_masks_[n].empty()) {
        const int vectors = static_cast<int>(stored_masks_[n].size());
        const Shift whole{0, 0, vectors, static_cast<int>(to.stride) - (vectors - 1) * kernels_.lanes,
                          stored_masks_[n].data()};
        kernels_.shift(in, from.stride, out, to.stride, count, &whole, 1);
    } else if (from.stride == to.stride && from.pitch == to.pitch && to.lead == 0) {
        std::memcpy(out, in, count * to.stride * sizeof(float));
    } else {
        for (int c = 0; c < count; ++c, in += from.stride, out += to.stride) {
            for (int y = 0; y < to.h; ++y) {
                float* const row = out + static_cast<size_t>(y) * to.pitch;
                kernels_.every(in + static_cast<size_t>(y) * from.pitch, row, to.w, 1);
                std::fill(row + to.w, row + to.pitch, 0.f);
            }
            std::fill(out + static_cast<size_t>(to.h) * to.pitch, out + to.stride, 0.f);
        }
    }
}

void Program::write_copies(const Layout& layout, const Plane& from, const float* in, float* out, int count) const {
    if (!layout.moves.empty()) {
        kernels_.shift(in, from.stride, out, layout.stride, count, layout.moves.data(),
                       static_cast<int>(layout.moves.size()));
        return;
    }
    const Window& k = layout.window;
    for (int c = 0; c < count; ++c, in += from.stride, out += layout.stride)
        for (const auto& copy : layout.copies) {
            // Columns [left, right) of the copy lie inside the map.
            const int columns = layout.pitch, start = copy.column - k.pw;
            const int left = std::min(columns, start < 0 ? divide_up(-start, k.sw) : 0);
            const int right = from.w > start ? std::clamp(divide_up(from.w - start, k.sw), left, columns) : left;
            const size_t width = static_cast<size_t>(columns) * lanes_;
            const size_t first = static_cast<size_t>(left) * lanes_, last = static_cast<size_t>(right) * lanes_;
            float* to = out + copy.dst;
            if (lanes_ == 1 && k.sw == 2) {
                // Rows [top, bottom) lie inside the map.
                const int above = k.ph - copy.phase_y;
                const int top = std::min(copy.rows, above > 0 ? divide_up(above, k.sh) : 0);
                const int bottom = std::clamp(divide_up(from.h + above, k.sh), top, copy.rows);
                std::fill(to, to + top * width, 0.f);
                kernels_.every_second(in + (static_cast<ptrdiff_t>(top) * k.sh - above) * from.pitch + start,
                                      static_cast<size_t>(from.pitch) * k.sh, to + top * width, bottom - top, columns,
                                      copy.masks.data());
                std::fill(to + bottom * width, to + copy.rows * width, 0.f);
                continue;
            }
            for (int row = 0; row < copy.rows; ++row, to += width) {
                const int y = row * k.sh + copy.phase_y - k.ph;
                if (y < 0 || y >= from.h || left == right) {
                    // Images side by side: no tap reads a row outside the map, see `row_classes`.
                    if (lanes_ == 1 || left == right) std::fill(to, to + width, 0.f);
                    continue;
                }
                const float* source = in + (static_cast<ptrdiff_t>(y) * from.pitch + left * k.sw + start) * lanes_;
                std::fill(to, to + first, 0.f);
                if (lanes_ == 1)
                    kernels_.every(source, to + left, right - left, k.sw);
                else if (k.sw == 1)
                    std::memcpy(to + first, source, (last - first) * sizeof(float));
                else
                    for (int x = left; x < right; ++x, source += static_cast<size_t>(k.sw) * lanes_)
                        std::memcpy(to + static_cast<size_t>(x) * lanes_, source, lanes_ * sizeof(float));
                std::fill(to + last, to + width, 0.f);
            }
        }
}

}  // namespace hydraprune
