#include "gradient.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>

namespace hydraprune {

namespace {

int floor_div(int a, int b) { return a / b - (a % b < 0); }
int ceil_div(int a, int b) { return -floor_div(-a, b); }

void require(bool fits) {
    if (!fits) throw std::invalid_argument("a node does not fit the one that it reads");
}

}  // namespace

void Gradient::Map::widen(int above, int before, int below, int behind) {
    top = std::max(top, above);
    left = std::max(left, before);
    bottom = std::max(bottom, below);
    right = std::max(right, behind);
}

void Gradient::Map::live(int step) {
    if (born < 0) born = step;
    dies = step;
}

// A linear layer is a convolution whose kernel is as large as its map; strides as large make each pixel a phase of its own.
Window Gradient::window_of(const Node& node, const Shape& in) {
    return node.kind == Kind::conv ? node.window : Window{in.h, in.w, in.h, in.w, 0, 0, 1, 1};
}

Gradient::Gradient(const Network& network, const Kernels& kernels)
    : network_(network), kernels_(kernels.group), lanes_(kernels.lanes), steps_(network.size()) {
    require(!network.empty() && network[0].kind == Kind::input);
    for (size_t n = 1; n < network.size(); ++n) {
        require(network[n].kind != Kind::input);
        check(network[n]);
    }
    join();
    plan_maps();
    plan_tape();
    for (size_t n = 1; n < network.size(); ++n) {
        const Shape& out = network[n].shape;
        work_ += out.size() + network[n].weight.size() * out.h * out.w;
        if (network[n].weighted()) pack(static_cast<int>(n));
    }
}

void Gradient::check(const Node& node) const {
    const int self = static_cast<int>(&node - network_.data());
    require(node.in[0] >= 0 && node.in[0] < self);
    const Shape& in = network_[node.in[0]].shape;
    if (!node.weighted()) return;  // whoever appended it looked at it
    const Window k = window_of(node, in);
    auto side = [](int from, int kernel, int stride, int padding, int dilation) {
        return floor_div(from + 2 * padding - dilation * (kernel - 1) - 1, stride) + 1;
    };
    require(k.kh > 0 && k.kw > 0 && k.sh > 0 && k.sw > 0 && k.ph >= 0 && k.pw >= 0 && k.dh > 0 && k.dw > 0);
    require(node.shape.h == side(in.h, k.kh, k.sh, k.ph, k.dh) && node.shape.w == side(in.w, k.kw, k.sw, k.pw, k.dw));
    require(node.groups > 0 && in.c % node.groups == 0 && node.shape.c % node.groups == 0);
    const size_t fan = static_cast<size_t>(in.c / node.groups) * k.kh * k.kw;
    require(node.row.front() == 0 && std::is_sorted(node.row.begin(), node.row.end()));
    if (node.position.empty()) require(node.weight.size() == node.shape.c * fan || node.weight.empty());
    for (uint32_t position : node.position) require(position < fan);
}

// ReLU works on its source's map where nobody else reads that.
void Gradient::join() {
    const int size = static_cast<int>(network_.size());
    std::vector<int> readers(size, 0);
    for (const auto& node : network_)
        for (int in : node.in)
            if (in >= 0) ++readers[in];
    for (int n = 0; n < size; ++n) {
        value_.push_back(n);
        const Node& node = network_[n];
        if (node.kind != Kind::relu) continue;
        const int from = node.in[0];
        const Kind kind = network_[from].kind;
        if (readers[from] == 1 && (network_[from].weighted() || kind == Kind::affine || kind == Kind::add)) {
            value_[n] = from;
            steps_[n].alone = false;
            steps_[from].relu = true;
        } else {
            steps_[n].relu = true;
        }
    }
}

void Gradient::plan_maps() {
    const int size = static_cast<int>(network_.size());
    maps_.resize(size);
    gradients_.resize(size);
    for (int n = 0; n < size; ++n) {
        maps_[n].shape = gradients_[n].shape = network_[n].shape;
        maps_[n].lanes = gradients_[n].lanes = lanes_;
        if (!steps_[n].alone) continue;
        const Node& node = network_[n];
        maps_[n].live(n);
        for (int in : node.in)
            if (in >= 0) maps_[value_[in]].live(n);
        if (!node.weighted()) continue;
        const Shape &in = network_[node.in[0]].shape, &out = node.shape;
        const Window k = window_of(node, in);
        maps_[value_[node.in[0]]].widen(k.ph, k.pw, (out.h - 1) * k.sh + (k.kh - 1) * k.dh - k.ph - (in.h - 1),
                                        (out.w - 1) * k.sw + (k.kw - 1) * k.dw - k.pw - (in.w - 1));
        auto reach = [](const std::vector<Phase>& phases, int side, int& before, int& behind) {
            for (const auto& phase : phases)
                for (int shift : phase.shifts) {
                    before = std::max(before, -shift);
                    behind = std::max(behind, phase.count - 1 + shift - (side - 1));
                }
        };
        int above = 0, below = 0, before = 0, behind = 0;
        reach(phases(in.h, out.h, k.kh, k.sh, k.ph, k.dh), out.h, above, below);
        reach(phases(in.w, out.w, k.kw, k.sw, k.pw, k.dw), out.w, before, behind);
        gradients_[n].widen(above, before, below, behind);
    }
    maps_[value_[size - 1]].dies = size;
    // Gradients go the other way. What no gradient reaches has none.
    gradients_[value_[size - 1]].live(0);
    for (int n = size; n-- > 0;) {
        if (!steps_[n].alone || gradients_[n].born < 0) continue;
        gradients_[n].live(size - n);
        for (int in : network_[n].in)
            if (in >= 0) {
                gradients_[value_[in]].live(size - n);
                ++steps_[value_[in]].givers;
            }
    }
    gradients_[0].dies = size + 1;
    arena_floats_ = std::max(place(maps_), place(gradients_));
}

// The largest first, each at the lowest place where nothing lies that lives when it does.
size_t Gradient::place(std::vector<Map>& maps) {
    std::vector<Map*> order, placed;
    for (auto& map : maps) {
        if (map.born < 0) continue;
        if (map.floats() > static_cast<size_t>(std::numeric_limits<int32_t>::max()) / 2)
            throw std::length_error("a map is too large side by side");
        order.push_back(&map);
    }
    std::stable_sort(order.begin(), order.end(), [](Map* a, Map* b) { return a->floats() > b->floats(); });
    size_t end = 0;
    for (Map* map : order) {
        std::vector<Map*> beside;
        for (Map* other : placed)
            if (other->born <= map->dies && map->born <= other->dies) beside.push_back(other);
        std::sort(beside.begin(), beside.end(), [](Map* a, Map* b) { return a->at < b->at; });
        for (Map* other : beside) {
            if (map->at + map->floats() <= other->at) break;
            // Apart by an odd number of cache lines.
            map->at = std::max(map->at, (other->at + other->floats() + 31) / 32 * 32 + 16);
        }
        placed.push_back(map);
        end = std::max(end, map->at + map->floats());
    }
    return end;
}

void Gradient::plan_tape() {
    auto take = [this](size_t bytes) {
        const size_t at = tape_bytes_;
        tape_bytes_ += (bytes + 63) / 64 * 64;
        return at;
    };
    for (size_t n = 0; n < network_.size(); ++n) {
        const size_t pixels = network_[n].shape.size();
        if (steps_[n].relu) steps_[n].signs = take(pixels * sizeof(uint16_t));
        if (network_[n].kind == Kind::pool && network_[n].maximum)
            steps_[n].best = take(pixels * lanes_ * sizeof(int32_t));
    }
}

// Of the gradient of a convolution along one side: input y meets output (y + padding - k * dilation) / stride.
std::vector<Gradient::Phase> Gradient::phases(int side, int out, int kernel, int stride, int padding, int dilation) {
    std::vector<Phase> all;
    for (int first = 0; first < std::min(stride, side); ++first) {
        Phase phase{first, ceil_div(side - first, stride), {}, {}};
        for (int k = 0; k < kernel; ++k) {
            const int at = first + padding - k * dilation;
            const int shift = floor_div(at, stride);
            // Those that lie outside the outputs wherever they are read need no zeros.
            if (at - shift * stride || shift >= out || phase.count - 1 + shift < 0) continue;
            phase.taps.push_back(k);
            phase.shifts.push_back(shift);
        }
        all.push_back(std::move(phase));
    }
    return all;
}

void Gradient::pack(int n) {
    const Node& node = network_[n];
    const Shape &in = network_[node.in[0]].shape, &out = node.shape;
    const Window k = window_of(node, in);
    const Map &from = maps_[value_[node.in[0]]], &gradient = gradients_[n];
    const int window = k.kh * k.kw, in_group = in.c / node.groups, out_group = out.c / node.groups;
    const size_t fan = static_cast<size_t>(in_group) * window;
    // Calls use(output channel, number of the weight, input channel, place in the kernel) for each kept weight.
    auto each = [&](auto&& use) {
        for (int c = 0; c < out.c; ++c)
            for (uint32_t i = node.row[c]; i < node.row[c + 1]; ++i) {
                const int place = static_cast<int>(node.at(i, fan));
                use(c, i, c / out_group * in_group + place / window, place % window);
            }
    };

    Pass& forward = steps_[n].forward;
    forward.rows = out.h;
    forward.columns = out.w;
    forward.in_sy = k.sh;
    forward.in_sx = k.sw;
    forward.begin = node.row;
    forward.weights = node.weight;
    forward.offsets.reserve(node.weight.size());
    const ptrdiff_t stride = from.stride(), pitch = from.pitch();
    each([&](int, uint32_t, int channel, int tap) {
        const int y = tap / k.kw * k.dh - k.ph, x = tap % k.kw * k.dw - k.pw;
        forward.offsets.push_back(static_cast<int32_t>(channel * stride + y * pitch + x * lanes_));
    });
    if (gradient.born < 0) return;

    for (const auto& rows : phases(in.h, out.h, k.kh, k.sh, k.ph, k.dh))
        for (const auto& columns : phases(in.w, out.w, k.kw, k.sw, k.pw, k.dw)) {
            Pass pass;
            pass.y = rows.first;
            pass.x = columns.first;
            pass.sy = k.sh;
            pass.sx = k.sw;
            pass.rows = rows.count;
            pass.columns = columns.count;
            constexpr int32_t kNone = std::numeric_limits<int32_t>::min();
            std::vector<int32_t> shift(window, kNone);
            for (size_t i = 0; i < rows.taps.size(); ++i)
                for (size_t j = 0; j < columns.taps.size(); ++j)
                    shift[rows.taps[i] * k.kw + columns.taps[j]] =
                        rows.shifts[i] * static_cast<int32_t>(gradient.pitch()) + columns.shifts[j] * lanes_;
            pass.begin.assign(in.c + 2, 0);  // first the number of taps of each channel, two places on
            each([&](int, uint32_t, int channel, int tap) { pass.begin[channel + 2] += shift[tap] != kNone; });
            for (int c = 2; c < in.c + 2; ++c) pass.begin[c] += pass.begin[c - 1];
            pass.offsets.resize(pass.begin.back());
            pass.weights.resize(pass.begin.back());
            each([&](int c, uint32_t i, int channel, int tap) {
                if (shift[tap] == kNone) return;
                const uint32_t at = pass.begin[channel + 1]++;
                pass.offsets[at] = static_cast<int32_t>(c * gradient.stride()) + shift[tap];
                pass.weights[at] = node.weight[i];
            });
            pass.begin.pop_back();
            steps_[n].backward.push_back(std::move(pass));
        }
}

void Gradient::clear_around(const Map& map, float* arena) const {
    if (!(map.top | map.left | map.bottom | map.right)) return;
    const size_t pitch = map.pitch(), left = static_cast<size_t>(map.left) * lanes_, right = static_cast<size_t>(map.right) * lanes_;
    float* at = arena + map.at;
    for (int c = 0; c < map.shape.c; ++c, at += map.stride()) {
        std::memset(at, 0, map.top * pitch * sizeof(float));
        float* row = at + map.top * pitch;
        for (int y = 0; y < map.shape.h; ++y, row += pitch) {
            std::memset(row, 0, left * sizeof(float));
            std::memset(row + pitch - right, 0, right * sizeof(float));
        }
        std::memset(row, 0, map.bottom * pitch * sizeof(float));
    }
}

// `tile` says what else is done with the sums; its bits are of the whole output.
void Gradient::run(const Pass& pass, const Map& from, const Map& to, float* arena, Tile tile) const {
    const size_t w = to.shape.w;
    tile.offsets = pass.offsets.data();
    tile.weights = pass.weights.data();
    tile.begin = pass.begin.data();
    tile.channels = to.shape.c;
    tile.in_row = pass.in_sy * from.pitch();
    tile.in_column = static_cast<size_t>(pass.in_sx) * lanes_;
    tile.out_stride = to.stride();
    tile.out_row = pass.sy * to.pitch();
    tile.out_column = static_cast<size_t>(pass.sx) * lanes_;
    tile.bit_stride = to.shape.h * w;
    tile.bit_row = pass.sy * w;
    tile.bit_column = pass.sx;
    uint16_t* const signs = tile.signs;
    const uint16_t* const kept = tile.kept;
    const int step = pass.in_sx == 1 ? 0 : pass.in_sx == 2 ? 1 : 2;
    for (int x = 0, wide; x < pass.columns; x += 1 << wide) {
        for (wide = kTileColumns - 1; 1 << wide > std::min(pass.columns - x, kernels_.most_pixels); --wide) {}
        for (int y = 0, high; y < pass.rows; y += 1 << high) {
            for (high = kTileRows - 1; 1 << high > pass.rows - y || 1 << (high + wide) > kernels_.most_pixels; --high) {}
            const size_t out_y = pass.y + static_cast<size_t>(y) * pass.sy, out_x = pass.x + static_cast<size_t>(x) * pass.sx;
            tile.base = arena + from.first() + y * tile.in_row + x * tile.in_column;
            tile.out = arena + to.first() + out_y * to.pitch() + out_x * lanes_;
            if (signs) tile.signs = signs + out_y * w + out_x;
            if (kept) tile.kept = kept + out_y * w + out_x;
            kernels_.tiles[(step * kTileRows + high) * kTileColumns + wide](tile);
        }
    }
}

// Calls row(channel, y, first float of the row in the map, first pixel of the row in a map without zeros around it).
template <class Row>
void Gradient::by_rows(const Map& to, const Row& row) const {
    for (int c = 0; c < to.shape.c; ++c)
        for (int y = 0; y < to.shape.h; ++y)
            row(c, y, to.first() + c * to.stride() + y * to.pitch(),
                (static_cast<size_t>(c) * to.shape.h + y) * to.shape.w);
}

void Gradient::forward(const float* images, int count, float* logits, uint8_t* tape, float* arena) const {
    const size_t image = image_floats(), classes = this->logits();
    for (size_t n = 0; n < network_.size(); ++n) {
        const Node& node = network_[n];
        const Step& step = steps_[n];
        if (!step.alone) continue;
        const Map& to = maps_[n];
        const Map* const from = node.in[0] < 0 ? nullptr : &maps_[value_[node.in[0]]];
        uint16_t* const signs = tape && step.relu ? reinterpret_cast<uint16_t*>(tape + step.signs) : nullptr;
        clear_around(to, arena);
        auto signs_at = [&](size_t pixel) { return signs ? signs + pixel : nullptr; };
        auto same = [&](const Map& map, int c, int y) { return arena + map.first() + c * map.stride() + y * map.pitch(); };
        switch (node.kind) {
            case Kind::input:
                by_rows(to, [&](int, int, size_t at, size_t pixel) {
                    float* const row = arena + at;
                    for (int x = 0; x < to.shape.w; ++x)
                        for (int i = 0; i < lanes_; ++i)
                            row[x * lanes_ + i] = i < count ? images[i * image + pixel + x] : 0.f;
                });
                break;
            case Kind::conv:
            case Kind::linear: {
                Tile tile{};
                tile.bias = node.bias.data();
                tile.relu = step.relu;
                tile.signs = signs;
                run(step.forward, *from, to, arena, tile);
                break;
            }
            case Kind::affine:
            case Kind::relu:
                by_rows(to, [&](int c, int y, size_t at, size_t pixel) {
                    const bool affine = node.kind == Kind::affine;
                    kernels_.affine(arena + at, same(*from, c, y), to.shape.w, affine ? node.scale[c] : 1.f,
                                    affine ? node.offset[c] : 0.f, step.relu, signs_at(pixel));
                });
                break;
            case Kind::add: {
                const Map& other = maps_[value_[node.in[1]]];
                by_rows(to, [&](int c, int y, size_t at, size_t pixel) {
                    kernels_.sum(arena + at, same(*from, c, y), same(other, c, y), to.shape.w, step.relu,
                                 signs_at(pixel));
                });
                break;
            }
            case Kind::pool:
                by_rows(to, [&](int c, int y, size_t at, size_t pixel) {
                    const float* const plane = same(*from, c, 0);
                    int32_t* const best =
                        tape ? reinterpret_cast<int32_t*>(tape + step.best) + pixel * lanes_ : nullptr;
                    if (node.maximum)
                        kernels_.max_row(plane, from->pitch(), node.rows[y], node.columns.data(), to.shape.w,
                                         arena + at, best);
                    else
                        kernels_.mean_row(plane, from->pitch(), node.rows[y], node.columns.data(), to.shape.w,
                                          arena + at);
                });
                break;
        }
    }
    const Map& last = maps_[value_.back()];
    by_rows(last, [&](int, int, size_t at, size_t pixel) {
        for (int x = 0; x < last.shape.w; ++x)
            for (int i = 0; i < count; ++i) logits[i * classes + pixel + x] = arena[at + x * lanes_ + i];
    });
}

void Gradient::backward(const float* gradients, int count, const uint8_t* tape, float* images, float* arena) const {
    const size_t image = image_floats(), classes = logits();
    std::vector<int> given(network_.size(), 0);  // gradients that have been added up, of each node
    const Map& last = gradients_[value_.back()];
    clear_around(last, arena);
    by_rows(last, [&](int, int, size_t at, size_t pixel) {
        for (int x = 0; x < last.shape.w; ++x)
            for (int i = 0; i < lanes_; ++i)
                arena[at + x * lanes_ + i] = i < count ? gradients[i * classes + pixel + x] : 0.f;
    });
    const Step& top = steps_[value_.back()];
    if (top.relu)
        by_rows(last, [&](int, int, size_t at, size_t pixel) {
            kernels_.keep(arena + at, last.shape.w, reinterpret_cast<const uint16_t*>(tape + top.signs) + pixel);
        });
    for (int n = static_cast<int>(network_.size()); n-- > 1;)
        if (steps_[n].alone && gradients_[n].born >= 0) give(n, tape, arena, given);
    const Map& first = gradients_[0];
    by_rows(first, [&](int, int, size_t at, size_t pixel) {
        for (int x = 0; x < first.shape.w; ++x)
            for (int i = 0; i < count; ++i) images[i * image + pixel + x] = arena[at + x * lanes_ + i];
    });
}

// Adds what node `n` gives to the gradients of what it reads. The last giver of a node leaves out what ReLU did.
void Gradient::give(int n, const uint8_t* tape, float* arena, std::vector<int>& given) const {
    const Node& node = network_[n];
    const Map& from = gradients_[n];
    for (int in : node.in) {
        if (in < 0) continue;
        const int source = value_[in];
        const Step& reader = steps_[source];
        const Map& to = gradients_[source];
        const bool add = given[source]++ > 0;
        const uint16_t* kept = nullptr;
        if (given[source] == reader.givers && reader.relu)
            kept = reinterpret_cast<const uint16_t*>(tape + reader.signs);
        if (!add) clear_around(to, arena);
        if (node.weighted()) {
            Tile tile{};
            tile.add = add;
            tile.kept = kept;
            for (const auto& pass : steps_[n].backward) run(pass, from, to, arena, tile);
            continue;
        }
        if (node.kind == Kind::pool) {
            if (!add)
                by_rows(to, [&](int, int, size_t at, size_t) {
                    std::memset(arena + at, 0, static_cast<size_t>(to.shape.w) * lanes_ * sizeof(float));
                });
            const auto* const best = reinterpret_cast<const int32_t*>(tape + steps_[n].best);
            by_rows(from, [&](int c, int y, size_t at, size_t pixel) {
                float* const plane = arena + to.first() + c * to.stride();
                if (node.maximum)
                    kernels_.give_max_row(plane, to.pitch(), node.rows[y], node.columns.data(), from.shape.w,
                                          arena + at, best + pixel * lanes_);
                else
                    kernels_.give_mean_row(plane, to.pitch(), node.rows[y], node.columns.data(), from.shape.w,
                                           arena + at);
            });
        } else {
            by_rows(to, [&](int c, int y, size_t at, size_t) {
                const float* const row = arena + from.first() + c * from.stride() + y * from.pitch();
                kernels_.give(arena + at, row, to.shape.w, node.kind == Kind::affine ? node.scale[c] : 1.f, add);
            });
        }
        if (kept)
            by_rows(to, [&](int, int, size_t at, size_t pixel) {
                kernels_.keep(arena + at, to.shape.w, kept + pixel);
            });
    }
}

}  // namespace hydraprune
