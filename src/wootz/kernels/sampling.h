// Choosing a token by chance: what temperature, top-k, top-p and min-p leave of a row of logits, and the place in it that a
// random number names. Truncations are thresholds, as in `wootz.engine.sampler`, whose definition this is: it is there
// because the dozen operations of PyTorch that say the same take longer than the output layer of a small model.

#pragma once
#include <algorithm>
#include <functional>
#include <vector>

#include "kernels.h"
#include "simd.h"

namespace wootz::WOOTZ_ISA {
namespace {

struct DrawScratch {
    std::vector<float> scaled, weights, candidates;
    std::vector<double> blocks;
};

constexpr long block_tokens = 8 * lanes;

// weights[i] = e^scaled[i], nothing where that is below `threshold`; `blocks` are the sums of `block_tokens` each.
inline double weigh(const float* scaled, long vocabulary, float threshold, DrawScratch& own) {
    double total = 0;
    for (long first = 0, block = 0; first < vocabulary; first += block_tokens, ++block) {
        vec sums = {};
        for (long i = first; i < std::min(first + block_tokens, vocabulary); i += lanes) {
            const vec x = load(scaled + i);
            const vec weight = (x < threshold) | (x < -87.0f) ? vec{} : exp_of(x);
            store(&own.weights[i], weight);
            sums += weight;
        }
        total += own.blocks[block] = sum(sums);
    }
    return total;
}

// The `k` largest, in no order.
inline void largest_of(const float* x, long count, long k, std::vector<float>& found) {
    float bar = -INFINITY;
    found.clear();
    const auto trim = [&] {
        std::nth_element(found.begin(), found.begin() + (k - 1), found.end(), std::greater<float>());
        found.resize(k);
        bar = found[k - 1];
    };
    for (long first = 0; first < count; first += lanes) {
        if (largest(load(x + first)) <= bar) continue;
        for (long i = first; i < first + lanes; ++i)
            if (x[i] > bar) found.push_back(x[i]);
        if (long(found.size()) >= 2 * k + lanes) trim();
    }
    if (long(found.size()) > k) trim();
}

// The smallest scaled logit that top-k and top-p keep.
inline float cut_of(const Draw& draw, const float* scaled, long vocabulary, double total, DrawScratch& own) {
    std::vector<float>& found = own.candidates;
    const bool some = draw.top_k > 0 && draw.top_k < vocabulary;
    if (some) {
        largest_of(scaled, vocabulary, draw.top_k, found);
    } else {
        // All those below this have together less than what top-p leaves out.
        const float least = float(0.5 * (1.0 - draw.top_p) * total / double(vocabulary));
        found.clear();
        for (long i = 0; i < vocabulary; ++i)
            if (own.weights[i] >= least) found.push_back(scaled[i]);
    }
    if (found.empty()) return -INFINITY;
    std::sort(found.begin(), found.end(), std::greater<float>());
    if (draw.top_p >= 1) return found.back();
    double mass = total;
    if (some) {
        mass = 0;
        for (float x : found) mass += std::exp(double(x));
    }
    double before = 0;
    for (size_t i = 0; i < found.size(); ++i) {
        before += std::exp(double(found[i]));
        if (before >= draw.top_p * mass) return found[i];
    }
    return found.back();
}

inline long draw_row(const float* logits, long vocabulary, const Draw& draw, DrawScratch& own) {
    const long padded = (vocabulary + lanes - 1) / lanes * lanes;
    own.scaled.resize(padded);
    own.weights.resize(padded);
    own.blocks.resize((vocabulary + block_tokens - 1) / block_tokens);
    vec tops = splat(-INFINITY);
    long i = 0;
    for (; i + lanes <= vocabulary; i += lanes) tops = larger(tops, load(logits + i));
    float top = largest(tops);
    for (; i < vocabulary; ++i) top = std::max(top, logits[i]);
    std::fill(own.scaled.end() - lanes, own.scaled.end(), -INFINITY);
    for (i = 0; i < vocabulary; ++i) own.scaled[i] = (logits[i] - top) / draw.temperature;
    const float* scaled = own.scaled.data();
    float threshold = std::log(draw.min_p);
    double total = weigh(scaled, vocabulary, -INFINITY, own);
    if (draw.top_k > 0 || draw.top_p < 1) threshold = std::max(threshold, cut_of(draw, scaled, vocabulary, total, own));
    if (threshold > -INFINITY) total = weigh(scaled, vocabulary, threshold, own);
    double left = draw.place * total;
    long block = 0;
    for (; block + 1 < long(own.blocks.size()) && left >= own.blocks[block]; ++block) left -= own.blocks[block];
    i = block * block_tokens;
    for (const long end = std::min(i + block_tokens, vocabulary); i < end; ++i)
        if ((left -= own.weights[i]) < 0) return i;
    do --i;  // where rounding leads past the end, the last token that has any weight
    while (i > 0 && own.weights[i] <= 0);
    return i;
}

void draw(const float* logits, long rows, long vocabulary, const Draw* draws, int64_t* tokens, int threads) {
#pragma omp parallel num_threads(std::min(long(threads), rows)) if (rows > 1)
    {
        DrawScratch own;
#pragma omp for schedule(dynamic, 1) nowait
        for (long r = 0; r < rows; ++r) tokens[r] = draw_row(logits + r * vocabulary, vocabulary, draws[r], own);
    }
}

}  // namespace
}  // namespace wootz::WOOTZ_ISA
