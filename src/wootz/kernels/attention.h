// Causal attention over paged keys and values, read where they lie.
//
// A place in the cache holds a token's keys and then its values, all heads: (2, kv_heads, head_dim) numbers, floats or
// halves (Number), which are computed with as floats. The query heads that share a key/value head are computed together,
// so that each key and value is read once for all of them.
//
// Keys are seen in blocks, each by itself, whose sums are then merged in their order (online softmax, arXiv 1805.02867;
// FlashAttention). So a prompt's tasks are (query tokens, a head), which keep a block of keys in the cache for all their
// rows; and those of a single token are its blocks, all heads of each, so that a thread reads memory in the order in which
// it lies, and a long text is spread over threads (Flash-Decoding). Blocks begin at multiples of `keys_at_once`: a
// token sees the same numbers, to the last bit, whether it is computed alone, in a prompt or in a draft that is being
// checked.

#pragma once
#include <type_traits>
#include <vector>

#include "kernels.h"
#include "simd.h"

namespace wootz::WOOTZ_ISA {
namespace {

constexpr long keys_at_once = 64, rows_at_once = 3;

template <class Number>
inline void fetch(const Number* p, long count) {
    for (long i = 0; i < count; i += 64 / long(sizeof(Number))) __builtin_prefetch(p + i);
}

// What queries saw of some keys: the largest score, the sum of weights, and the sum of weighted values (head_dim).
struct Seen {
    float *tops, *totals, *sums;
};

struct SeenBuffer {
    std::vector<float> tops, totals, sums;

    void resize(long rows, long head_dim) {
        tops.resize(rows);
        totals.resize(rows);
        sums.resize(rows * head_dim);
    }
    Seen from(long row, long head_dim) { return {&tops[row], &totals[row], &sums[row * head_dim]}; }
};

struct AttentionScratch {
    std::vector<const void*> tokens;  // where each lies in the cache
    std::vector<float> queries, scores;
    SeenBuffer block, all;
};

// --- one block of keys -------------------------------------------------------------------------------------------

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

// scores[r, j] = q[r] . key[j] for a block of tokens, whose keys of this head are at `offset` of what is kept of them. With
// each key its like of the next block is fetched, of which `ahead` are there: all at once they would have to wait.
template <int rows, class Number>
inline void score_rows(const float* q, const Number* const* kept, long offset, long count, long ahead, long head_dim,
                       float* scores) {
    constexpr int together = 4;  // keys
    for (long first = 0; first < count; first += lanes) {
        for (long j = first; j < std::min(first + lanes, ahead); ++j) fetch(kept[keys_at_once + j] + offset, head_dim);
        vec products[rows][lanes];
        for (long j = 0; j < lanes; j += together) {
            const Number* own[together];
            for (int k = 0; k < together; ++k) own[k] = kept[std::min(first + j + k, count - 1)] + offset;
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

// sums[r] = sum over tokens of weights[r, j] * value[j]; the next block's are fetched as above.
template <int rows, class Number>
inline void sum_values(const float* weights, const Number* const* kept, long offset, long count, long ahead, long head_dim,
                       float* sums) {
    for (long i = 0; i < head_dim; i += value_vecs * lanes) {
        vec acc[rows][value_vecs] = {};
        for (long j = 0; j < count; ++j) {
            if (j < ahead) fetch(kept[keys_at_once + j] + offset + i, value_vecs * lanes);
            const Number* value = kept[j] + offset + i;
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
inline void soften(float* row, long count, long key, long at, long window, float& top, float& total) {
    const long end = std::min(count, at + 1 - key);
    const long begin = window ? std::max(0L, at - window + 1 - key) : 0;
    for (long j = 0; j < std::min(begin, keys_at_once); ++j) row[j] = -INFINITY;
    for (long j = std::max(0L, end); j < keys_at_once; ++j) row[j] = -INFINITY;
    vec tops = load(row);
    for (long j = lanes; j < keys_at_once; j += lanes) tops = larger(tops, load(row + j));
    top = largest(tops), total = 0;
    if (top == -INFINITY) return std::fill_n(row, keys_at_once, 0.0f), void();  // nothing to see
    vec totals = {};
    for (long j = 0; j < keys_at_once; j += lanes) {
        const vec scores = load(row + j);
        const vec weights = scores == -INFINITY ? vec{} : exp_of(scores - top);
        totals += weights;
        store(row + j, weights);
    }
    total = sum(totals);
}

// Queries of a step that see the same keys: row r stands at position `at + r / group`.
struct Queries {
    const float* rows;  // scaled
    long count, group, at;
};

// What queries see of the tokens `kept`, the first of which is at position `key`; behind them are `ahead` more.
template <long dim, class Number>
inline void see_block_of(const Queries& q, const Number* const* kept, long count, long ahead, long key, long window,
                         const CacheView& cache, long kv_head, float* scores, Seen seen) {
    const long d = dim ? dim : cache.head_dim, keys = kv_head * d, values = (cache.kv_heads + kv_head) * d;
    in_threes(q.count, [&](auto n, long r) {
        score_rows<n>(q.rows + r * d, kept, keys, count, r ? 0 : ahead, d, scores + r * keys_at_once);
    });
    for (long r = 0; r < q.count; ++r)
        soften(scores + r * keys_at_once, count, key, q.at + r / q.group, window, seen.tops[r], seen.totals[r]);
    in_threes(q.count, [&](auto n, long r) {
        sum_values<n>(scores + r * keys_at_once, kept, values, count, r ? 0 : ahead, d, seen.sums + r * d);
    });
}

// The usual sizes of a head have loops of their own, whose lengths the compiler knows.
template <class Number>
inline void see_block(const Queries& q, const Number* const* kept, long count, long ahead, long key, long window,
                      const CacheView& cache, long kv_head, float* scores, Seen seen) {
    const auto see = cache.head_dim == 64 ? see_block_of<64, Number> : cache.head_dim == 128 ? see_block_of<128, Number>
                                                                                             : see_block_of<0, Number>;
    see(q, kept, count, ahead, key, window, cache, kv_head, scores, seen);
}

// Add a block to what was seen before it. Never inlined, so that its roundings are the same wherever it is used.
__attribute__((noinline)) void merge(float block_top, float block_total, const float* block, float& top, float& total,
                                     float* sums, long head_dim) {
    if (block_top == -INFINITY) return;
    const float most = std::max(top, block_top);
    const float before = top == -INFINITY ? 0.0f : std::exp(top - most), now = std::exp(block_top - most);
    total = total * before + block_total * now;
    for (long i = 0; i < head_dim; i += lanes) store(sums + i, load(sums + i) * before + load(block + i) * now);
    top = most;
}

inline void scaled(const float* q, float scale, long count, float* out) {
    for (long i = 0; i < count; i += lanes) store(out + i, scale * load(q + i));
}

inline void finish(const Seen& seen, long row, long head_dim, float* out) {
    for (long i = 0; i < head_dim; i += lanes)
        store(out + i, load(seen.sums + row * head_dim + i) * (1.0f / seen.totals[row]));
}

// --- all sequences of a step -------------------------------------------------------------------------------------

constexpr long query_tokens = 24;  // of one task; with three heads each, 72 rows share what is read of a block of keys

// Where tokens [first, end) of a sequence lie.
template <class Number>
inline const Number* const* find_tokens(const CacheView& cache, const Chunk& chunk, long first, long end,
                                        std::vector<const void*>& found) {
    const long token_size = 2 * cache.kv_heads * cache.head_dim;
    found.resize(end - first);
    for (long p = first; p < end;) {
        const long within = p % cache.block_size, last = std::min(end, p - within + cache.block_size);
        const long place = long(chunk.table[p / cache.block_size]) * cache.block_size + within;
        const Number* token = static_cast<const Number*>(cache.data) + place * token_size;
        for (; p < last; ++p, token += token_size) found[p - first] = token;
    }
    return reinterpret_cast<const Number* const*>(found.data());
}

// The block of keys in which the window of a token begins.
inline long first_block(long position, long window) {
    return window ? std::max(0L, position - window + 1) / keys_at_once : 0;
}

// What attention has to do in a step, the same for all layers.
struct AttentionPlan {
    struct Prompt {
        const Chunk* chunk;
        long from, count;  // of its tokens, more than one
    };
    struct Single {
        const Chunk* chunk;
        long from;      // the token
        long seen_at;   // of its first block
        long blocks;
        long position() const { return chunk->start + from; }
    };
    struct Block {
        const Single* single;
        long index;
    };
    std::vector<Prompt> prompts;
    std::vector<Single> singles;
    std::vector<Block> blocks;

    explicit AttentionPlan(const std::vector<Chunk>& chunks) {
        for (const Chunk& chunk : chunks)
            for (long from = 0; from < chunk.tokens; from += query_tokens) {
                const long count = std::min(query_tokens, chunk.tokens - from);
                if (count > 1)
                    prompts.push_back({&chunk, from, count});
                else
                    singles.push_back({&chunk, from, 0, (chunk.start + from) / keys_at_once + 1});
            }
        for (Single& single : singles) {
            single.seen_at = long(blocks.size());
            for (long i = 0; i < single.blocks; ++i) blocks.push_back({&single, i});
        }
    }
};

struct AttentionCall {
    const CacheView& cache;
    long heads;
    const float* q;  // (tokens, heads, head_dim), as is `out`
    float* out;
    float scale;
    long window;
};

// Query tokens [from, from + count) of a chunk, for the query heads that read `kv_head`.
template <class Number>
inline void attend_prompt_of(const AttentionCall& call, const AttentionPlan::Prompt& task, long kv_head, AttentionScratch& s) {
    const CacheView& cache = call.cache;
    const long d = cache.head_dim, group = call.heads / cache.kv_heads, rows = task.count * group;
    const long position = task.chunk->start + task.from, end = position + task.count;
    const long first = first_block(position, call.window) * keys_at_once;
    const auto all = find_tokens<Number>(cache, *task.chunk, first, end, s.tokens);
    const auto place = [&](long row) {
        return ((task.chunk->row + task.from + row / group) * call.heads + kv_head * group + row % group) * d;
    };
    s.queries.resize(rows * d);
    s.scores.resize(rows * keys_at_once);
    s.block.resize(rows, d);
    s.all.tops.assign(rows, -INFINITY);
    s.all.totals.assign(rows, 0.0f);
    s.all.sums.assign(rows * d, 0.0f);
    const Seen block = s.block.from(0, d), seen = s.all.from(0, d);
    for (long r = 0; r < rows; ++r) scaled(call.q + place(r), call.scale, d, &s.queries[r * d]);
    for (long key = first; key < end; key += keys_at_once) {
        see_block({s.queries.data(), rows, group, position}, all + (key - first), std::min(keys_at_once, end - key), 0,
                  key, call.window, cache, kv_head, s.scores.data(), block);
        for (long r = 0; r < rows; ++r)
            merge(block.tops[r], block.totals[r], block.sums + r * d, seen.tops[r], seen.totals[r], seen.sums + r * d, d);
    }
    for (long r = 0; r < rows; ++r) finish(seen, r, d, call.out + place(r));
}

// One block of keys of a single token, for the query heads that read key/value heads [kv_head, kv_head + kv_heads). Into
// `seen`: rows (blocks, heads).
template <class Number>
inline void attend_block_of(const AttentionCall& call, const AttentionPlan::Block& task, long kv_head, long kv_heads,
                            SeenBuffer& seen, AttentionScratch& s) {
    const AttentionPlan::Single& single = *task.single;
    if (task.index < first_block(single.position(), call.window)) return;
    const CacheView& cache = call.cache;
    const long d = cache.head_dim, group = call.heads / cache.kv_heads;
    const long key = task.index * keys_at_once, count = std::min(keys_at_once, single.position() + 1 - key);
    const long fetched = std::min(key + count + keys_at_once, single.position() + 1);  // the block that comes next
    const auto kept = find_tokens<Number>(cache, *single.chunk, key, fetched, s.tokens);
    s.queries.resize(group * d);
    s.scores.resize(group * keys_at_once);
    for (const long end = kv_head + kv_heads; kv_head < end; ++kv_head) {
        const long head = kv_head * group;
        const float* q = call.q + ((single.chunk->row + single.from) * call.heads + head) * d;
        scaled(q, call.scale, group * d, s.queries.data());
        see_block({s.queries.data(), group, group, single.position()}, kept, count, fetched - key - count, key,
                  call.window, cache, kv_head, s.scores.data(),
                  seen.from((single.seen_at + task.index) * call.heads + head, d));
    }
}

// One head of a single token, of what its blocks saw.
inline void merge_blocks(const AttentionCall& call, const AttentionPlan::Single& single, long head, SeenBuffer& seen,
                         AttentionScratch& s) {
    const long d = call.cache.head_dim;
    float top = -INFINITY, total = 0;
    s.all.sums.assign(d, 0.0f);
    for (long i = first_block(single.position(), call.window); i < single.blocks; ++i) {
        const Seen block = seen.from((single.seen_at + i) * call.heads + head, d);
        merge(*block.tops, *block.totals, block.sums, top, total, s.all.sums.data(), d);
    }
    finish({&top, &total, s.all.sums.data()}, 0, d,
           call.out + ((single.chunk->row + single.from) * call.heads + head) * d);
}

inline void attend_prompt(const AttentionCall& call, const AttentionPlan::Prompt& task, long kv_head, AttentionScratch& s) {
    if (call.cache.is_half) return attend_prompt_of<Half>(call, task, kv_head, s);
    attend_prompt_of<float>(call, task, kv_head, s);
}

inline void attend_block(const AttentionCall& call, const AttentionPlan::Block& task, long kv_head, long kv_heads,
                         SeenBuffer& seen, AttentionScratch& s) {
    if (call.cache.is_half) return attend_block_of<Half>(call, task, kv_head, kv_heads, seen, s);
    attend_block_of<float>(call, task, kv_head, kv_heads, seen, s);
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
