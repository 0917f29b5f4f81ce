// A network and its gradient towards the images, for groups of images side by side: what an attack asks for.
//
// Every value is a map with a vector of `lanes` images at each pixel and with as many zeros around it as the convolutions
// that read it reach beyond it, so that no kernel knows borders. Convolutions go through lists of kept weights, those of
// the gradient through the same weights listed by input; with a stride there is a list for each of its phases. Of the
// forward pass a tape keeps which numbers ReLU let through, a bit each, and where each maximum was: nothing else is
// needed, for the weights are constants.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels.h"
#include "network.h"

namespace hydraprune {

class Gradient {
  public:
    // Throws std::invalid_argument where nodes do not fit each other, std::length_error where a map is too large.
    Gradient(const Network& network, const Kernels& kernels);

    int lanes() const { return lanes_; }
    size_t arena_floats() const { return arena_floats_; }
    size_t tape_bytes() const { return tape_bytes_; }  // of a group
    size_t work() const { return work_; }  // of a group: multiply-adds of a vector in one pass, and vectors written
    size_t image_floats() const { return network_[0].shape.size(); }
    size_t logits() const { return network_.back().shape.size(); }

    // Of `count` <= lanes images; the arena is aligned, the tape may be null.
    void forward(const float* images, int count, float* logits, uint8_t* tape, float* arena) const;
    // Sums over logits of gradient * (d logit / d pixel).
    void backward(const float* gradients, int count, const uint8_t* tape, float* images, float* arena) const;

  private:
    struct Map {
        Shape shape{};
        int lanes = 1, top = 0, left = 0, bottom = 0, right = 0;  // pixels of zeros around it
        int born = -1, dies = -1;  // steps of a pass; -1: there is none
        size_t at = 0;             // floats from the start of the arena
        size_t pitch() const { return static_cast<size_t>(left + shape.w + right) * lanes; }
        size_t stride() const { return static_cast<size_t>(top + shape.h + bottom) * pitch(); }
        size_t floats() const { return shape.c * stride(); }
        size_t first() const { return at + top * pitch() + static_cast<size_t>(left) * lanes; }
        void widen(int above, int before, int below, int behind);
        void live(int step);
    };
    // Outputs (y, x) + i * (sy, sx), one list of taps for each channel; neighbours read pixels in_sy, in_sx apart.
    struct Pass {
        int y = 0, x = 0, sy = 1, sx = 1, rows = 0, columns = 0;
        int in_sy = 1, in_sx = 1;
        std::vector<int32_t> offsets;
        std::vector<float> weights;
        std::vector<uint32_t> begin;
    };
    struct Phase {  // of a stride, along one side: outputs `first` + i * stride, and taps (kernel index, input - i)
        int first, count;
        std::vector<int> taps, shifts;
    };
    struct Step {
        bool alone = true;  // false: ReLU that was joined with its source
        bool relu = false;
        size_t signs = 0;   // of the tape, where relu
        size_t best = 0;    // of the tape, of a maximum
        Pass forward;
        std::vector<Pass> backward;
        int givers = 0;     // gradients that are added up in its own
    };

    static Window window_of(const Node& node, const Shape& in);
    static std::vector<Phase> phases(int side, int out, int kernel, int stride, int padding, int dilation);
    void check(const Node& node) const;
    void join();
    void plan_maps();
    void plan_tape();
    static size_t place(std::vector<Map>& maps);
    void pack(int n);
    size_t size_of(int n) const;

    void clear_around(const Map& map, float* arena) const;
    void run(const Pass& pass, const Map& from, const Map& to, float* arena, Tile tile) const;
    template <class Row>
    void by_rows(const Map& to, const Row& row) const;
    void give(int n, const uint8_t* tape, float* arena, std::vector<int>& given) const;

    const Network& network_;
    const GroupKernels& kernels_;
    const int lanes_;
    std::vector<Step> steps_;            // [node]
    std::vector<int> value_;             // [node] the node that has its map
    std::vector<Map> maps_, gradients_;  // [node]
    size_t arena_floats_ = 0, tape_bytes_ = 0, work_ = 0;
};

}  // namespace hydraprune
