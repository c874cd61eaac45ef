// Causal attention over paged keys and values, read where they lie.
//
// A place in the cache holds a token's keys and then its values, all heads: (2, kv_heads, head_dim) numbers, floats or
// halves (Number), which are computed with as floats. The query heads that share a key/value head are computed together, so that each key and value is read once for all of them.

#pragma once
#include <type_traits>
#include <vector>

#include "kernels.h"
#include "simd.h"

namespace wootz::WOOTZ_ISA {
namespace {

template <class Number>
inline void fetch(const Number* p, long count) {
    for (long i = 0; i < count; i += 64 / long(sizeof(Number))) __builtin_prefetch(p + i);
}

struct AttentionScratch {
    std::vector<const void*> keys;  // where each token's key of this head lies; its value is `value_offset` further on
    std::vector<float> queries, scores, sums, tops, totals, factors;
};

// --- one key/value head of one sequence --------------------------------------------------------------------------
// Keys come in blocks, with a running maximum and sum per query (online softmax, arXiv 1805.02867; FlashAttention).
// Blocks begin at multiples of `keys_at_once`, and no sum's order depends on what else is computed: a token sees the
// same numbers, to the last bit, whether it is computed alone, in a prompt or in a draft that is being checked.

constexpr long keys_at_once = 64, rows_at_once = 3;
constexpr long value_vecs = lanes == 4 ? 4 : 32 / lanes;  // of a value, summed up together, in registers

// The sums of `lanes` vectors, each in its lane.
inline vec sums_of(vec* v) {
#if defined(__AVX2__) && !defined(__AVX512F__)
    const auto pairs = [&](int i, int j) { return _mm256_hadd_ps((__m256)v[i], (__m256)v[j]); };
    const __m256 low = _mm256_hadd_ps(pairs(0, 1), pairs(2, 3)), high = _mm256_hadd_ps(pairs(4, 5), pairs(6, 7));
    return (vec)_mm256_add_ps(_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31));
#endif
    ivec even, odd;
    for (long i = 0; i < lanes; ++i) even[i] = int32_t(2 * i), odd[i] = int32_t(2 * i + 1);
    for (long n = lanes; n > 1; n /= 2)
        for (long i = 0; i < n / 2; ++i)
            v[i] = __builtin_shuffle(v[2 * i], v[2 * i + 1], even) + __builtin_shuffle(v[2 * i], v[2 * i + 1], odd);
    return v[0];
}

// `work(n, r)` for rows r.. r + n - 1, n being a constant of at most `rows_at_once`.
template <class Work>
inline void in_threes(long rows, const Work& work) {
    long r = 0;
    for (; r + rows_at_once <= rows; r += rows_at_once) work(std::integral_constant<int, 3>{}, r);
    if (rows - r == 2) work(std::integral_constant<int, 2>{}, r);
    if (rows - r == 1) work(std::integral_constant<int, 1>{}, r);
}

// scores[r, j] = q[r] . key[j] for a block of keys.
template <int rows, class Number>
inline void score_rows(const float* q, const Number* const* keys, long count, long head_dim, float* scores) {
    constexpr int together = 4;  // keys
    for (long first = 0; first < count; first += lanes) {
        vec products[rows][lanes];
        for (long j = 0; j < lanes; j += together) {
            const Number* own[together];
            for (int k = 0; k < together; ++k) own[k] = keys[std::min(first + j + k, count - 1)];
            vec acc[rows][together] = {};
            for (long i = 0; i < head_dim; i += lanes)
                for (int k = 0; k < together; ++k) {
                    const vec key = load(own[k] + i);
                    for (int r = 0; r < rows; ++r) acc[r][k] += load(q + r * head_dim + i) * key;
                }
            for (int r = 0; r < rows; ++r)
                for (int k = 0; k < together; ++k) products[r][j + k] = acc[r][k];
        }
        for (int r = 0; r < rows; ++r) store(scores + r * keys_at_once + first, sums_of(products[r]));
    }
}

// sums[r] = factors[r] * sums[r] + sum over keys of weights[r, j] * value[j].
template <int rows, class Number>
inline void add_values(const float* weights, const Number* const* keys, long count, long head_dim, long value_offset,
                       const float* factors, float* sums) {
    for (long i = 0; i < head_dim; i += value_vecs * lanes) {
        vec acc[rows][value_vecs];
        for (int r = 0; r < rows; ++r)
            for (int w = 0; w < value_vecs; ++w) acc[r][w] = load(sums + r * head_dim + i + w * lanes) * factors[r];
        for (long j = 0; j < count; ++j) {
            const Number* value = keys[j] + value_offset + i;
            vec v[value_vecs];
            for (int w = 0; w < value_vecs; ++w) v[w] = load(value + w * lanes);
            for (int r = 0; r < rows; ++r) {
                const vec weight = splat(weights[r * keys_at_once + j]);
                for (int w = 0; w < value_vecs; ++w) acc[r][w] += weight * v[w];
            }
        }
        for (int r = 0; r < rows; ++r)
            for (int w = 0; w < value_vecs; ++w) store(sums + r * head_dim + i + w * lanes, acc[r][w]);
    }
}

// Make weights of the scores that a query at position `at` may see, the block's first key being at `key`.
inline void soften(float* row, long count, long key, long at, long window, float& top, float& total, float& factor) {
    const long end = std::min(count, at + 1 - key);
    const long begin = window ? std::max(0L, at - window + 1 - key) : 0;
    for (long j = 0; j < std::min(begin, keys_at_once); ++j) row[j] = -INFINITY;
    for (long j = std::max(0L, end); j < keys_at_once; ++j) row[j] = -INFINITY;
    vec tops = load(row);
    for (long j = lanes; j < keys_at_once; j += lanes) tops = larger(tops, load(row + j));
    const float most = std::max(top, largest(tops));
    if (most == -INFINITY) {  // nothing to see yet
        std::fill_n(row, keys_at_once, 0.0f);
        factor = 1.0f;
        return;
    }
    vec totals = {};
    for (long j = 0; j < keys_at_once; j += lanes) {
        const vec scores = load(row + j);
        const vec weights = scores == -INFINITY ? vec{} : exp_of(scores - most);
        totals += weights;
        store(row + j, weights);
    }
    factor = top == -INFINITY ? 0.0f : std::exp(top - most);
    total = total * factor + sum(totals);
    top = most;
}

// `tokens` queries at positions position.. over `scratch.keys`, the first of which is at `first_key`. Query and output
// rows: token t, head h at t * row_stride + h * head_dim.
template <class Number>
inline void attend_rows(const float* q, float* out, long row_stride, long tokens, long heads, long position,
                        long first_key, long window, long head_dim, long value_offset, float scale, AttentionScratch& s) {
    const long rows = tokens * heads, end = position + tokens;
    s.queries.resize(rows * head_dim);
    s.scores.resize(rows * keys_at_once);
    s.sums.assign(rows * head_dim, 0.0f);
    s.tops.assign(rows, -INFINITY);
    s.totals.assign(rows, 0.0f);
    s.factors.resize(rows);
    for (long r = 0; r < rows; ++r)
        for (long i = 0; i < head_dim; i += lanes)
            store(&s.queries[r * head_dim + i], scale * load(q + r / heads * row_stride + r % heads * head_dim + i));
    const auto all = reinterpret_cast<const Number* const*>(s.keys.data());
    for (long key = first_key; key < end; key += keys_at_once) {
        const Number* const* keys = all + (key - first_key);
        const long count = std::min(keys_at_once, end - key);
        if (tokens == 1)  // what is read only once lies too far apart for the processor to see it coming
            for (long j = count; j < std::min(count + keys_at_once, end - key); ++j) {
                fetch(keys[j], head_dim);
                fetch(keys[j] + value_offset, head_dim);
            }
        const auto score = [&](auto n, long r) {
            score_rows<n>(&s.queries[r * head_dim], keys, count, head_dim, &s.scores[r * keys_at_once]);
        };
        const auto add = [&](auto n, long r) {
            add_values<n>(&s.scores[r * keys_at_once], keys, count, head_dim, value_offset, &s.factors[r],
                          &s.sums[r * head_dim]);
        };
        in_threes(rows, score);
        for (long r = 0; r < rows; ++r)
            soften(&s.scores[r * keys_at_once], count, key, position + r / heads, window, s.tops[r], s.totals[r],
                   s.factors[r]);
        in_threes(rows, add);
    }
    for (long r = 0; r < rows; ++r)
        for (long i = 0; i < head_dim; i += lanes)
            store(out + r / heads * row_stride + r % heads * head_dim + i,
                  load(&s.sums[r * head_dim + i]) * (1.0f / s.totals[r]));
}

// --- all sequences of a step -------------------------------------------------------------------------------------

constexpr long query_tokens = 24;  // of one task; with three heads each, 72 rows share what is read of a block of keys

// Keys of one head, from the first that any of the chunk's tokens may see.
template <class Number>
inline void gather_keys(const CacheView& cache, const Chunk& chunk, long kv_head, long first, long end,
                        AttentionScratch& scratch) {
    const long token_size = 2 * cache.kv_heads * cache.head_dim;
    scratch.keys.resize(end - first);
    for (long p = first; p < end; ++p) {
        const long place = long(chunk.table[p / cache.block_size]) * cache.block_size + p % cache.block_size;
        scratch.keys[p - first] = static_cast<const Number*>(cache.data) + place * token_size + kv_head * cache.head_dim;
    }
}

// Attention of query tokens [from, from + count) of a chunk, for the query heads that read `kv_head`.
template <class Number>
inline void attend_chunk_of(const CacheView& cache, const Chunk& chunk, long kv_head, long from, long count, long group,
                         const float* q, float* out, float scale, long window, AttentionScratch& scratch) {
    const long head_dim = cache.head_dim, value_offset = cache.kv_heads * head_dim;
    const long row_stride = cache.kv_heads * group * head_dim;
    const long position = chunk.start + from, end = position + count;
    // From the block of keys in which the first token's window begins.
    const long first = window ? std::max(0L, position - window + 1) / keys_at_once * keys_at_once : 0;
    gather_keys<Number>(cache, chunk, kv_head, first, end, scratch);
    const long at = (chunk.row + from) * row_stride + kv_head * group * head_dim;
    attend_rows<Number>(q + at, out + at, row_stride, count, group, position, first, window, head_dim, value_offset, scale,
                        scratch);
}

template <class... Rest>
inline void attend_chunk(const CacheView& cache, Rest&&... rest) {
    if (cache.is_half) return attend_chunk_of<Half>(cache, rest...);
    attend_chunk_of<float>(cache, rest...);
}

// Put a head's numbers where they belong.
inline void write_numbers(const CacheView& cache, long at, const float* x) {
    if (!cache.is_half) {
        std::memcpy(static_cast<float*>(cache.data) + at, x, cache.head_dim * sizeof(float));
        return;
    }
    Half* target = static_cast<Half*>(cache.data) + at;
    for (long i = 0; i < cache.head_dim; ++i) target[i] = Half(x[i]);
}

}  // namespace
}  // namespace wootz::WOOTZ_ISA
