// Programs for one image and for groups of images, and the memory that calls of any thread run them in.
#pragma once
#include <memory>
#include <mutex>
#include <vector>

#include "gradient.h"
#include "program.h"

namespace hydraprune {

struct Aligned {
    explicit Aligned(size_t floats);
    Aligned(Aligned&& other) noexcept : data(other.data), floats(other.floats) { other.data = nullptr; }
    Aligned(const Aligned&) = delete;
    ~Aligned();
    float* data;
    size_t floats;
};

class Session {
  public:
    Session(const Kernels& kernels, int threads) : kernels_(kernels), threads_(threads) {}
    Session(const Session&) = delete;
    ~Session();
    Network& network() { return network_; }
    void finish();
    void run(const float* images, int batch, float* logits);
    // Instead of finish and run: logits, and from gradients towards them those towards the images.
    void differentiate();
    size_t tape_bytes(int batch) const;
    void forward(const float* images, int batch, float* logits, uint8_t* tape);
    void backward(const float* gradients, int batch, const uint8_t* tape, float* images);

    struct Memory {
        size_t weights, activations;
    };
    Memory memory();
    const char* method(int node) { return single_->method(node); }

  private:
    // Groups of `lanes` images: layers up to `split` image by image, from there all images side by side.
    struct Group {
        int lanes;
        std::unique_ptr<Program> before;  // null where split is 0
        std::unique_ptr<Program> behind;
        size_t cross_stride = 0;              // floats of what one image hands over
        std::vector<size_t> cross;            // where each handed-over node starts
    };
    struct Context {
        explicit Context(int threads) : team(threads) {}
        Team team;
        const int owner = process();
        std::vector<Aligned> arenas, scratches, crossings;
        size_t floats() const;
    };

    std::unique_ptr<Context> idle_context();
    std::unique_ptr<Context> take_context();
    void give_back(std::unique_ptr<Context> context);
    template <class Work>
    void by_groups(int batch, const Work& work);
    Plane image_plane() const;
    const Group* group_for(int images);
    std::unique_ptr<Group> plan_group(int lanes) const;
    void run_single(Context& context, const float* image, float* logits) const;
    void run_group(Context& context, const Group& group, const float* images, int count, float* logits) const;
    void grow(Context& context, const Group* group) const;
    void write_logits(const Program& program, const float* arena, int lanes, int count, float* logits) const;

    const Kernels& kernels_;
    const int threads_;
    Network network_;
    std::unique_ptr<Program> single_;
    std::unique_ptr<Group> group_;
    std::unique_ptr<Gradient> gradient_;
    bool grouped_ = false;  // whether that has been planned
    std::mutex mutex_;
    std::vector<std::unique_ptr<Context>> idle_;
    size_t most_floats_ = 0;
};

}  // namespace hydraprune
