// A network as it was given: nodes in the order of their computation, each with its shape and its numbers.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "span.h"

namespace hydraprune {

struct Shape {
    int c, h, w;
    size_t size() const { return static_cast<size_t>(c) * h * w; }
    bool operator==(const Shape& other) const { return c == other.c && h == other.h && w == other.w; }
};

enum class Kind { input, conv, linear, affine, relu, add, pool };

// A convolution's window: kernel, stride, padding above and to the left, dilation.
struct Window {
    int kh, kw, sh, sw, ph, pw, dh, dw;
    bool operator==(const Window& o) const {
        return kh == o.kh && kw == o.kw && sh == o.sh && sw == o.sw && ph == o.ph && pw == o.pw && dh == o.dh &&
               dw == o.dw;
    }
};

struct Node {
    explicit Node(Kind what) : kind(what) {}

    Kind kind;
    int in[2] = {-1, -1};
    Shape shape{};

    // conv, linear: the kept weights of each output, (input, ky, kx) as one number in C order
    Window window{1, 1, 1, 1, 0, 0, 1, 1};
    int groups = 1;
    std::vector<uint32_t> row;       // first kept weight of each output, and one behind the last
    std::vector<uint32_t> position;  // empty where every weight is kept
    std::vector<float> weight;
    std::vector<float> bias;

    std::vector<float> scale, offset;  // affine, one for each channel

    bool maximum = false;  // pool
    std::vector<Span> rows, columns;

    uint32_t at(size_t kept, size_t fan_in) const {
        return position.empty() ? static_cast<uint32_t>(kept % fan_in) : position[kept];
    }
    bool weighted() const { return kind == Kind::conv || kind == Kind::linear; }
    bool root() const { return kind == Kind::input || weighted(); }
};

using Network = std::vector<Node>;

}  // namespace hydraprune
