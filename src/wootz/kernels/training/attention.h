// Causal attention over documents laid end to end, and its gradients. A task is one document's key/value head with the
// query heads that share it. Keys and values become panels once (`product.h`), for all queries; these come in blocks
// whose scores, of all keys before them, stay in the second-level cache. Forward keeps the logarithm of each softmax's sum,
// so that going back the weights are made again instead of read (FlashAttention-2, arXiv 2307.08691).

#pragma once
#include "training/product.h"

namespace wootz::WOOTZ_ISA {
namespace {

constexpr long queries_at_once = 4 * tile_down >= 48 ? 4 * tile_down : 8 * tile_down;

// All of a head's keys or values as the right side of products, in panels that go through their whole depth.
struct Side {
    Scratch memory;
    float* panels = nullptr;
    long step = 0;

    // (depth, columns) from a matrix; any number of first columns, or of first rows, can then be multiplied with.
    void fill(const MatrixView& b, long depth, long columns) {
        step = (depth + 3) / 4 * 4 * tile_right;
        panels = memory.of(panels_of(columns, tile_right) * step);
        for (long j = 0; j < columns; j += tile_right)
            fill_panel<tile_right>(b.data + j * b.right, b.right, b.down, std::min(tile_right, columns - j), depth,
                                   panels + j / tile_right * step);
    }
};

struct AttentionWork {
    Side keys, keys_across, values, values_across, queries, grads;
    Scratch panels, scores, weights;

    // c = or += a b, for b's first `depth` rows and first `columns`.
    void multiply(const MatrixView& a, const Side& b, long rows, long columns, long depth, float* c, long stride,
                  bool adds) {
        float* const a_panels = panels.of((rows + tile_down) * depth_at_once);
        for (long k = 0; k < depth; k += depth_at_once) {
            const long here = std::min(depth_at_once, depth - k);
            // What b's panels have behind an odd end is met by zeros.
            fill_rows(a, 0, rows, k, here, a_panels);
            product_of_panels(rows, columns, here, a_panels, b.panels + k * tile_right, b.step, c, stride, adds || k > 0);
        }
    }
};

// scores[i] = e^(scale * scores[i] - shift) for the first `count` of `width` keys, 0 for those behind; returns the sum.
inline float exponentials(float* scores, long count, long width, float scale, float shift) {
    vec total = {};
    long i = 0;
    for (; i + lanes <= count; i += lanes) {
        const vec e = exp_of(load(scores + i) * scale - shift);
        store(scores + i, e);
        total += e;
    }
    float rest = 0;
    for (; i < count; ++i) rest += scores[i] = exp_of(splat(scores[i] * scale - shift))[0];
    std::fill(scores + count, scores + width, 0.0f);
    return sum(total) + rest;
}

inline float largest_of_row(const float* x, long count) {
    float top = x[0];
    long i = 0;
    if (count >= lanes) {
        vec tops = load(x);
        for (i = lanes; i + lanes <= count; i += lanes) tops = larger(load(x + i), tops);
        top = largest(tops);
    }
    for (; i < count; ++i) top = std::max(top, x[i]);
    return top;
}

inline float dot(const float* a, const float* b, long count) {
    vec total = {};
    long i = 0;
    for (; i + lanes <= count; i += lanes) total += load(a + i) * load(b + i);
    float rest = 0;
    for (; i < count; ++i) rest += a[i] * b[i];
    return sum(total) + rest;
}

// One document's part of a head.
struct HeadPart {
    float* data;
    long stride;
    HeadPart(const Heads& all, long token, long head, long head_dim)
        : data(all.data + token * all.stride + head * head_dim), stride(all.stride) {}
    float* row(long t) const { return data + t * stride; }
    MatrixView view(long t = 0) const { return {row(t), stride, 1}; }
    MatrixView across() const { return {data, 1, stride}; }
};

void attend_document(const PackedAttention& p, long token, long length, long kv_head, AttentionWork& own) {
    const long dim = p.head_dim, group = p.heads / p.kv_heads;
    own.keys_across.fill(HeadPart(p.k, token, kv_head, dim).across(), dim, length);
    own.values.fill(HeadPart(p.v, token, kv_head, dim).view(), length, dim);
    float* const scores = own.scores.of(queries_at_once * length);
    for (long head = kv_head * group; head < (kv_head + 1) * group; ++head) {
        const HeadPart q(p.q, token, head, dim), out(p.out, token, head, dim);
        for (long first = 0; first < length; first += queries_at_once) {
            const long queries = std::min(queries_at_once, length - first), keys = first + queries;
            own.multiply(q.view(first), own.keys_across, queries, keys, dim, scores, keys, false);
            float totals[queries_at_once];
            for (long i = 0; i < queries; ++i) {
                float* const row = scores + i * keys;
                const float top = largest_of_row(row, first + i + 1) * p.scale;
                totals[i] = exponentials(row, first + i + 1, keys, p.scale, top);
                p.logsumexp[(token + first + i) * p.heads + head] = top + std::log(totals[i]);
            }
            own.multiply({scores, keys, 1}, own.values, queries, dim, keys, out.row(first), out.stride, false);
            for (long i = 0; i < queries; ++i)
                for (long e = 0; e < dim; ++e) out.row(first + i)[e] /= totals[i];
        }
    }
}

void attend_document_backward(const PackedAttention& p, const PackedAttentionGradients& g, long token, long length,
                              long kv_head, AttentionWork& own) {
    const long dim = p.head_dim, group = p.heads / p.kv_heads;
    const HeadPart k(p.k, token, kv_head, dim), v(p.v, token, kv_head, dim);
    const HeadPart dk(g.k, token, kv_head, dim), dv(g.v, token, kv_head, dim);
    own.keys.fill(k.view(), length, dim);
    own.keys_across.fill(k.across(), dim, length);
    own.values_across.fill(v.across(), dim, length);
    float* const weights = own.weights.of(queries_at_once * length);
    float* const scores = own.scores.of(queries_at_once * length);
    // The last queries see all keys, so their share of the keys' gradients is written and the others' added.
    const long last = (length - 1) / queries_at_once * queries_at_once;
    for (long head = kv_head * group; head < (kv_head + 1) * group; ++head) {
        const HeadPart q(p.q, token, head, dim), out(p.out, token, head, dim);
        const HeadPart dout(g.out, token, head, dim), dq(g.q, token, head, dim);
        for (long first = last; first >= 0; first -= queries_at_once) {
            const long queries = std::min(queries_at_once, length - first), keys = first + queries;
            const bool adds = head > kv_head * group || first < last;
            own.multiply(q.view(first), own.keys_across, queries, keys, dim, weights, keys, false);
            own.multiply(dout.view(first), own.values_across, queries, keys, dim, scores, keys, false);
            for (long i = 0; i < queries; ++i) {
                float *const weight = weights + i * keys, *const score = scores + i * keys;
                exponentials(weight, first + i + 1, keys, p.scale, p.logsumexp[(token + first + i) * p.heads + head]);
                const float mean = dot(dout.row(first + i), out.row(first + i), dim);
                for (long j = 0; j < keys; ++j) score[j] = weight[j] * (score[j] - mean) * p.scale;
            }
            own.queries.fill(q.view(first), queries, dim);
            own.grads.fill(dout.view(first), queries, dim);
            own.multiply({weights, 1, keys}, own.grads, keys, dim, queries, dv.data, dv.stride, adds);
            own.multiply({scores, 1, keys}, own.queries, keys, dim, queries, dk.data, dk.stride, adds);
            own.multiply({scores, keys, 1}, own.keys, queries, dim, keys, dq.row(first), dq.stride, false);
        }
    }
}

// `work(token, length, kv_head, own)` for each document and key/value head, the longest documents first.
template <class Work>
void for_each_head(const PackedAttention& p, int threads, const Work& work) {
    struct Task {
        long token, length, kv_head;
    };
    std::vector<Task> tasks;
    long token = 0;
    for (long length : p.lengths) {
        for (long head = 0; head < p.kv_heads; ++head) tasks.push_back({token, length, head});
        token += length;
    }
    std::stable_sort(tasks.begin(), tasks.end(), [](const Task& a, const Task& b) { return a.length > b.length; });
#pragma omp parallel num_threads(threads)
    {
        static thread_local AttentionWork own;
#pragma omp for schedule(dynamic)
        for (size_t i = 0; i < tasks.size(); ++i) work(tasks[i].token, tasks[i].length, tasks[i].kv_head, own);
    }
}

void attention(const PackedAttention& p, int threads) {
    for_each_head(p, threads, [&](long token, long length, long kv_head, AttentionWork& own) {
        attend_document(p, token, length, kv_head, own);
    });
}

void attention_backward(const PackedAttention& p, const PackedAttentionGradients& g, int threads) {
    for_each_head(p, threads, [&](long token, long length, long kv_head, AttentionWork& own) {
        attend_document_backward(p, g, token, length, kv_head, own);
    });
}

}  // namespace
}  // namespace wootz::WOOTZ_ISA
