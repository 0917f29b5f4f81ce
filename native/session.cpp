#include "session.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>

namespace hydraprune {

Aligned::Aligned(size_t n) : floats(n) {
    const size_t bytes = (n * sizeof(float) + 63) / 64 * 64;
    data = static_cast<float*>(std::aligned_alloc(64, std::max<size_t>(bytes, 64)));
    if (!data) throw std::bad_alloc();
    std::memset(data, 0, std::max<size_t>(bytes, 64));
}

Aligned::~Aligned() { std::free(data); }

// A child that was forked cannot stop its parent's threads: they are not there. Their memory is lost to it.
Session::~Session() {
    while (!idle_.empty()) idle_context();
}

std::unique_ptr<Session::Context> Session::idle_context() {
    while (!idle_.empty()) {
        std::unique_ptr<Context> context = std::move(idle_.back());
        idle_.pop_back();
        if (context->owner == process()) return context;
        context.release();
    }
    return nullptr;
}

std::unique_ptr<Session::Context> Session::take_context() {
    {
        std::lock_guard<std::mutex> lock(mutex_);
        if (std::unique_ptr<Context> context = idle_context()) return context;
    }
    return std::make_unique<Context>(threads_);
}

void Session::give_back(std::unique_ptr<Context> context) {
    std::lock_guard<std::mutex> lock(mutex_);
    most_floats_ = std::max(most_floats_, context->floats());
    idle_.push_back(std::move(context));
}

namespace {

// Floats that the packed weights of one network may take, for each kept weight and besides: a small file may ask for far
// more. VGG16-BN, WRN-28-4 and ResNet-18 at 0 to 99.9 % take at most 8 for each kept weight.
constexpr size_t kFloatsAWeight = 32, kFloatsBesides = size_t{1} << 24;

}  // namespace

void Session::finish() {
    size_t room = kFloatsBesides;
    for (const auto& node : network_) room += kFloatsAWeight * node.weight.size();
    single_ = std::make_unique<Program>(network_, 0, static_cast<int>(network_.size()), 1, kernels_, threads_, room);
}

// The layer from which on it pays to hold images side by side: where maps are small, vectors of pixels are half empty.
std::unique_ptr<Session::Group> Session::plan_group(int lanes) const {
    const int size = static_cast<int>(network_.size());
    std::vector<double> behind(size + 1, 0), before(size + 1, 0);
    auto cost = [&](int n, int side) {
        const Node& node = network_[n];
        return node.weighted() ? choose(node, network_[node.in[0]].shape, side, kernels_).cost / side : 0.;
    };
    for (int n = 0; n < size; ++n) before[n + 1] = before[n] + cost(n, 1);
    for (int n = size; n-- > 0;) behind[n] = behind[n + 1] + cost(n, lanes);
    int split = size;
    double least = before[size];
    for (int n = 0; n < size; ++n)
        if (network_[n].root() && before[n] + behind[n] < least) least = before[n] + behind[n], split = n;
    if (split == size || least > .9 * before[size]) return nullptr;
    auto group = std::make_unique<Group>();
    group->lanes = lanes;
    group->behind = std::make_unique<Program>(network_, split, size, lanes, kernels_, threads_, single_->room());
    if (split == 0) return group;
    group->before = std::make_unique<Program>(network_, 0, split, 1, kernels_, 1, group->behind->room());
    for (int n : group->behind->imports()) {
        group->cross.push_back(group->cross_stride);
        group->cross_stride += network_[n].shape.c * group->before->stored(n).stride;
    }
    // An odd number of cache lines, so that the images of a group do not fall into the same sets of the cache.
    group->cross_stride = (group->cross_stride + 31) / 32 * 32 + 16;
    return group;
}

const Session::Group* Session::group_for(int images) {
    if (images < kernels_.lanes * 3 / 4) return nullptr;
    if (!grouped_) {
        grouped_ = true;
        try {
            group_ = plan_group(kernels_.lanes);
        } catch (const std::length_error&) {  // too large side by side: images go through one by one
        }
    }
    return group_.get();
}

size_t Session::Context::floats() const {
    size_t sum = 0;
    for (const auto* part : {&arenas, &scratches, &crossings})
        for (const auto& memory : *part) sum += memory.floats;
    return sum;
}

namespace {

void at_least(std::vector<Aligned>& memory, size_t count, size_t floats) {
    if (memory.size() == count && memory.front().floats >= floats) return;
    const size_t larger = memory.empty() ? floats : std::max(floats, memory.front().floats);
    memory.clear();
    memory.reserve(count);
    for (size_t i = 0; i < count; ++i) memory.emplace_back(larger);
}

}  // namespace

void Session::grow(Context& context, const Group* group) const {
    size_t arena = single_->arena_floats(), scratch = single_->scratch_floats();
    if (group) {
        scratch = std::max(scratch, group->behind->scratch_floats());
        if (group->before) {
            arena = std::max(arena, group->before->arena_floats());
            scratch = std::max(scratch, group->before->scratch_floats());
            at_least(context.crossings, 1, group->cross_stride * group->lanes);
        }
        // One arena for each thread serves images one by one; the first is also that of the group.
        arena = std::max(arena, group->behind->arena_floats());
    }
    at_least(context.arenas, group && group->before ? threads_ : std::max<size_t>(context.arenas.size(), 1), arena);
    at_least(context.scratches, threads_, scratch);
}

void Session::write_logits(const Program& program, const float* arena, int lanes, int count, float* logits) const {
    const int last = static_cast<int>(network_.size()) - 1;
    const Shape& shape = network_[last].shape;
    const Plane& plane = program.stored(last);
    const float* from = program.plain(last, arena);
    for (int i = 0; i < count; ++i)
        for (int c = 0; c < shape.c; ++c)
            for (int y = 0; y < shape.h; ++y)
                for (int x = 0; x < shape.w; ++x)
                    *logits++ = from[c * plane.stride + (static_cast<size_t>(y) * plane.pitch + x) * lanes + i];
}

Plane Session::image_plane() const {
    const Shape& s = network_[0].shape;
    return {s.h, s.w, s.w, 1, static_cast<size_t>(s.h) * s.w};
}

void Session::run_single(Context& context, const float* image, float* logits) const {
    std::vector<float*> scratch;
    for (auto& memory : context.scratches) scratch.push_back(memory.data);
    single_->run({{image, image_plane(), 0, 1}}, context.arenas[0].data, scratch.data(), context.team);
    write_logits(*single_, context.arenas[0].data, 1, 1, logits);
}

void Session::run_group(Context& context, const Group& group, const float* images, int count, float* logits) const {
    const size_t image = network_[0].shape.size();
    std::vector<float*> scratch;
    for (auto& memory : context.scratches) scratch.push_back(memory.data);
    std::vector<Program::Input> inputs;
    if (group.before) {
        float* const cross = context.crossings[0].data;
        context.team.run(count, [&](int i, int thread) {
            float* const arena = context.arenas[thread].data;
            Team alone(1);
            group.before->run({{images + i * image, image_plane(), 0, 1}}, arena, &scratch[thread], alone);
            for (size_t k = 0; k < group.cross.size(); ++k) {
                const int node = group.behind->imports()[k];
                const Shape& shape = network_[node].shape;
                const size_t floats = shape.c * group.before->stored(node).stride;
                std::memcpy(cross + i * group.cross_stride + group.cross[k], group.before->plain(node, arena),
                            floats * sizeof(float));
            }
        });
        for (size_t k = 0; k < group.cross.size(); ++k)
            inputs.push_back({cross + group.cross[k], group.before->stored(group.behind->imports()[k]),
                              group.cross_stride, count});
    } else {
        inputs.push_back({images, image_plane(), image, count});
    }
    group.behind->run(inputs, context.arenas[0].data, scratch.data(), context.team);
    write_logits(*group.behind, context.arenas[0].data, group.lanes, count, logits);
}

void Session::run(const float* images, int batch, float* logits) {
    const size_t image = network_[0].shape.size(), classes = network_.back().shape.size();
    std::unique_ptr<Context> context = take_context();
    for (int done = 0; done < batch;) {
        const Group* group;
        {
            std::lock_guard<std::mutex> lock(mutex_);
            group = group_for(batch - done);
        }
        grow(*context, group);
        const int count = group ? std::min(group->lanes, batch - done) : 1;
        if (group) run_group(*context, *group, images + done * image, count, logits + done * classes);
        else run_single(*context, images + done * image, logits + done * classes);
        done += count;
    }
    give_back(std::move(context));
}

void Session::differentiate() { gradient_ = std::make_unique<Gradient>(network_, kernels_); }

size_t Session::tape_bytes(int batch) const {
    return (static_cast<size_t>(batch) + gradient_->lanes() - 1) / gradient_->lanes() * gradient_->tape_bytes();
}

// Fewer multiply-adds of vectors than this, some half a millisecond, are sooner done than another thread is awake.
constexpr size_t kAlone = size_t{1} << 19;

// Calls work(first image, images, number of the group, arena) for each group, on all threads.
template <class Work>
void Session::by_groups(int batch, const Work& work) {
    const int lanes = gradient_->lanes(), groups = (batch + lanes - 1) / lanes;
    std::unique_ptr<Context> context = take_context();
    at_least(context->arenas, std::max<size_t>(context->arenas.size(), std::min(threads_, std::max(groups, 1))),
             gradient_->arena_floats());
    auto group_on = [&](int group, int thread) {
        const int first = group * lanes;
        work(first, std::min(lanes, batch - first), group, context->arenas[thread].data);
    };
    if (gradient_->work() * groups < kAlone)
        for (int group = 0; group < groups; ++group) group_on(group, 0);
    else
        context->team.run(groups, group_on);
    give_back(std::move(context));
}

void Session::forward(const float* images, int batch, float* logits, uint8_t* tape) {
    by_groups(batch, [&](int first, int count, size_t group, float* arena) {
        gradient_->forward(images + first * gradient_->image_floats(), count, logits + first * gradient_->logits(),
                           tape ? tape + group * gradient_->tape_bytes() : nullptr, arena);
    });
}

void Session::backward(const float* gradients, int batch, const uint8_t* tape, float* images) {
    by_groups(batch, [&](int first, int count, size_t group, float* arena) {
        gradient_->backward(gradients + first * gradient_->logits(), count, tape + group * gradient_->tape_bytes(),
                            images + first * gradient_->image_floats(), arena);
    });
}

Session::Memory Session::memory() {
    std::lock_guard<std::mutex> lock(mutex_);
    Memory memory{single_->weight_bytes(), 0};
    for (const auto& node : network_)
        memory.weights += 4 * (node.weight.size() + node.position.size() + node.row.size() + node.bias.size());
    if (group_) memory.weights += group_->behind->weight_bytes() + (group_->before ? group_->before->weight_bytes() : 0);
    memory.activations = std::max(most_floats_, single_->arena_floats() + threads_ * single_->scratch_floats()) * 4;
    return memory;
}

}  // namespace hydraprune
