// Planning: which pipeline a node belongs to, how its readers want it, where everything lies.
#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "program.h"

namespace hydraprune {
namespace {

size_t round_up(size_t n, size_t multiple) { return (n + multiple - 1) / multiple * multiple; }
int divide_up(int a, int b) { return (a + b - 1) / b; }

// Pixels from one row to the next. Rows that are vectors, or evenly divide one, need fewer copies; rows filled up with
// pixels that nobody wants cost more vectors.
int pitch_of(int h, int w, int vector) {
    int narrow = 1;
    while (narrow < w) narrow *= 2;
    int best = w;
    double least = 1e300;
    for (int pitch : {w, static_cast<int>(round_up(w, vector)), std::min(narrow, vector) < w ? w : narrow}) {
        const int phases = pitch % vector == 0 ? 1 : pitch % vector * 2 == vector ? 2 : 3;
        const double cost = divide_up(h * pitch, vector) * (1 + .05 * (phases - 1));
        if (cost < least) least = cost, best = pitch;
    }
    return best;
}

uint32_t in_bytes(size_t floats) {
    if (floats > UINT32_MAX / sizeof(float)) throw std::length_error("a layer is too large");
    return static_cast<uint32_t>(floats * sizeof(float));
}

// Taps of the rows of the kernel that meet the map, for one row of the output.
std::pair<int, int> met(const Window& k, int out_y, int in_h) {
    int first = 0, last = k.kh;
    while (first < last && out_y * k.sh + first * k.dh - k.ph < 0) ++first;
    while (last > first && out_y * k.sh + (last - 1) * k.dh - k.ph >= in_h) --last;
    return {first, last};
}

// Where in the input plane tap (ky, kx) of an output pixel lies, or -1 in the padding.
ptrdiff_t source(const Window& k, const Plane& in, int oy, int ox, int ky, int kx) {
    const int y = oy * k.sh + ky * k.dh - k.ph, x = ox * k.sw + kx * k.dw - k.pw;
    if (y < 0 || y >= in.h || x < 0 || x >= in.w) return -1;
    return (static_cast<ptrdiff_t>(y) * in.pitch + x) * in.lanes;
}

struct Place {
    int channel, ky, kx;
};

// The input that a position in a kernel's row refers to; for a linear layer that of a flattened map.
Place place(const Node& node, const Shape& in, int output, uint32_t position) {
    if (node.kind == Kind::linear) {
        const int x = position % in.w, rest = position / in.w;
        return {rest / in.h, rest % in.h, x};
    }
    const int kx = position % node.window.kw, rest = position / node.window.kw;
    const int fan = in.c / node.groups, group = output / (node.shape.c / node.groups);
    return {group * fan + rest / node.window.kh, rest % node.window.kh, kx};
}

Window window_of(const Node& node, const Shape& in) {
    return node.kind == Kind::linear ? Window{in.h, in.w, 1, 1, 0, 0, 1, 1} : node.window;
}

size_t fan_in(const Node& node, const Shape& in) {
    const Window k = window_of(node, in);
    return static_cast<size_t>(in.c / node.groups) * k.kh * k.kw;
}

bool pointwise(const Window& k) { return k == Window{1, 1, 1, 1, 0, 0, 1, 1}; }

}  // namespace

Plane plane_of(const Shape& s, int vector, int lanes) {
    if (lanes > 1) return {s.h, s.w, s.w, lanes, static_cast<size_t>(s.h) * s.w * lanes};
    if (s.h == 1 && s.w == 1) return {1, 1, 1, 1, 1};
    const int pitch = pitch_of(s.h, s.w, vector);
    return {s.h, s.w, pitch, 1, round_up(static_cast<size_t>(s.h) * pitch, vector)};
}

// The constants are measured (benchmarks/runtime.py --calibrate): a sparse multiply-add reads its vector and, once a
// tile, a weight and an offset; a dense one shares its reads among the channels of a block.
Choice choose(const Node& node, const Shape& in, int lanes, const Kernels& kernels) {
    const Window k = window_of(node, in);
    const double kept = static_cast<double>(node.weight.size());
    const double all = static_cast<double>(node.shape.c) * fan_in(node, in);
    const int pixels = node.shape.h * node.shape.w;
    const bool can_be_dense = node.groups == 1;
    constexpr double kTap = 1.2, kDense = .55;
    if (lanes == 1 && pixels == 1) {
        const double dense = static_cast<double>(node.shape.c) * in.size() / kernels.lanes * 1.2;
        return can_be_dense && dense < 1.2 * kept ? Choice{Method::dense_each, dense}
                                                  : Choice{Method::sparse_each, 1.2 * kept};
    }
    const int run = lanes / kernels.lanes;
    if (lanes > 1 && pixels == 1 && k.ph == 0 && k.pw == 0) {
        const double dense = all * run * kDense;
        return can_be_dense && dense < kept * (run + kTap) ? Choice{Method::dense_each, dense}
                                                           : Choice{Method::sparse_each, kept * (run + kTap)};
    }
    double met_taps = pixels, met_rows = node.shape.h;
    if (lanes > 1) {
        int y_taps = 0, x_taps = 0;
        for (int y = 0; y < node.shape.h; ++y) {
            const auto range = met(k, y, in.h);
            y_taps += range.second - range.first;
        }
        for (int x = 0; x < node.shape.w; ++x) {
            const auto range = met({k.kw, k.kh, k.sw, k.sh, k.pw, k.ph, k.dw, k.dh}, x, in.w);
            x_taps += range.second - range.first;
        }
        met_rows = static_cast<double>(y_taps) / k.kh;
        met_taps = met_rows * x_taps / k.kw;
    }
    const Plane plane = plane_of(node.shape, kernels.lanes, lanes);
    const double vectors = lanes == 1 ? divide_up(plane.h * plane.pitch, kernels.lanes) : met_rows * plane.w * run;
    const double tiles =
        lanes == 1 ? divide_up(static_cast<int>(vectors), kernels.most_vectors)
                   : met_rows * divide_up(plane.w * run, kernels.most_vectors);
    Choice best{Method::sparse, kept * (vectors + kTap * tiles)};
    if (lanes > 1 && pixels <= 4) {
        const double each = kept * met_taps * (run + kTap);
        if (each < best.cost) best = {Method::sparse_each, each};
    }
    const double dense = all * vectors * kDense;
    if (can_be_dense && dense < best.cost) best = {Method::dense, dense};
    return best;
}

Program::Program(const Network& network, int first, int last, int lanes, const Kernels& kernels, int threads)
    : network_(network),
      first_(first),
      last_(last),
      lanes_(lanes),
      threads_(threads),
      kernels_(kernels),
      pipeline_of_(network.size(), -1),
      plain_buffer_(network.size(), -1),
      layouts_of_(network.size()) {
    plan_pipelines();
    plan_arena();
}

int Program::plain_buffer(int node) {
    if (plain_buffer_[node] < 0) {
        const size_t floats = network_[node].shape.c * plane(node).stride;
        plain_buffer_[node] = static_cast<int>(buffers_.size());
        buffers_.push_back({round_up(floats, 16) + 2 * kernels_.lanes, pipeline_of_[node], pipeline_of_[node]});
    }
    return plain_buffer_[node];
}

void Program::plan_pipelines() {
    const int size = static_cast<int>(network_.size());
    std::vector<std::vector<int>> users(size);
    for (int n = 0; n < size; ++n)
        for (int in : network_[n].in)
            if (in >= 0) users[in].push_back(n);
    // What others have computed comes in first, then whatever starts a pipeline here, in order.
    std::vector<int> roots;
    for (int n = 0; n < first_; ++n)
        if (std::any_of(users[n].begin(), users[n].end(), [&](int u) { return u >= first_ && u < last_; })) {
            imports_.push_back(n);
            roots.push_back(n);
        }
    for (int n = first_; n < last_; ++n)
        if (network_[n].root()) {
            if (network_[n].kind == Kind::input) imports_.push_back(n);
            roots.push_back(n);
        }
    for (int n : roots) {
        Pipeline p;
        p.root = n;
        const auto found = std::find(imports_.begin(), imports_.end(), n);
        if (found != imports_.end()) p.import = static_cast<int>(found - imports_.begin());
        p.channels = network_[n].shape.c;
        p.channel_floats = plane(n).stride;
        pipeline_of_[n] = static_cast<int>(pipelines_.size());
        pipelines_.push_back(std::move(p));
    }
    for (int n = first_; n < last_; ++n) {
        const Node& node = network_[n];
        if (node.root()) continue;
        pipeline_of_[n] = pipeline_of_[node.in[0]];
        if (node.kind == Kind::add) pipeline_of_[n] = std::max(pipeline_of_[n], pipeline_of_[node.in[1]]);
    }
    for (auto& p : pipelines_)
        if (p.import < 0) plan_conv(p);
    for (int n = 0; n < last_; ++n) {  // sums with what another pipeline made, and what is read behind the range
        if (pipeline_of_[n] < 0) continue;
        bool wanted = n + 1 == size;
        for (int u : users[n]) wanted |= u >= last_;
        if (n >= first_ && wanted) buffers_[plain_buffer(n)].dies = static_cast<int>(pipelines_.size());
        for (int u : users[n])
            if (u >= first_ && u < last_ && network_[u].kind == Kind::add && pipeline_of_[u] != pipeline_of_[n]) {
                Buffer& buffer = buffers_[plain_buffer(n)];
                buffer.dies = std::max(buffer.dies, pipeline_of_[u]);
            }
    }
    for (auto& p : pipelines_) {
        // A ReLU that alone reads the root is part of it.
        const auto& readers = users[p.root];
        if (p.import < 0 && readers.size() == 1 && readers[0] < last_ && network_[readers[0]].kind == Kind::relu)
            p.conv.relu = true;
        plan_slots(p);
    }
}

void Program::plan_slots(Pipeline& p) {
    const int number = static_cast<int>(&p - pipelines_.data());
    const bool dense = p.conv.method == Method::dense || (p.conv.method == Method::dense_each && lanes_ > 1);
    const size_t cached = p.channel_floats < static_cast<size_t>(lanes_) * 2 ? 1024 : 4096;
    int block = static_cast<int>(std::clamp<size_t>(cached / p.channel_floats, 1, 256));
    if (threads_ > 1) block = std::min(block, divide_up(p.channels, 2 * threads_));
    if (dense && p.import < 0) block = static_cast<int>(round_up(block, kDenseBlock));
    p.block = std::min(block, p.channels);

    std::vector<int> slot(network_.size(), -1);
    auto new_slot = [&](int node) {
        const size_t floats = round_up(p.block * plane(node).stride, kernels_.lanes) + 2 * kernels_.lanes;
        const size_t at = p.slot_end;
        p.slot.push_back(at + kernels_.lanes);
        p.slot_end = at + round_up(floats, 16);
        return static_cast<int>(p.slot.size()) - 1;
    };
    auto written_down = [&](int node) {
        if (plain_buffer_[node] >= 0) p.ops.push_back({Op::plain, node, slot[node], -1, -1, -1, plain_buffer_[node], -1});
        for (int layout : layouts_of_[node])
            p.ops.push_back({Op::copies, node, slot[node], -1, -1, -1, layout_buffer_[layout], layout});
    };
    auto readers_here = [&](int node) {
        int count = 0;
        for (int n = first_; n < last_; ++n)
            if (!network_[n].root() && pipeline_of_[n] == number)
                for (int in : network_[n].in) count += in == node;
        return count;
    };
    slot[p.root] = p.root_slot = new_slot(p.root);
    written_down(p.root);
    for (int n = first_; n < last_; ++n) {
        const Node& node = network_[n];
        if (node.root() || pipeline_of_[n] != number) continue;
        int in = node.in[0], other = node.in[1];
        if (node.kind == Kind::add && pipeline_of_[in] != number) std::swap(in, other);
        if (node.kind == Kind::relu && in == p.root && p.conv.relu) {
            slot[n] = slot[in];
            written_down(n);
            continue;
        }
        Op op{};
        op.node = n;
        op.from = slot[in];
        op.other = op.other_buffer = op.buffer = op.layout = -1;
        op.type = node.kind == Kind::relu ? Op::relu : node.kind == Kind::affine ? Op::affine
                : node.kind == Kind::add ? Op::add : Op::pool;
        if (node.kind == Kind::add) {
            if (pipeline_of_[other] == number) op.other = slot[other];
            else op.other_buffer = plain_buffer_[other];
        }
        slot[n] = node.kind != Kind::pool && readers_here(in) == 1 ? slot[in] : new_slot(n);
        op.to = slot[n];
        p.ops.push_back(op);
        written_down(n);
    }
    scratch_floats_ = std::max(scratch_floats_, p.slot_end);
}

void Program::plan_arena() {
    std::vector<size_t> order(buffers_.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = i;
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return buffers_[a].floats > buffers_[b].floats; });
    std::vector<size_t> placed;
    for (size_t i : order) {
        Buffer& b = buffers_[i];
        std::vector<std::pair<size_t, size_t>> taken;
        for (size_t j : placed)
            if (buffers_[j].born <= b.dies && b.born <= buffers_[j].dies)
                taken.push_back({buffers_[j].at, buffers_[j].at + buffers_[j].floats});
        std::sort(taken.begin(), taken.end());
        b.at = 0;
        for (const auto& t : taken) {
            if (b.at + b.floats <= t.first) break;
            b.at = std::max(b.at, t.second);
        }
        b.floats = round_up(b.floats, 16);
        placed.push_back(i);
        arena_floats_ = std::max(arena_floats_, b.at + b.floats);
    }
    arena_floats_ += 16;
}

int Program::layout_for(int n, const Node& conv) {
    const Plane out = plane_of(conv.shape, kernels_.lanes, lanes_);
    for (int i : layouts_of_[n]) {
        const Layout& l = *layouts_[i];
        if (l.window == conv.window && l.out_h == out.h && l.out_w == out.w) return i;
    }
    auto layout = std::make_unique<Layout>();
    layout->window = conv.window;
    layout->out_h = out.h;
    layout->out_w = out.w;
    layout->pitch = out.pitch;
    plan_copies(*layout, network_[n].shape);
    const int index = static_cast<int>(layouts_.size());
    const size_t floats = network_[n].shape.c * layout->stride + 2 * kernels_.lanes;
    layout_buffer_.push_back(static_cast<int>(buffers_.size()));
    buffers_.push_back({round_up(floats, 16), pipeline_of_[n], pipeline_of_[n]});
    layouts_.push_back(std::move(layout));
    layouts_of_[n].push_back(index);
    return index;
}

void Program::plan_copies(Layout& l, const Shape& shape) const {
    const Window& k = l.window;
    const Plane in = plane_of(shape, kernels_.lanes, lanes_);
    const int vector = kernels_.lanes, last_row = (k.kh - 1) * k.dh / k.sh;
    l.tap_copy.resize(k.kh * k.kw);
    l.tap_offset.resize(k.kh * k.kw);
    if (lanes_ > 1) l.pitch = l.out_w + (k.kw - 1) * k.dw / k.sw;
    std::vector<int> lead;  // pixels by which the rows of a copy miss a vector
    for (int ky = 0; ky < k.kh; ++ky)
        for (int kx = 0; kx < k.kw; ++kx) {
            const int row = ky * k.dh / k.sh, phase = ky * k.dh % k.sh;
            const int column = lanes_ > 1 ? kx * k.dw % k.sw : kx * k.dw;
            const int miss = lanes_ > 1 ? 0 : row * l.pitch % vector;
            size_t c = 0;
            while (c < l.copies.size() &&
                   !(l.copies[c].phase_y == phase && l.copies[c].column == column && lead[c] == miss))
                ++c;
            if (c == l.copies.size()) {
                l.copies.push_back({});
                l.copies[c].phase_y = phase;
                l.copies[c].column = column;
                l.copies[c].first_row = lanes_ > 1 ? 0 : row;
                lead.push_back(miss);
            }
            l.copies[c].shifts.push_back(row);
            l.tap_copy[ky * k.kw + kx] = static_cast<int>(c);
        }
    const int vectors = divide_up(l.out_h * l.pitch, vector);
    size_t at = 0;
    for (auto& copy : l.copies) {
        const int most = *std::max_element(copy.shifts.begin(), copy.shifts.end());
        copy.dst = at;
        copy.rows = l.out_h + last_row;
        copy.length = lanes_ > 1 ? copy.rows * l.pitch * lanes_ : (most - copy.first_row) * l.pitch + vectors * vector;
        at += copy.length;
        copy.shifted = lanes_ == 1 && k.sh == 1 && k.sw == 1 && in.pitch == l.pitch;
        if (!copy.shifted) continue;
        copy.shift = static_cast<ptrdiff_t>(copy.first_row - k.ph) * l.pitch + copy.column - k.pw;
        copy.masks.assign(copy.length / vector, 0);
        for (int i = 0; i < copy.length; ++i) {
            const int y = copy.first_row + i / l.pitch - k.ph, ox = i % l.pitch, x = ox + copy.column - k.pw;
            if (y >= 0 && y < in.h && x >= 0 && x < in.w && ox < l.out_w) copy.masks[i / vector] |= 1u << i % vector;
        }
    }
    l.stride = at;
    for (auto& copy : l.copies)
        if (copy.shifted)
            l.moves.push_back({copy.dst, copy.shift, static_cast<int>(copy.masks.size()), copy.masks.data()});
    for (int ky = 0; ky < k.kh; ++ky)
        for (int kx = 0; kx < k.kw; ++kx) {
            const auto& copy = l.copies[l.tap_copy[ky * k.kw + kx]];
            const int row = ky * k.dh / k.sh - copy.first_row;
            const size_t pixel = static_cast<size_t>(row) * l.pitch + (lanes_ > 1 ? kx * k.dw / k.sw : 0);
            l.tap_offset[ky * k.kw + kx] = copy.dst + pixel * lanes_;
        }
}

void Program::plan_conv(Pipeline& p) {
    const Node& node = network_[p.root];
    const int in = node.in[0];
    const Plane out = plane(p.root), from = plane(in);
    Conv& conv = p.conv;
    conv.method = choose(node, network_[in].shape, lanes_, kernels_).method;
    conv.bias = node.bias;
    const bool each = conv.method == Method::sparse_each || conv.method == Method::dense_each;
    const bool plain = each || (pointwise(node.window) && from.pitch == out.pitch && from.stride == out.stride);
    if (plain) {
        conv.buffer = plain_buffer(in);
    } else {
        conv.layout = layout_for(in, node);
        conv.buffer = layout_buffer_[conv.layout];
    }
    buffers_[conv.buffer].dies = std::max(buffers_[conv.buffer].dies, pipeline_of_[p.root]);
    if (each) {
        conv.pixels = node.shape.h * node.shape.w;
        conv.vectors = lanes_ / kernels_.lanes;
        pack_each(node, conv, conv.method == Method::dense_each);
        return;
    }
    conv.vectors = lanes_ > 1 ? out.w * (lanes_ / kernels_.lanes) : static_cast<int>(out.stride) / kernels_.lanes;
    const int most = conv.method == Method::dense ? kernels_.most_dense : kernels_.most_vectors;
    conv.tile = divide_up(conv.vectors, divide_up(conv.vectors, most));
    conv.row_class.assign(1, 0);
    if (conv.method == Method::dense) pack_dense(node, conv);
    else pack_sparse(node, conv);
}

namespace {

// The distinct ranges of kernel rows that rows of the output meet, and which of them each row has.
std::vector<std::pair<int, int>> row_classes(const Window& k, int out_h, int in_h, std::vector<int>& of_row) {
    std::vector<std::pair<int, int>> classes;
    of_row.clear();
    for (int y = 0; y < out_h; ++y) {
        const auto range = met(k, y, in_h);
        const auto found = std::find(classes.begin(), classes.end(), range);
        of_row.push_back(static_cast<int>(found - classes.begin()));
        if (found == classes.end()) classes.push_back(range);
    }
    return classes;
}

}  // namespace

void Program::pack_sparse(const Node& node, Conv& conv) const {
    const Shape& in = network_[node.in[0]].shape;
    const Window& k = node.window;
    const Layout* layout = conv.layout < 0 ? nullptr : layouts_[conv.layout].get();
    const size_t stride = layout ? layout->stride : plane(node.in[0]).stride, fan = fan_in(node, in);
    std::vector<std::pair<int, int>> classes{{0, k.kh}};
    if (lanes_ > 1) classes = row_classes(k, node.shape.h, in.h, conv.row_class);
    const size_t channels = node.shape.c;
    conv.begin.resize(classes.size() * channels);
    conv.end.resize(classes.size() * channels);
    conv.taps.reserve(node.weight.size());
    for (size_t c = 0; c < channels; ++c) {
        std::vector<uint32_t> starts;  // of each row of the kernel, where lanes hold images
        for (int only = 0; only < (lanes_ > 1 ? k.kh : 1); ++only) {
            starts.push_back(static_cast<uint32_t>(conv.taps.size()));
            for (uint32_t i = node.row[c]; i < node.row[c + 1]; ++i) {
                const Place at = place(node, in, static_cast<int>(c), node.at(i, fan));
                if (lanes_ > 1 && at.ky != only) continue;
                const size_t offset = at.channel * stride + (layout ? layout->tap_offset[at.ky * k.kw + at.kx] : 0);
                conv.taps.push_back({in_bytes(offset), node.weight[i]});
            }
        }
        starts.push_back(static_cast<uint32_t>(conv.taps.size()));
        for (size_t r = 0; r < classes.size(); ++r) {
            conv.begin[r * channels + c] = lanes_ > 1 ? starts[classes[r].first] : starts.front();
            conv.end[r * channels + c] = lanes_ > 1 ? starts[classes[r].second] : starts.back();
        }
    }
}

void Program::pack_dense(const Node& node, Conv& conv) const {
    const Shape& in = network_[node.in[0]].shape;
    const Window& k = node.window;
    const Layout* layout = conv.layout < 0 ? nullptr : layouts_[conv.layout].get();
    const size_t stride = layout ? layout->stride : plane(node.in[0]).stride, fan = fan_in(node, in);
    // Kernel rows outermost, so that the taps which a row of the output meets are one range.
    const size_t per_row = static_cast<size_t>(in.c) * k.kw;
    auto order = [&](const Place& at) { return at.ky * per_row + static_cast<size_t>(at.channel) * k.kw + at.kx; };
    conv.offsets.resize(fan);
    for (uint32_t i = 0; i < fan; ++i) {
        const Place at = place(node, in, 0, i);
        const size_t tap = layout ? layout->tap_offset[at.ky * k.kw + at.kx] : 0;
        conv.offsets[order(at)] = in_bytes(at.channel * stride + tap);
    }
    const size_t blocks = divide_up(node.shape.c, kDenseBlock);
    conv.weights.assign(blocks * fan * kDenseBlock, 0);
    for (int c = 0; c < node.shape.c; ++c)
        for (uint32_t i = node.row[c]; i < node.row[c + 1]; ++i) {
            const size_t tap = order(place(node, in, c, node.at(i, fan)));
            conv.weights[(c / kDenseBlock * fan + tap) * kDenseBlock + c % kDenseBlock] = node.weight[i];
        }
    std::vector<std::pair<int, int>> classes{{0, k.kh}};
    if (lanes_ > 1) classes = row_classes(k, node.shape.h, in.h, conv.row_class);
    for (const auto& range : classes) {
        conv.row_taps[0].push_back(range.first * per_row);
        conv.row_taps[1].push_back(range.second * per_row);
    }
}

void Program::pack_each(const Node& node, Conv& conv, bool dense) const {
    const Shape& in = network_[node.in[0]].shape;
    const Plane from = plane(node.in[0]);
    const Window k = window_of(node, in);
    const size_t fan = fan_in(node, in), whole = in.c * from.stride;
    const int out_w = node.shape.w, pixels = conv.pixels;
    if (dense && lanes_ == 1) conv.weights.assign(node.shape.c * whole, 0);
    if (dense && lanes_ > 1) {
        conv.weights.assign(static_cast<size_t>(divide_up(node.shape.c, kDenseBlock)) * fan * kDenseBlock, 0);
        conv.offsets.resize(fan);
        for (uint32_t i = 0; i < fan; ++i) {
            const Place at = place(node, in, 0, i);
            conv.offsets[i] = in_bytes(at.channel * from.stride + source(k, from, 0, 0, at.ky, at.kx));
        }
        conv.row_taps[0] = {0};
        conv.row_taps[1] = {fan};
        conv.row_class.assign(1, 0);
    }
    if (pixels > 1) {
        conv.bias.clear();
        for (float bias : node.bias) conv.bias.insert(conv.bias.end(), pixels, bias);
    }
    for (int c = 0; c < node.shape.c; ++c)
        for (int pixel = 0; pixel < pixels; ++pixel) {
            conv.begin.push_back(static_cast<uint32_t>(conv.taps.size()));
            for (uint32_t i = node.row[c]; i < node.row[c + 1]; ++i) {
                const uint32_t position = node.at(i, fan);
                const Place at = place(node, in, c, position);
                const ptrdiff_t pixel_at = source(k, from, pixel / out_w, pixel % out_w, at.ky, at.kx);
                if (pixel_at < 0) continue;
                const size_t offset = at.channel * from.stride + pixel_at;
                if (!dense) conv.taps.push_back({in_bytes(offset), node.weight[i]});
                else if (lanes_ == 1) conv.weights[c * whole + offset] = node.weight[i];
                else conv.weights[(c / kDenseBlock * fan + position) * kDenseBlock + c % kDenseBlock] = node.weight[i];
            }
            conv.end.push_back(static_cast<uint32_t>(conv.taps.size()));
        }
}

size_t Program::weight_bytes() const {
    size_t bytes = 0;
    for (const auto& p : pipelines_)
        bytes += p.conv.taps.size() * sizeof(Tap) + (p.conv.begin.size() + p.conv.end.size()) * 4 +
                 (p.conv.weights.size() + p.conv.offsets.size() + p.conv.bias.size()) * 4;
    return bytes;
}

const char* Program::method(int node) const {
    static const char* const names[] = {"sparse", "dense", "sparse", "dense"};
    return names[static_cast<int>(pipelines_[pipeline_of_[node]].conv.method)];
}

const float* Program::plain(int node, const float* arena) const { return arena + buffers_[plain_buffer_[node]].at; }

}  // namespace hydraprune
