// Nodes [first, last) of a network, planned for one set of kernels and one number of images side by side.
//
// Lanes. With lanes = 1 a plane is the map of one channel of one image, and vectors run along its pixels. With more,
// every pixel holds that many images and vectors run along the images.
//
// Pipelines. Whatever follows a convolution or linear layer and works on each channel for itself (affine, ReLU, sum,
// pooling) runs on a block of channels while these are in the first cache, and is then written down in the form in
// which its readers want it: plain, for sums and linear layers, or as copies, for convolutions.
//
// What a convolution reads. For each kept weight it reads its input as one run of vectors. Where its stride is 1 that is
// the plain map with zeros between rows and channels: the zero behind a row is the padding of that row and of the next.
// A run then covers the zeros too. On small maps these would cost more than they save, and strides need every second
// pixel: there the input is written once for each column of the kernel and each phase of the stride.
#pragma once
#include <memory>
#include <vector>

#include "kernels.h"
#include "network.h"
#include "team.h"

namespace hydraprune {

// How the planes of a node lie in memory, in floats.
struct Plane {
    int h, w, pitch, lanes;
    size_t stride;    // from one channel to the next
    size_t lead = 0;  // zeros before the first
};

enum class Method { sparse, dense, sparse_each, dense_each };

// The quicker way to compute a convolution or linear layer and what it costs, in multiply-adds of one vector.
struct Choice {
    Method method;
    double cost;
    bool direct = false;  // reads the plain map
};
Choice choose(const Node& node, const Shape& in, int lanes, const Kernels& kernels);

// The input of a convolution as it wants to read it.
struct Layout {
    struct Copy {
        int phase_y, column;  // the first pixel it takes is (phase_y - ph, column - pw)
        int rows;
        size_t dst;
        std::vector<uint32_t> masks;  // of the whole copy where it is a shift of the plane, else of a row
    };
    Window window;
    int out_h, out_w;
    int pitch;      // pixels of a row of a copy
    size_t stride = 0;  // floats of all copies of one channel
    std::vector<Copy> copies;
    std::vector<Shift> moves;  // the shifted ones
    std::vector<size_t> tap_offset;  // floats, from the start of the channel
};

class Program {
  public:
    // `plain_input` are nodes before `first` that the range reads; they are given to `run` as planes of lanes 1.
    // `room`: floats that packed weights may take.
    Program(const Network& network, int first, int last, int lanes, const Kernels& kernels, int threads, size_t room);

    struct Input {
        const float* data;    // image, or planes of the first of `lanes` images
        Plane plane;
        size_t image_stride;  // floats from one image to the next
        int images;           // that are really there
    };

    size_t arena_floats() const { return arena_floats_; }
    size_t scratch_floats() const { return scratch_floats_; }
    size_t weight_bytes() const;
    size_t room() const { return room_; }  // what is left of it
    const std::vector<int>& imports() const { return imports_; }
    int first() const { return first_; }
    int last() const { return last_; }
    const char* method(int node) const;

    // `arena` and one `scratch` for each thread are aligned; inputs by node, in the order of `imports()`.
    void run(const std::vector<Input>& inputs, float* arena, float* const* scratch, Team& team) const;
    // Planes of a node that is read behind the range; valid until the next run.
    const float* plain(int node, const float* arena) const;
    const Plane& stored(int node) const { return stored_[node]; }

  private:
    struct Op {
        enum Type { relu, affine, add, pool, plain, copies } type;
        int node, from;         // from: slot
        int to = -1;            // slot
        int summand = -1;       // add: the other node, in
        int other = -1;         // this slot, or
        int other_buffer = -1;  // this buffer
        int buffer = -1;
        int layout = -1;
        bool rectify = false;  // affine, add
    };
    struct Conv {  // how a convolution or linear layer is computed
        Method method = Method::sparse;
        int layout = -1;  // or plain where < 0
        int buffer = -1;
        int depth = 1;    // blocks of input channels, so that what a tile reads stays in the first cache
        int vectors = 0;  // of a run: whole plane, or row of the output
        int tile = 0;
        bool half = false;  // a run is no longer than half a vector
        int pixels = 1;  // *_each: outputs of a channel
        bool relu = false;
        std::vector<uint16_t> narrow;  // offsets of the taps, where they fit
        std::vector<uint32_t> wide;    // else
        std::vector<float> weights;    // of the taps; dense: [block][tap][channel]
        std::vector<size_t> start;     // first float of each block of input channels
        std::vector<uint32_t> begin, end;  // [row class or block of input channels][channel]
        std::vector<int> row_class;        // [row of the output]
        std::vector<float> bias;
        std::vector<uint32_t> offsets;    // dense
        std::vector<size_t> row_taps[2];  // dense: first tap and one behind the last of each row class
    };
    struct Pipeline {
        int root = 0;
        int import = -1;
        int channels = 0, block = 1;
        Conv conv;
        std::vector<Op> ops;
        std::vector<size_t> slot;  // floats from the start of the scratch
        size_t slot_end = 0;
        int root_slot = 0;
    };
    struct Buffer {
        size_t floats;
        int born, dies;
        size_t at = 0;
    };

    void plan_planes(const std::vector<std::vector<int>>& users);
    void plan_pipelines();
    void plan_copies(Layout& layout, int in);
    int layout_for(int node, const Node& conv);
    void plan_conv(Pipeline& pipeline);
    void pack_each(const Node& node, Conv& conv, bool dense);
    void pack_sparse(const Node& node, Conv& conv, int block);
    void pack_dense(const Node& node, Conv& conv);
    size_t taken(double floats);
    void narrow_offsets(Conv& conv) const;
    void plan_block(Pipeline& pipeline);
    void plan_slots(Pipeline& pipeline);
    void plan_arena();
    int plain_buffer(int node);

    void run_block(const Pipeline& p, int c0, int count, const std::vector<Input>& inputs, float* arena,
                   float* scratch) const;
    void run_add(const Pipeline& p, const Op& op, int c0, int count, const float* arena, float* scratch) const;
    void run_root(const Pipeline& p, int c0, int count, const std::vector<Input>& inputs, const float* arena,
                  float* out) const;
    void run_conv(const Pipeline& p, int c0, int count, const float* arena, float* out) const;
    void run_pool(const Op& op, const Plane& from, const Plane& to, const float* in, float* out, int count) const;
    void write_copies(const Layout& layout, const Plane& from, const float* in, float* out, int count) const;
    void write_plain(int node, const float* in, float* buffer, int c0, int count) const;

    const Network& network_;
    const int first_, last_, lanes_, threads_;
    const Kernels& kernels_;
    std::vector<Pipeline> pipelines_;
    std::vector<int> pipeline_of_;      // [node]
    std::vector<Choice> choice_;        // [node]
    std::vector<Plane> slot_, stored_;  // [node] in the scratch, and written down
    std::vector<std::vector<uint32_t>> stored_masks_;  // [node] where the two have the same pitch
    std::vector<int> plain_buffer_;     // [node], -1: not needed
    std::vector<std::vector<int>> layouts_of_;  // [node] indices into layouts_
    std::vector<std::unique_ptr<Layout>> layouts_;
    std::vector<int> layout_buffer_;
    std::vector<Buffer> buffers_;
    std::vector<int> imports_;
    size_t arena_floats_ = 0, scratch_floats_ = 0;
    size_t room_;
};

}  // namespace hydraprune
