// Causal attention over paged keys and values, read where they lie.
//
// A place in the cache holds a token's keys and then its values, all heads: (2, kv_heads, head_dim) numbers, floats or
// halves (Number), which are computed with as floats. The query heads that share a key/value head are computed together, so that each key and value is read once for all of them.

#pragma once
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
    std::vector<float> scores, turned, queries, sums, tops, totals, factors;
};

// --- one token of a sequence -------------------------------------------------------------------------------------

constexpr long most_heads = 4;  // query heads computed together; each has an accumulator in a register
constexpr long ahead = 12;      // tokens; keys of one head lie too far apart for the processor to see them coming

// The sums of `lanes` vectors, each in its lane.
inline vec sums_of(vec* v) {
    typedef int32_t order __attribute__((vector_size(lanes * sizeof(int32_t))));
    order even, odd;
    for (long i = 0; i < lanes; ++i) even[i] = int32_t(2 * i), odd[i] = int32_t(2 * i + 1);
    for (long n = lanes; n > 1; n /= 2)
        for (long i = 0; i < n / 2; ++i)
            v[i] = __builtin_shuffle(v[2 * i], v[2 * i + 1], even) + __builtin_shuffle(v[2 * i], v[2 * i + 1], odd);
    return v[0];
}

// `heads` query heads over the `length` tokens in `scratch.keys`.
template <int heads, class Number>
inline void attend_one(const float* q, float* out, long length, long head_dim, long value_offset, float scale,
                       AttentionScratch& scratch) {
    const long padded = (length + lanes - 1) / lanes * lanes;
    if (long(scratch.scores.size()) < most_heads * padded) scratch.scores.resize(most_heads * padded);
    float* scores = scratch.scores.data();
    const auto keys = reinterpret_cast<const Number* const*>(scratch.keys.data());
    vec top[heads];
    for (int h = 0; h < heads; ++h) top[h] = splat(-INFINITY);
    for (long first = 0; first < length; first += lanes) {
        vec products[heads][lanes] = {};
        const long count = std::min(lanes, length - first);
        for (long p = 0; p < count; ++p) {
            const Number* key = keys[first + p];
            fetch(keys[std::min(first + p + ahead, length - 1)], head_dim);
            for (long i = 0; i < head_dim; i += lanes) {
                const vec k = load(key + i);
                for (int h = 0; h < heads; ++h) products[h][p] += load(q + h * head_dim + i) * k;
            }
        }
        for (int h = 0; h < heads; ++h) {
            vec score = scale * sums_of(products[h]);
            for (long p = count; p < lanes; ++p) score[p] = -INFINITY;
            top[h] = larger(top[h], score);
            store(scores + h * padded + first, score);
        }
    }
    float norms[heads];
    for (int h = 0; h < heads; ++h) {
        const float most = largest(top[h]);
        vec total = {};
        for (long p = 0; p < padded; p += lanes) {
            const vec weight = exp_of(load(scores + h * padded + p) - most);
            total += weight;
            store(scores + h * padded + p, weight);
        }
        norms[h] = 1.0f / sum(total);
    }
    constexpr int wide = 2;  // vectors of a value at once
    for (long i = 0; i < head_dim; i += wide * lanes) {
        vec acc[heads][wide] = {};
        for (long p = 0; p < length; ++p) {
            const Number* value = keys[p] + value_offset + i;
            fetch(keys[std::min(p + ahead, length - 1)] + value_offset + i, wide * lanes);
            vec v[wide];
            for (int w = 0; w < wide; ++w) v[w] = load(value + w * lanes);
            for (int h = 0; h < heads; ++h) {
                const float weight = scores[h * padded + p];
                for (int w = 0; w < wide; ++w) acc[h][w] += weight * v[w];
            }
        }
        for (int h = 0; h < heads; ++h)
            for (int w = 0; w < wide; ++w) store(out + h * head_dim + i + w * lanes, acc[h][w] * norms[h]);
    }
}

template <class Number, int heads = most_heads>
inline void attend_heads(long count, const float* q, float* out, long length, long head_dim, long value_offset,
                         float scale, AttentionScratch& scratch) {
    if (count == heads) return attend_one<heads, Number>(q, out, length, head_dim, value_offset, scale, scratch);
    if constexpr (heads > 1) attend_heads<Number, heads - 1>(count, q, out, length, head_dim, value_offset, scale, scratch);
}

// --- several tokens of a sequence --------------------------------------------------------------------------------
// Blocks of keys, with a running maximum and sum per query (online softmax, arXiv 1805.02867; FlashAttention).

constexpr long keys_at_once = 64, rows_at_once = 6;

// scores[r, j] = q[r] . k[j] for `rows` rows and 2 * lanes keys from j on; turned is (head_dim, keys_at_once).
template <int rows>
inline void score_tile(const float* q, const float* turned, float* scores, long head_dim) {
    vec acc[rows][2] = {};
    for (long i = 0; i < head_dim; ++i) {
        const vec k0 = load(turned + i * keys_at_once), k1 = load(turned + i * keys_at_once + lanes);
        for (int r = 0; r < rows; ++r) {
            acc[r][0] += q[r * head_dim + i] * k0;
            acc[r][1] += q[r * head_dim + i] * k1;
        }
    }
    for (int r = 0; r < rows; ++r) {
        store(scores + r * keys_at_once, acc[r][0]);
        store(scores + r * keys_at_once + lanes, acc[r][1]);
    }
}

// sums[r, i..] = shrink[r] * sums[r, i..] + sum over keys of weights[r, key] * value[key, i..], for 2 * lanes numbers.
template <int rows, class Number>
inline void value_tile(const float* weights, const Number* const* keys, long count, long offset, const float* shrink,
                       float* sums, long head_dim) {
    vec acc[rows][2];
    for (int r = 0; r < rows; ++r) {
        acc[r][0] = load(sums + r * head_dim) * shrink[r];
        acc[r][1] = load(sums + r * head_dim + lanes) * shrink[r];
    }
    for (long j = 0; j < count; ++j) {
        const vec v0 = load(keys[j] + offset), v1 = load(keys[j] + offset + lanes);
        for (int r = 0; r < rows; ++r) {
            acc[r][0] += weights[r * keys_at_once + j] * v0;
            acc[r][1] += weights[r * keys_at_once + j] * v1;
        }
    }
    for (int r = 0; r < rows; ++r) {
        store(sums + r * head_dim, acc[r][0]);
        store(sums + r * head_dim + lanes, acc[r][1]);
    }
}

// `tokens` query tokens at positions position.. of the sequence whose keys lie in `scratch.keys[0..]`, `first_key` being
// the position of the first of those. Query and output rows: token t, head h at t * row_stride + h * head_dim.
template <class Number>
inline void attend_many(const float* q, float* out, long row_stride, long tokens, long heads, long position, long first_key,
                        long window, long head_dim, long value_offset, float scale, AttentionScratch& s) {
    const long rows = tokens * heads, padded = (rows + rows_at_once - 1) / rows_at_once * rows_at_once;
    s.queries.assign(padded * head_dim, 0.0f);
    s.sums.assign(padded * head_dim, 0.0f);
    s.scores.resize(std::max<size_t>(s.scores.size(), padded * keys_at_once));
    s.turned.resize(head_dim * keys_at_once);
    s.tops.assign(padded, -INFINITY);
    s.totals.assign(padded, 0.0f);
    s.factors.assign(padded, 0.0f);
    for (long t = 0; t < tokens; ++t)
        for (long h = 0; h < heads; ++h)
            for (long i = 0; i < head_dim; ++i)
                s.queries[(t * heads + h) * head_dim + i] = scale * q[t * row_stride + h * head_dim + i];
    const long end = position + tokens;
    const long start = window ? std::max(first_key, position - window + 1) : first_key;
    for (long key = start; key < end; key += keys_at_once) {
        const long count = std::min(keys_at_once, end - key);
        const auto keys = reinterpret_cast<const Number* const*>(s.keys.data()) + (key - first_key);
        for (long j = 0; j < keys_at_once; ++j)
            for (long i = 0; i < head_dim; i += lanes) {
                float numbers[lanes] = {};
                if (j < count) store(numbers, load(keys[j] + i));
                for (long n = 0; n < lanes; ++n) s.turned[(i + n) * keys_at_once + j] = numbers[n];
            }
        for (long r = 0; r < padded; r += rows_at_once)
            for (long j = 0; j < keys_at_once; j += 2 * lanes)
                score_tile<rows_at_once>(&s.queries[r * head_dim], &s.turned[j], &s.scores[r * keys_at_once + j], head_dim);
        for (long r = 0; r < rows; ++r) {
            float* row = &s.scores[r * keys_at_once];
            const long at = position + r / heads;  // sees keys up to itself, and `window` of them
            const long last = std::min(count, at + 1 - key);
            const long skip = window ? std::max(0L, at - window + 1 - key) : 0;
            for (long j = 0; j < std::min(skip, keys_at_once); ++j) row[j] = -INFINITY;
            for (long j = std::max(0L, last); j < keys_at_once; ++j) row[j] = -INFINITY;
            vec top = load(row);
            for (long j = lanes; j < keys_at_once; j += lanes) top = larger(top, load(row + j));
            const float most = std::max(s.tops[r], largest(top));
            if (most == -INFINITY) {  // nothing to see yet
                for (long j = 0; j < keys_at_once; ++j) row[j] = 0.0f;
                s.factors[r] = 1.0f;
                continue;
            }
            vec total = {};
            for (long j = 0; j < keys_at_once; j += lanes) {
                const vec scores = load(row + j);
                const vec weights = scores == -INFINITY ? vec{} : exp_of(scores - most);
                total += weights;
                store(row + j, weights);
            }
            s.factors[r] = s.tops[r] == -INFINITY ? 0.0f : std::exp(s.tops[r] - most);
            s.totals[r] = s.totals[r] * s.factors[r] + sum(total);
            s.tops[r] = most;
        }
        for (long r = rows; r < padded; ++r) {
            for (long j = 0; j < keys_at_once; ++j) s.scores[r * keys_at_once + j] = 0.0f;
        }
        for (long r = 0; r < padded; r += rows_at_once)
            for (long i = 0; i < head_dim; i += 2 * lanes)
                value_tile<rows_at_once, Number>(&s.scores[r * keys_at_once], keys, count, value_offset + i, &s.factors[r],
                                         &s.sums[r * head_dim + i], head_dim);
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
    const long first = window ? std::max(0L, position - window + 1) : 0;
    gather_keys<Number>(cache, chunk, kv_head, first, end, scratch);
    const long at = (chunk.row + from) * row_stride + kv_head * group * head_dim;
    if (count > 1)
        return attend_many<Number>(q + at, out + at, row_stride, count, group, position, first, window, head_dim, value_offset,
                           scale, scratch);
    for (long h = 0; h < group; h += most_heads)
        attend_heads<Number>(std::min(most_heads, group - h), q + at + h * head_dim, out + at + h * head_dim, end - first, head_dim,
                     value_offset, scale, scratch);
}

template <class... Rest>
inline void attend_chunk(const CacheView& cache, Rest&&... rest) {
    if (cache.is_half) return attend_chunk_of<_Float16>(cache, rest...);
    attend_chunk_of<float>(cache, rest...);
}

// Put a head's numbers where they belong.
inline void write_numbers(const CacheView& cache, long at, const float* x) {
    if (!cache.is_half) {
        std::memcpy(static_cast<float*>(cache.data) + at, x, cache.head_dim * sizeof(float));
        return;
    }
    _Float16* target = static_cast<_Float16*>(cache.data) + at;
    for (long i = 0; i < cache.head_dim; ++i) target[i] = _Float16(x[i]);
}

}  // namespace
}  // namespace wootz::WOOTZ_ISA
