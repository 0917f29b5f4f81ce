// The C interface. The caller has checked shapes and positions; shapes are looked at once more, since kernels that are
// told wrong ones write where they must not. Every function that can fail returns a negative number:
// -1 no memory, -2 the network is too large, -3 no more threads, -4 a node does not fit the one that it reads.
#include <cstring>
#include <new>
#include <stdexcept>
#include <system_error>

#include "session.h"

#if defined(_WIN32)
#define EXPORT extern "C" __declspec(dllexport)
#else
#define EXPORT extern "C" __attribute__((visibility("default")))
#endif

using namespace hydraprune;

namespace {

const Kernels* kernels_named(const char* name) {
    const Kernels* const all[] = {avx512_kernels(), avx2_kernels(), portable_kernels()};
    for (const Kernels* kernels : all)
        if (kernels && (!*name || !std::strcmp(name, kernels->name))) return kernels;
    return nullptr;
}

template <class F>
int guarded(const F& work) {
    try {
        return work();
    } catch (const std::bad_alloc&) {
        return -1;
    } catch (const std::system_error&) {
        return -3;
    } catch (...) {
        return -2;
    }
}

constexpr int kMisfit = -4;

// Whether node `in` is there and has the shape.
bool has_shape(Session* session, int in, const Shape& shape) {
    const Network& network = session->network();
    return in >= 0 && static_cast<size_t>(in) < network.size() && network[in].shape == shape;
}

// `count` spans (begin, end), each with at least one of the `side` pixels in it.
bool inside(const int* spans, int count, int side) {
    for (int i = 0; i < count; ++i)
        if (spans[2 * i] < 0 || spans[2 * i] >= spans[2 * i + 1] || spans[2 * i + 1] > side) return false;
    return count > 0;
}

int append(Session* session, Node&& node) {
    session->network().push_back(std::move(node));
    return static_cast<int>(session->network().size()) - 1;
}

}  // namespace

// Name of the kernels that `wanted` (or "", the best) stands for on this machine; null if it lacks them.
EXPORT const char* hp_kernels(const char* wanted) {
    const Kernels* kernels = kernels_named(wanted);
    return kernels ? kernels->name : nullptr;
}

EXPORT Session* hp_new(const char* wanted, int threads) {
    const Kernels* kernels = kernels_named(wanted);
    return kernels ? new (std::nothrow) Session(*kernels, threads) : nullptr;
}

EXPORT void hp_free(Session* session) { delete session; }

EXPORT int hp_input(Session* session, int c, int h, int w) {
    return guarded([&] {
        Node node(Kind::input);
        node.shape = {c, h, w};
        return append(session, std::move(node));
    });
}

// `window` is kh, kw, sh, sw, ph, pw, dh, dw, or null for a linear layer. `positions` null: every weight is kept.
EXPORT int hp_weighted(Session* session, int in, int c, int h, int w, const int* window, int groups,
                       const uint32_t* rows, const uint32_t* positions, const float* weights, const float* bias) {
    return guarded([&] {
        Node node(window ? Kind::conv : Kind::linear);
        node.in[0] = in;
        node.shape = {c, h, w};
        if (window)
            node.window = {window[0], window[1], window[2], window[3], window[4], window[5], window[6], window[7]};
        node.groups = groups;
        node.row.assign(rows, rows + c + 1);
        const size_t kept = node.row[c];
        if (positions) node.position.assign(positions, positions + kept);
        node.weight.assign(weights, weights + kept);
        node.bias.assign(bias, bias + c);
        return append(session, std::move(node));
    });
}

// What works on every number for itself says the shape c, h, w that its input must have.
EXPORT int hp_affine(Session* session, int in, const float* scale, const float* offset, int c, int h, int w) {
    return guarded([&] {
        if (!has_shape(session, in, {c, h, w})) return kMisfit;
        Node node(Kind::affine);
        node.in[0] = in;
        node.shape = {c, h, w};
        node.scale.assign(scale, scale + node.shape.c);
        node.offset.assign(offset, offset + node.shape.c);
        return append(session, std::move(node));
    });
}

EXPORT int hp_relu(Session* session, int in, int c, int h, int w) {
    return guarded([&] {
        if (!has_shape(session, in, {c, h, w})) return kMisfit;
        Node node(Kind::relu);
        node.in[0] = in;
        node.shape = {c, h, w};
        return append(session, std::move(node));
    });
}

EXPORT int hp_add(Session* session, int one, int other, int c, int h, int w) {
    return guarded([&] {
        if (!has_shape(session, one, {c, h, w}) || !has_shape(session, other, {c, h, w})) return kMisfit;
        Node node(Kind::add);
        node.in[0] = one;
        node.in[1] = other;
        node.shape = {c, h, w};
        return append(session, std::move(node));
    });
}

// rows: h times (begin, end); columns: w times. The factors multiply the sum of a window. c, in_h, in_w: of the input.
EXPORT int hp_pool(Session* session, int in, int maximum, int h, int w, const int* rows, const float* row_factors,
                   const int* columns, const float* column_factors, int c, int in_h, int in_w) {
    return guarded([&] {
        if (!has_shape(session, in, {c, in_h, in_w}) || !inside(rows, h, in_h) || !inside(columns, w, in_w))
            return kMisfit;
        Node node(Kind::pool);
        node.in[0] = in;
        node.maximum = maximum;
        node.shape = {c, h, w};
        for (int i = 0; i < h; ++i) node.rows.push_back({rows[2 * i], rows[2 * i + 1], row_factors[i]});
        for (int i = 0; i < w; ++i) node.columns.push_back({columns[2 * i], columns[2 * i + 1], column_factors[i]});
        return append(session, std::move(node));
    });
}

// Plan the network; the last node is its output.
EXPORT int hp_finish(Session* session) {
    return guarded([&] {
        session->finish();
        return 0;
    });
}

EXPORT int hp_run(Session* session, const float* images, int batch, float* logits) {
    return guarded([&] {
        session->run(images, batch, logits);
        return 0;
    });
}

// Instead of hp_finish: plan the network and its gradient towards the images.
EXPORT int hp_differentiate(Session* session) {
    return guarded([&] {
        try {
            session->differentiate();
        } catch (const std::invalid_argument&) {
            return kMisfit;
        }
        return 0;
    });
}

EXPORT uint64_t hp_tape_bytes(Session* session, int batch) { return session->tape_bytes(batch); }

// `tape`, of hp_tape_bytes, takes what hp_backward needs of this pass; null keeps nothing.
EXPORT int hp_forward(Session* session, const float* images, int batch, float* logits, uint8_t* tape) {
    return guarded([&] {
        session->forward(images, batch, logits, tape);
        return 0;
    });
}

EXPORT int hp_backward(Session* session, const float* gradients, int batch, const uint8_t* tape, float* images) {
    return guarded([&] {
        session->backward(gradients, batch, tape, images);
        return 0;
    });
}

// Bytes of weights and of activations so far.
EXPORT void hp_memory(Session* session, uint64_t* bytes) {
    const auto memory = session->memory();
    bytes[0] = memory.weights;
    bytes[1] = memory.activations;
}

// How a convolution or linear layer is computed: "sparse" or "dense".
EXPORT const char* hp_method(Session* session, int node) { return session->method(node); }
