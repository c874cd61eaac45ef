// What a training step on a CPU spends its time on, forward and backward, and the table through which one instruction
// set's build of it is reached. Everything is float32; gradients are written, never added to, unless it says so.
#pragma once
#include <cstdint>
#include <vector>

#include "kernels.h"

namespace wootz {

// Element (i, j) is data[i * down + j * right]: a matrix, a part of one, or its transpose.
struct MatrixView {
    const float* data;
    long down, right;
};

// c = a b, or c += a b: a is (rows, depth), b (depth, columns), c (rows, columns) with `stride` numbers from row to row.
struct Product {
    long rows, columns, depth;
    MatrixView a, b;
    float* c;
    long stride;
    bool adds;
};

// Queries, keys and values of documents laid end to end. Token t's head h starts at data[t * stride + h * head_dim].
struct Heads {
    float* data;
    long stride;
};

struct PackedAttention {
    std::vector<long> lengths;  // of the documents
    long heads, kv_heads, head_dim;
    float scale;
    Heads q, k, v, out;
    float* logsumexp;  // (tokens, heads), of the scaled scores
};

struct PackedAttentionGradients {
    Heads out, q, k, v;
};

struct TrainingKernels {
    void (*product)(const Product& product, int threads);

    // Causal inside each document.
    void (*attention)(const PackedAttention& attention, int threads);
    void (*attention_backward)(const PackedAttention& attention, const PackedAttentionGradients& gradients, int threads);

    // y = x / rms(x) * weight over rows of `size`; `inverse` (rows) keeps 1 / rms for the way back.
    void (*norm)(const float* x, const float* weight, float eps, long rows, long size, float* y, float* inverse,
                 int threads);
    void (*norm_backward)(const float* x, const float* weight, const float* inverse, const float* dy, long rows,
                          long size, float* dx, float* dweight, int threads);

    // y = act(gate) * up: x is (rows, 2 width), gates first, y (rows, width).
    void (*gated)(Activation activation, const float* x, long rows, long width, float* y, int threads);
    void (*gated_backward)(Activation activation, const float* x, const float* dy, long rows, long width, float* dx,
                           int threads);

    // The first `dim` numbers of every head turned by its token's angles, cos and sin (rows, dim) with the signs of
    // "rotate half" in sin; the rest copied. `back` turns the other way. y is (rows, heads, head_dim), contiguous.
    void (*rotate)(const Heads& x, long rows, long heads, long head_dim, const float* cos, const float* sin, long dim,
                   bool back, float* y, int threads);

    // Logits (rows, vocabulary) become the gradient of the mean of `of` such losses, (softmax - one-hot) / of; returns
    // the sum of the rows' cross-entropies.
    double (*cross_entropy)(float* logits, const int64_t* labels, long rows, long vocabulary, long of, int threads);
};

}  // namespace wootz
