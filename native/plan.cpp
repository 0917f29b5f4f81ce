// Planning: which pipeline a node belongs to, how its readers want it, where everything lies.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <stdexcept>

#include "program.h"

namespace hydraprune {
namespace {

size_t round_up(size_t n, size_t multiple) { return (n + multiple - 1) / multiple * multiple; }
int divide_up(int a, int b) { return (a + b - 1) / b; }

uint32_t checked(size_t floats) {
    if (floats > UINT32_MAX) throw std::length_error("a layer is too large");
    return static_cast<uint32_t>(floats);
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

constexpr size_t kMostFloats = size_t{1} << 28;  // a file may claim anything

// A product that sizes of a file went into; in double, so that it cannot wrap around.
size_t bounded(double floats) {
    if (!(floats <= static_cast<double>(kMostFloats))) throw std::length_error("too much memory");
    return static_cast<size_t>(floats);
}

constexpr double kCached = 32 * 1024;  // bytes of the first cache for what a tile reads
constexpr double kMostStored = 1.25;   // floats of a stored plane for each of the map, where dense weights lie alike
constexpr double kVisit = 64;          // multiply-adds that are worth another visit of the sums

bool pointwise(const Window& k) { return k == Window{1, 1, 1, 1, 0, 0, 1, 1}; }

}  // namespace

namespace {

// Zeros behind each row and each channel that a convolution of stride 1 needs to read the plain map.
struct Guard {
    int y, x;
};
Guard guard(const Window& k, const Shape& in, const Shape& out) {
    return {std::max(k.ph, out.h + (k.kh - 1) * k.dh - k.ph - in.h), std::max(k.pw, out.w + (k.kw - 1) * k.dw - k.pw - in.w)};
}

}  // namespace

// The unit is one multiply-add whose vector comes from the first cache. The constants are measured (docs/runtime.md): a
// sparse one reads its vector and, once a tile, a weight and an offset; a dense one shares its reads among the channels
// of a block. Images side by side multiply what a layer reads, so that it may leave the second cache.
Choice choose(const Node& node, const Shape& in, int lanes, const Kernels& kernels) {
    const Window k = window_of(node, in);
    const double kept = static_cast<double>(node.weight.size());
    const double all = static_cast<double>(node.shape.c) * fan_in(node, in);
    const int pixels = node.shape.h * node.shape.w;
    const bool can_be_dense = node.groups == 1;
    constexpr double kTap = 1.7, kDense = .6, kDirect = 1.13;
    // A weight that does not come from a cache of this core costs that much, however few vectors it is used for.
    const double stream = all * sizeof(float) > 512e3 ? 1.8 : 0;
    const double bytes = static_cast<double>(in.c) * in.h * (in.w + 2 * k.pw) * lanes * sizeof(float);
    const double read = lanes == 1 ? 1.2 : bytes < 200e3 ? 1. : bytes < 800e3 ? 2.2 : 5.;
    if (lanes == 1 && pixels == 1) {
        constexpr double kDot = 2.4;  // a kept weight
        const double dense = static_cast<double>(node.shape.c) * in.size() * std::max(8. / kernels.lanes, stream);
        return can_be_dense && dense < kDot * kept ? Choice{Method::dense_each, dense}
                                                   : Choice{Method::sparse_each, kDot * kept};
    }
    const int run = lanes / kernels.lanes;
    if (lanes > 1 && pixels == 1 && k.ph == 0 && k.pw == 0) {
        const double dense = all * run * kDense * read;
        return can_be_dense && dense < kept * (run * read + kTap) ? Choice{Method::dense_each, dense}
                                                           : Choice{Method::sparse_each, kept * (run * read + kTap)};
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
    const int width = in.w + std::max(0, guard(k, in, node.shape).x);
    const double flat = std::ceil(((node.shape.h - 1.) * width + node.shape.w) / kernels.lanes);
    const int narrow = divide_up(pixels, kernels.lanes);
    // Rows of the output lie as far apart as those of the input and must not overlap.
    const bool direct =
        lanes == 1 && k.sh == 1 && k.sw == 1 && node.shape.w <= width && flat <= kDirect * narrow;
    const double vectors = lanes > 1 ? met_rows * node.shape.w * run : direct ? flat : narrow;
    const double tiles = lanes == 1 ? divide_up(static_cast<int>(vectors), kernels.most_vectors)
                                    : met_rows * divide_up(node.shape.w * run, kernels.most_vectors);
    Choice best{Method::sparse, kept * (vectors * read + kTap * tiles), direct};
    if (lanes > 1 && pixels <= 4) {
        const double each = kept * met_taps * (run * read + kTap);
        if (each < best.cost) best = {Method::sparse_each, each};
    }
    const double dense = all * std::max(vectors * kDense, stream);
    if (can_be_dense && dense < best.cost) best = {Method::dense, dense, direct};
    return best;
}

Program::Program(const Network& network, int first, int last, int lanes, const Kernels& kernels, int threads,
                 size_t room)
    : network_(network),
      first_(first),
      last_(last),
      lanes_(lanes),
      threads_(threads),
      kernels_(kernels),
      pipeline_of_(network.size(), -1),
      choice_(network.size()),
      slot_(network.size()),
      stored_(network.size()),
      stored_masks_(network.size()),
      plain_buffer_(network.size(), -1),
      layouts_of_(network.size()),
      room_(room) {
    plan_pipelines();
    plan_arena();
    if (arena_floats_ > kMostFloats || scratch_floats_ > kMostFloats) throw std::length_error("too much memory");
}

// As `bounded`, of all that is packed for the program together.
size_t Program::taken(double floats) {
    const size_t count = bounded(floats);
    if (count > room_) throw std::length_error("too much memory");
    room_ -= count;
    return count;
}

int Program::plain_buffer(int node) {
    if (plain_buffer_[node] < 0) {
        const size_t floats = stored_[node].lead + network_[node].shape.c * stored_[node].stride;
        plain_buffer_[node] = static_cast<int>(buffers_.size());
        buffers_.push_back({round_up(floats, 16) + 32 * kernels_.lanes, pipeline_of_[node], pipeline_of_[node]});
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
        pipeline_of_[n] = static_cast<int>(pipelines_.size());
        pipelines_.push_back(std::move(p));
    }
    for (int n = first_; n < last_; ++n) {
        const Node& node = network_[n];
        if (node.root()) continue;
        pipeline_of_[n] = pipeline_of_[node.in[0]];
        if (node.kind == Kind::add) pipeline_of_[n] = std::max(pipeline_of_[n], pipeline_of_[node.in[1]]);
    }
    plan_planes(users);
    for (auto& p : pipelines_)
        if (p.import < 0) plan_conv(p);
        else plan_block(p);
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

// Where a map lies in the scratch while a pipeline works on it, and where it is written down.
void Program::plan_planes(const std::vector<std::vector<int>>& users) {
    const int vector = kernels_.lanes;
    for (int n = first_; n < last_; ++n)
        if (network_[n].weighted()) choice_[n] = choose(network_[n], network_[network_[n].in[0]].shape, lanes_, kernels_);
    for (int n = 0; n < last_; ++n) {
        if (pipeline_of_[n] < 0) continue;
        const Node& node = network_[n];
        const Shape& s = node.shape;
        int right = 0, below = 0;
        for (int u : users[n])
            if (u >= first_ && u < last_ && network_[u].weighted() && choice_[u].direct) {
                const Guard zeros = guard(network_[u].window, s, network_[u].shape);
                right = std::max(right, zeros.x);
                below = std::max(below, zeros.y);
            }
        // Numbers between images are read by one kernel, which multiplies them by 0: they must be zeros, not what was
        // left there, which may be infinite.
        bool dotted = false;
        for (int u : users[n])
            dotted |= u >= first_ && u < last_ && network_[u].weighted() && lanes_ == 1 &&
                      choice_[u].method == Method::dense_each;
        const int pitch = s.w + right;
        bounded(static_cast<double>(s.c) * (s.h + below) * pitch * lanes_);
        stored_[n] = {s.h, s.w, pitch, lanes_, static_cast<size_t>(s.h + below) * pitch * lanes_,
                      static_cast<size_t>(below) * pitch + right};
        const size_t aligned = round_up(stored_[n].stride, 16);
        if (lanes_ == 1 && aligned * 15 < stored_[n].stride * 16) stored_[n].stride = aligned;
        stored_[n].lead = round_up(stored_[n].lead, 16);
        const Plane own{s.h, s.w, pitch, lanes_,
                        (s.h == 1 && pitch == 1) || lanes_ > 1 ? static_cast<size_t>(s.h) * pitch * lanes_
                                                       : round_up(static_cast<size_t>(s.h) * pitch, vector)};
        if (node.weighted() && n >= first_) {
            const Choice& choice = choice_[n];
            const bool each = choice.method == Method::sparse_each || choice.method == Method::dense_each;
            if (lanes_ > 1 || each) {
                slot_[n] = {s.h, s.w, s.w, lanes_, static_cast<size_t>(s.h) * s.w * lanes_};
            } else {
                const int run = choice.direct ? stored_[node.in[0]].pitch : s.w;
                bounded(static_cast<double>(s.c) * s.h * run);
                const int vectors = divide_up((s.h - 1) * run + s.w, vector);
                slot_[n] = {s.h, s.w, run, 1, round_up(std::max(s.h * run, vectors * vector), vector)};
            }
        } else if (node.root() || n < first_ || node.kind == Kind::pool) {
            slot_[n] = own;
        } else {
            const bool swapped = node.kind == Kind::add && pipeline_of_[node.in[0]] != pipeline_of_[n];
            slot_[n] = slot_[node.in[swapped ? 1 : 0]];
        }
        const bool gaps = slot_[n].stride != static_cast<size_t>(s.h) * s.w * lanes_;
        if (right == 0 && below == 0 && !(dotted && gaps)) {  // it is written down as it lies in the scratch
            stored_[n] = slot_[n];
            continue;
        }
        // Dense weights lie as the plane does. Where another reader's padding is most of that, they would be mostly zeros.
        if (dotted && stored_[n].stride > kMostStored * s.h * s.w)
            for (int u : users[n])
                if (u >= first_ && u < last_ && network_[u].weighted() && choice_[u].method == Method::dense_each)
                    choice_[u].method = Method::sparse_each;
        if (lanes_ == 1 && slot_[n].pitch == pitch && slot_[n].stride > 1) {
            auto& masks = stored_masks_[n];
            masks.assign(taken(divide_up(static_cast<int>(stored_[n].stride), vector)), 0);
            for (int y = 0; y < s.h; ++y)
                for (int x = 0; x < s.w; ++x) masks[(y * pitch + x) / vector] |= 1u << (y * pitch + x) % vector;
        }
    }
}

// Channels that go through a pipeline together.
void Program::plan_block(Pipeline& p) {
    const bool dense = p.conv.method == Method::dense || (p.conv.method == Method::dense_each && lanes_ > 1);
    const size_t floats = slot_[p.root].stride;
    int block = static_cast<int>(std::clamp<size_t>(4096 / floats, p.conv.depth > 1 ? 64 : 1, 256));
    if (threads_ > 1) block = std::min(block, divide_up(p.channels, 2 * threads_));
    if (dense && p.import < 0) block = static_cast<int>(round_up(block, kDenseBlock));
    p.block = std::min(block, p.channels);
}

void Program::plan_slots(Pipeline& p) {
    const int number = static_cast<int>(&p - pipelines_.data());
    std::vector<int> slot(network_.size(), -1);
    auto new_slot = [&](int node) {
        // Vectors with a pixel of the map in them may begin before it and end behind it, by two vectors at most.
        const size_t around = 2 * kernels_.lanes;
        const size_t floats = round_up(p.block * slot_[node].stride, kernels_.lanes) + 3 * around;
        const size_t at = p.slot_end;
        p.slot.push_back(at + around);
        p.slot_end = at + round_up(floats, 16);
        return static_cast<int>(p.slot.size()) - 1;
    };
    auto written_down = [&](int node) {
        if (plain_buffer_[node] >= 0) {
            Op op{Op::plain, node, slot[node]};
            op.buffer = plain_buffer_[node];
            p.ops.push_back(op);
        }
        for (int layout : layouts_of_[node]) {
            Op op{Op::copies, node, slot[node]};
            op.buffer = layout_buffer_[layout];
            op.layout = layout;
            p.ops.push_back(op);
        }
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
        // So is one that alone reads a sum or an affine.
        if (node.kind == Kind::relu && !p.ops.empty() && p.ops.back().node == in &&
            (p.ops.back().type == Op::affine || p.ops.back().type == Op::add) && readers_here(in) == 1) {
            p.ops.back().rectify = true;
            slot[n] = slot[in];
            written_down(n);
            continue;
        }
        const auto type = node.kind == Kind::relu ? Op::relu : node.kind == Kind::affine ? Op::affine
                        : node.kind == Kind::add ? Op::add : Op::pool;
        Op op{type, n, slot[in]};
        if (node.kind == Kind::add) {
            op.summand = other;
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
    for (int i : layouts_of_[n]) {
        const Layout& l = *layouts_[i];
        if (l.window == conv.window && l.out_h == conv.shape.h && l.out_w == conv.shape.w) return i;
    }
    auto layout = std::make_unique<Layout>();
    layout->window = conv.window;
    layout->out_h = conv.shape.h;
    layout->out_w = conv.shape.w;
    plan_copies(*layout, n);
    const int index = static_cast<int>(layouts_.size());
    const size_t floats = network_[n].shape.c * layout->stride + 32 * kernels_.lanes;
    layout_buffer_.push_back(static_cast<int>(buffers_.size()));
    buffers_.push_back({round_up(floats, 16), pipeline_of_[n], pipeline_of_[n]});
    layouts_.push_back(std::move(layout));
    layouts_of_[n].push_back(index);
    return index;
}

void Program::plan_copies(Layout& l, int n) {
    const Window& k = l.window;
    const Plane& in = slot_[n];
    const int vector = kernels_.lanes;
    l.tap_offset.resize(k.kh * k.kw);
    l.pitch = lanes_ > 1 ? l.out_w + (k.kw - 1) * k.dw / k.sw : l.out_w;
    const bool shifted = lanes_ == 1 && k.sh == 1 && k.sw == 1 && in.pitch == l.pitch;
    std::vector<size_t> copy_of;
    std::map<std::pair<int, int>, size_t> found;
    for (int ky = 0; ky < k.kh; ++ky)
        for (int kx = 0; kx < k.kw; ++kx) {
            const int row = ky * k.dh / k.sh, phase = ky * k.dh % k.sh;
            const int column = lanes_ > 1 ? kx * k.dw % k.sw : kx * k.dw;
            const size_t c = found.emplace(std::make_pair(phase, column), l.copies.size()).first->second;
            if (c == l.copies.size()) l.copies.push_back({phase, column, 0, 0, {}});
            l.copies[c].rows = std::max(l.copies[c].rows, l.out_h + row);
            copy_of.push_back(c);
        }
    double rows = 0;
    for (const auto& copy : l.copies) rows += copy.rows;
    bounded(rows * l.pitch * lanes_ * network_[n].shape.c);
    for (auto& copy : l.copies) {
        copy.dst = l.stride;
        const int length = copy.rows * l.pitch;
        l.stride += static_cast<size_t>(length) * lanes_;
        const int masked = shifted ? length : l.pitch;
        copy.masks.assign(taken(divide_up(masked, vector)), 0);
        for (int i = 0; i < masked; ++i) {
            const int y = shifted ? i / l.pitch + copy.phase_y - k.ph : 0, x = i % l.pitch * k.sw + copy.column - k.pw;
            if (y >= 0 && y < in.h && x >= 0 && x < in.w) copy.masks[i / vector] |= 1u << i % vector;
        }
    }
    for (auto& copy : l.copies)
        if (shifted) {
            const int vectors = static_cast<int>(copy.masks.size());
            l.moves.push_back({copy.dst, static_cast<ptrdiff_t>(copy.phase_y - k.ph) * l.pitch + copy.column - k.pw, vectors,
                               copy.rows * l.pitch - (vectors - 1) * vector, copy.masks.data()});
        }
    for (int ky = 0; ky < k.kh; ++ky)
        for (int kx = 0; kx < k.kw; ++kx) {
            const int tap = ky * k.kw + kx;
            const size_t pixel = static_cast<size_t>(ky * k.dh / k.sh) * l.pitch + (lanes_ > 1 ? kx * k.dw / k.sw : 0);
            l.tap_offset[tap] = l.copies[copy_of[tap]].dst + pixel * lanes_;
        }
}

void Program::plan_conv(Pipeline& p) {
    const Node& node = network_[p.root];
    const int in = node.in[0];
    const Choice& choice = choice_[p.root];
    Conv& conv = p.conv;
    conv.method = choice.method;
    conv.bias = node.bias;
    const bool each = conv.method == Method::sparse_each || conv.method == Method::dense_each;
    const bool plain = each || choice.direct || (pointwise(node.window) && stored_[in].pitch == slot_[p.root].pitch);
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
        plan_block(p);
        pack_each(node, conv, conv.method == Method::dense_each);
        return;
    }
    const int floats = (node.shape.h - 1) * slot_[p.root].pitch + node.shape.w;
    conv.vectors = lanes_ > 1 ? node.shape.w * (lanes_ / kernels_.lanes) : divide_up(floats, kernels_.lanes);
    conv.half = conv.method == Method::sparse && lanes_ == 1 && floats <= kernels_.lanes / 2;
    int most = conv.method == Method::dense ? kernels_.most_dense : kernels_.most_vectors;
    if (lanes_ == 1 && conv.method == Method::sparse) {
        const double taps = static_cast<double>(node.weight.size()) / node.shape.c;
        const size_t stride = plain ? stored_[in].stride : layouts_[conv.layout]->stride;
        const int tile = std::min(conv.vectors, 9);
        const double rows = std::min<double>(1, static_cast<double>(tile) / conv.vectors + 2. / (node.shape.h + 2));
        const double bytes = static_cast<double>(network_[in].shape.c) * stride * 4 * rows;
        conv.depth = static_cast<int>(std::clamp(std::ceil(bytes / kCached), 1., std::max(1., taps * tile / kVisit)));
        if (conv.depth > 1) most = tile;
    }
    conv.tile = divide_up(conv.vectors, divide_up(conv.vectors, most));
    conv.row_class.assign(1, 0);
    plan_block(p);
    if (conv.method == Method::dense) pack_dense(node, conv);
    else pack_sparse(node, conv, p.block);
}

namespace {

// Taps of the plain map: the base of a run is its first pixel less what the padding adds, see `run_conv`.
std::vector<size_t> plain_offsets(const Window& k, const Plane& plane) {
    std::vector<size_t> offsets;
    for (int ky = 0; ky < k.kh; ++ky)
        for (int kx = 0; kx < k.kw; ++kx)
            offsets.push_back((static_cast<size_t>(ky) * k.dh * plane.pitch + kx * k.dw) * plane.lanes);
    return offsets;
}

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

// Taps in the order in which they are read: blocks of output channels, of input channels, channels. Where lanes hold
// images there are no blocks of input channels, and the taps of a channel go by rows of the kernel.
void Program::pack_sparse(const Node& node, Conv& conv, int block) {
    const Shape& in = network_[node.in[0]].shape;
    const Window& k = node.window;
    const Layout* layout = conv.layout < 0 ? nullptr : layouts_[conv.layout].get();
    const size_t stride = layout ? layout->stride : stored_[node.in[0]].stride, fan = fan_in(node, in);
    const std::vector<size_t> offsets = layout ? layout->tap_offset : plain_offsets(k, stored_[node.in[0]]);
    const int channels = node.shape.c, parts = lanes_ > 1 ? k.kh : conv.depth;
    taken(2. * node.weight.size() + 2. * parts * channels);
    std::vector<uint32_t> begin(static_cast<size_t>(parts) * channels), end(begin.size());
    for (int d = 0; d < conv.depth; ++d)
        conv.start.push_back(static_cast<size_t>(divide_up(d * in.c, conv.depth)) * stride);
    conv.wide.reserve(node.weight.size());
    conv.weights.reserve(node.weight.size());
    if (lanes_ > 1) block = 1;  // so that the rows of the kernel that a row of the output meets are one range
    for (int c0 = 0; c0 < channels; c0 += block)
        for (int part = 0; part < parts; ++part)
            for (int c = c0; c < std::min(channels, c0 + block); ++c) {
                const size_t at = static_cast<size_t>(part) * channels + c;
                begin[at] = static_cast<uint32_t>(conv.weights.size());
                for (uint32_t i = node.row[c]; i < node.row[c + 1]; ++i) {
                    const Place from = place(node, in, c, node.at(i, fan));
                    const int here = lanes_ > 1 ? from.ky : from.channel * conv.depth / in.c;
                    if (here != part) continue;
                    const size_t offset = from.channel * stride + offsets[from.ky * k.kw + from.kx];
                    conv.wide.push_back(checked(offset - (lanes_ > 1 ? 0 : conv.start[part])));
                    conv.weights.push_back(node.weight[i]);
                }
                end[at] = static_cast<uint32_t>(conv.weights.size());
            }
    if (lanes_ == 1) {
        conv.begin = std::move(begin);
        conv.end = std::move(end);
    } else {
        const auto classes = row_classes(k, node.shape.h, in.h, conv.row_class);
        taken(2. * classes.size() * channels);
        for (const auto& range : classes)
            for (int c = 0; c < channels; ++c) {
                const bool none = range.first == range.second;
                conv.begin.push_back(none ? 0 : begin[static_cast<size_t>(range.first) * channels + c]);
                conv.end.push_back(none ? 0 : end[static_cast<size_t>(range.second - 1) * channels + c]);
            }
    }
    narrow_offsets(conv);
}

void Program::narrow_offsets(Conv& conv) const {
    if (conv.wide.empty() || *std::max_element(conv.wide.begin(), conv.wide.end()) > UINT16_MAX) return;
    conv.narrow.assign(conv.wide.begin(), conv.wide.end());
    conv.wide = {};
}

void Program::pack_dense(const Node& node, Conv& conv) {
    const Shape& in = network_[node.in[0]].shape;
    const Window& k = node.window;
    const Layout* layout = conv.layout < 0 ? nullptr : layouts_[conv.layout].get();
    const size_t stride = layout ? layout->stride : stored_[node.in[0]].stride, fan = fan_in(node, in);
    const std::vector<size_t> offsets = layout ? layout->tap_offset : plain_offsets(k, stored_[node.in[0]]);
    // Kernel rows outermost, so that the taps which a row of the output meets are one range.
    const size_t per_row = static_cast<size_t>(in.c) * k.kw;
    auto order = [&](const Place& at) { return at.ky * per_row + static_cast<size_t>(at.channel) * k.kw + at.kx; };
    conv.offsets.resize(taken(fan));
    for (uint32_t i = 0; i < fan; ++i) {
        const Place at = place(node, in, 0, i);
        conv.offsets[order(at)] = checked(at.channel * stride + offsets[at.ky * k.kw + at.kx]);
    }
    const size_t blocks = divide_up(node.shape.c, kDenseBlock);
    conv.weights.assign(taken(static_cast<double>(blocks) * fan * kDenseBlock), 0);
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

void Program::pack_each(const Node& node, Conv& conv, bool dense) {
    const Shape& in = network_[node.in[0]].shape;
    const Plane from = stored_[node.in[0]];
    const Window k = window_of(node, in);
    const size_t fan = fan_in(node, in), whole = in.c * from.stride;
    const int out_w = node.shape.w, pixels = conv.pixels;
    taken(3. * node.shape.c * pixels);
    if (!dense) taken(2. * node.weight.size() * pixels);
    if (dense && lanes_ == 1) conv.weights.assign(taken(static_cast<double>(node.shape.c) * whole), 0);
    if (dense && lanes_ > 1) {
        conv.weights.assign(taken(static_cast<double>(divide_up(node.shape.c, kDenseBlock)) * fan * kDenseBlock), 0);
        conv.offsets.resize(taken(fan));
        for (uint32_t i = 0; i < fan; ++i) {
            const Place at = place(node, in, 0, i);
            conv.offsets[i] = checked(at.channel * from.stride + source(k, from, 0, 0, at.ky, at.kx));
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
            conv.begin.push_back(static_cast<uint32_t>(conv.wide.size()));
            for (uint32_t i = node.row[c]; i < node.row[c + 1]; ++i) {
                const uint32_t position = node.at(i, fan);
                const Place at = place(node, in, c, position);
                const ptrdiff_t pixel_at = source(k, from, pixel / out_w, pixel % out_w, at.ky, at.kx);
                if (pixel_at < 0) continue;
                const size_t offset = at.channel * from.stride + pixel_at;
                if (!dense) {
                    conv.wide.push_back(checked(offset));
                    conv.weights.push_back(node.weight[i]);
                } else if (lanes_ == 1) conv.weights[c * whole + offset] = node.weight[i];
                else conv.weights[(c / kDenseBlock * fan + position) * kDenseBlock + c % kDenseBlock] = node.weight[i];
            }
            conv.end.push_back(static_cast<uint32_t>(conv.wide.size()));
        }
    narrow_offsets(conv);
}

size_t Program::weight_bytes() const {
    size_t bytes = 0;
    for (const auto& p : pipelines_)
        bytes += p.conv.narrow.size() * 2 + p.conv.wide.size() * 4 + (p.conv.begin.size() + p.conv.end.size()) * 4 +
                 (p.conv.weights.size() + p.conv.offsets.size() + p.conv.bias.size()) * 4;
    return bytes;
}

const char* Program::method(int node) const {
    static const char* const names[] = {"sparse", "dense", "sparse", "dense"};
    return names[static_cast<int>(pipelines_[pipeline_of_[node]].conv.method)];
}

const float* Program::plain(int node, const float* arena) const {
    return arena + buffers_[plain_buffer_[node]].at + stored_[node].lead;
}

}  // namespace hydraprune
