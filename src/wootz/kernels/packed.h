// Products of quantised weights with quantised activations.
//
// A token's numbers are rounded to 8 bits in blocks of 32, each block with a scale of its own (`Activations`). Then a
// block's dot product is exact in integers, and only scales are floats:
//
//     y[r] = sum over blocks of  scale[r, b] * (x_scale[b] * sum(q[r] * x)  +  offset * x_sum[b])  +  min[r, b] * x_sum[b]
//
// Weights are packed once, when a model is loaded (`wootz.kernels.packing`): `lanes` rows lie interleaved, four columns
// of each at a time, so that every instruction works for `lanes` rows and no sum across a vector is ever needed.
// A packed tile of rows is a run of blocks, one for each 32 columns:
//
//     4 bits:  for v in 0..3: lanes x 4 bytes; low nibbles are columns 4v.., high ones columns 16 + 4v..
//     8 bits:  for v in 0..7: lanes x 4 bytes; columns 4v..
//     then `scales` x lanes scales, and lanes minima if the format has them
//
// Each row's sum is taken in the order of its blocks whatever else is computed beside it, so a token's result does not
// depend on the other tokens of a step, to the last bit.

#pragma once
#include <vector>

#include "simd.h"

namespace wootz::WOOTZ_ISA {
namespace {

constexpr long packed_columns = 32;

template <int bits_, bool is_signed_, int chain_, class Scale_, bool has_min_, int offset_, int scales_ = 1>
struct Format_ {
    static constexpr int bits = bits_, chain = chain_, offset = offset_, scales = scales_;
    static constexpr bool is_signed = is_signed_, has_min = has_min_;
    using Scale = Scale_;
    static constexpr long quant_bytes = packed_columns * bits / 8 * lanes;
    static constexpr long block_bytes = quant_bytes + (scales + has_min) * lanes * long(sizeof(Scale));
};

// Sums of pairs of products must stay within 16 bits: 2 * 127 * chain * (largest weight) < 2^15.
using U4Offset = Format_<4, false, 8, Half, false, -8>;  // Q4_0
using U4Min = Format_<4, false, 8, Half, true, 0>;       // Q4_1
using U4MinWide = Format_<4, false, 8, float, true, 0>;      // Q4_K, AWQ, GPTQ
using U5Offset = Format_<8, false, 4, Half, false, -16>; // Q5_0
using U5Min = Format_<8, false, 4, Half, true, 0>;       // Q5_1
using U5MinWide = Format_<8, false, 4, float, true, 0>;      // Q5_K
using S8 = Format_<8, true, 1, Half, false, 0>;          // Q8_0
using S8Wide = Format_<8, true, 1, float, false, 0>;         // INT8 with a scale per row
using S6Wide = Format_<8, true, 4, float, false, 0, 2>;      // Q6_K: a scale for every 16 columns

struct Activations {
    const int8_t* q;
    const float* scale;
    const float* sum;  // scale * (sum of q) of each block
    long columns;      // of one token's run of q
    long blocks() const { return columns / packed_columns; }
};

// Round one token's block of 32 numbers to 8 bits.
inline void quantize_block(const float* x, int8_t* q, float* scale, float* total) {
    vec top = {};
    for (long i = 0; i < packed_columns; i += lanes) {
        const vec v = load(x + i);
        top = larger(top, v < 0 ? -v : v);
    }
    const float most = largest(top);
    const float inverse = most > 0 ? 127.0f / most : 0.0f;
    int32_t sum = 0;
#if defined(__AVX2__) && !defined(__AVX512F__)
    __m256i ints[4];
    for (int i = 0; i < 4; ++i) ints[i] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8 * i), _mm256_set1_ps(inverse)));
    const __m256i all = _mm256_add_epi32(_mm256_add_epi32(ints[0], ints[1]), _mm256_add_epi32(ints[2], ints[3]));
    int32_t parts[8];
    std::memcpy(parts, &all, sizeof parts);
    for (int part : parts) sum += part;
    const __m256i packed = _mm256_packs_epi16(_mm256_packs_epi32(ints[0], ints[1]), _mm256_packs_epi32(ints[2], ints[3]));
    const __m256i ordered = _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    std::memcpy(q, &ordered, sizeof ordered);
#elif defined(__ARM_NEON)
    int32x4_t all = vdupq_n_s32(0);
    for (long i = 0; i < packed_columns; i += 8) {
        const int32x4_t low = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + i), inverse));
        const int32x4_t high = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + i + 4), inverse));
        all = vaddq_s32(all, vaddq_s32(low, high));
        vst1_s8(q + i, vmovn_s16(vcombine_s16(vmovn_s32(low), vmovn_s32(high))));
    }
    sum = vaddvq_s32(all);
#else
    for (long i = 0; i < packed_columns; ++i) {
        q[i] = int8_t(std::nearbyint(x[i] * inverse));
        sum += q[i];
    }
#endif
    *scale = most / 127.0f;
    *total = *scale * float(sum);
}

// Row `t` of activations is written to q + t * columns, scale + t * blocks, sum + t * blocks.
struct ActivationBuffer {
    std::vector<int8_t> q;
    std::vector<float> scale, sum;
    long columns = 0;
    void resize(long tokens, long columns_) {
        columns = columns_;
        if (long(q.size()) < tokens * columns) {
            q.resize(tokens * columns);
            scale.resize(tokens * columns / packed_columns);
            sum.resize(tokens * columns / packed_columns);
        }
    }
    Activations view() const { return {q.data(), scale.data(), sum.data(), columns}; }
    // The block that holds column `c` of token `t`, from the 32 numbers at x.
    inline void put(long t, long c, const float* x) {
        const long b = t * (columns / packed_columns) + c / packed_columns;
        quantize_block(x, q.data() + t * columns + c, scale.data() + b, sum.data() + b);
    }
    void put_row(long t, const float* x) {
        for (long c = 0; c < columns; c += packed_columns) put(t, c, x + c);
    }
};

// `tiles` packed tiles, one after the other, times `tokens` tokens: y[t * stride + tile * lanes + lane]. The first tokens
// to need them wait for the weights, so meanwhile they fetch as many of those that follow: most likely they are next.
template <class F, int tiles, int tokens>
inline __attribute__((always_inline)) void packed_tile(const uint8_t* weight, long tile_bytes, const Activations& x,
                                                       long first_token, float* y, long stride) {
    constexpr int groups = packed_columns / 4, segments = groups / F::chain;
    static_assert(segments % F::scales == 0, "a scale belongs to whole segments");
    const long blocks = x.blocks();
    const int8_t* q = x.q + first_token * x.columns;
    const float *scale = x.scale + first_token * blocks, *total = x.sum + first_token * blocks;
    const quads low = quads{} + 15;
    vec acc[tiles][tokens] = {};
    for (long b = 0; b < blocks; ++b) {
        const uint8_t* own[tiles];
        for (int g = 0; g < tiles; ++g) own[g] = weight + g * tile_bytes + b * F::block_bytes;
        if (first_token == 0)
            for (long i = 0; i < tiles * F::block_bytes; i += 64)
                __builtin_prefetch(weight + tiles * (tile_bytes + b * F::block_bytes) + i);
        ivec dot[tiles][tokens];
#pragma GCC unroll 8
        for (int segment = 0; segment < segments; ++segment) {
            ByteSum sums[tiles][tokens];
            if constexpr (F::bits == 4) {
#pragma GCC unroll 4
                for (int v = 0; v < groups / 2; ++v) {
                    quads lows[tiles], highs[tiles];
#pragma GCC unroll 4
                    for (int g = 0; g < tiles; ++g) {
                        const quads both = load_quads(own[g] + v * 4 * lanes);
                        lows[g] = both & low;
                        highs[g] = both >> 4;
                    }
#pragma GCC unroll 8
                    for (int t = 0; t < tokens; ++t) {
                        const int8_t* numbers = q + t * x.columns + b * packed_columns + 4 * v;
                        const wide first = four_numbers(numbers), second = four_numbers(numbers + 16);
#pragma GCC unroll 4
                        for (int g = 0; g < tiles; ++g) {
                            if (v == 0)
                                sums[g][t].template add<F::is_signed, true>(lows[g], first);
                            else
                                sums[g][t].template add<F::is_signed, false>(lows[g], first);
                        }
#pragma GCC unroll 4
                        for (int g = 0; g < tiles; ++g) sums[g][t].template add<F::is_signed, false>(highs[g], second);
                    }
                }
            } else {
#pragma GCC unroll 8
                for (int i = 0; i < F::chain; ++i) {
                    const int v = segment * F::chain + i;
                    quads weights[tiles];
#pragma GCC unroll 4
                    for (int g = 0; g < tiles; ++g) weights[g] = load_quads(own[g] + v * 4 * lanes);
#pragma GCC unroll 8
                    for (int t = 0; t < tokens; ++t) {
                        const wide four = four_numbers(q + t * x.columns + b * packed_columns + 4 * v);
#pragma GCC unroll 4
                        for (int g = 0; g < tiles; ++g) {
                            if (i == 0)
                                sums[g][t].template add<F::is_signed, true>(weights[g], four);
                            else
                                sums[g][t].template add<F::is_signed, false>(weights[g], four);
                        }
                    }
                }
            }
            // Where a scale ends, its sum becomes a float; until then segments are added as integers.
            const bool starts = segment % (segments / F::scales) == 0;
            const bool ends = (segment + 1) % (segments / F::scales) == 0;
#pragma GCC unroll 4
            for (int g = 0; g < tiles; ++g) {
                for (int t = 0; t < tokens; ++t)
                    dot[g][t] = starts ? sums[g][t].total() : dot[g][t] + sums[g][t].total();
                if (!ends) continue;
                const auto scales = reinterpret_cast<const typename F::Scale*>(own[g] + F::quant_bytes);
                const vec d = load(scales + segment / (segments / F::scales) * lanes);
#pragma GCC unroll 8
                for (int t = 0; t < tokens; ++t) {
                    vec part = floats(dot[g][t]) * scale[t * blocks + b];
                    if constexpr (F::offset != 0) part += float(F::offset) * total[t * blocks + b];
                    acc[g][t] += part * d;
                    if constexpr (F::has_min)
                        acc[g][t] += load(scales + F::scales * lanes) * total[t * blocks + b];
                }
            }
        }
    }
    for (int g = 0; g < tiles; ++g)
        for (int t = 0; t < tokens; ++t) store(y + t * stride + g * lanes, acc[g][t]);
}

constexpr int tiles_at_once = 2, tokens_at_once = 4;

template <class F, int tokens>
inline void last_tokens(long left, const uint8_t* weight, long tile_bytes, const Activations& x, long first, float* y,
                        long stride) {
    if (left == tokens) return packed_tile<F, tiles_at_once, tokens>(weight, tile_bytes, x, first, y, stride);
    if constexpr (tokens > 1) last_tokens<F, tokens - 1>(left, weight, tile_bytes, x, first, y, stride);
}

// `tiles_at_once` packed tiles times all tokens.
template <class F>
void packed_tiles_of(const uint8_t* weight, const Activations& x, long tokens, float* y, long stride) {
    const long tile_bytes = x.blocks() * F::block_bytes;
    long t = 0;
    for (; t + tokens_at_once <= tokens; t += tokens_at_once)
        packed_tile<F, tiles_at_once, tokens_at_once>(weight, tile_bytes, x, t, y + t * stride, stride);
    if (t < tokens) last_tokens<F, tokens_at_once - 1>(tokens - t, weight, tile_bytes, x, t, y + t * stride, stride);
}

// Rows of a packed weight as floats: out is (count, columns).
template <class F>
void unpacked_rows_of(const uint8_t* weight, long columns, const int64_t* rows, long count, float* out) {
    const long blocks = columns / packed_columns, per_scale = packed_columns / F::scales;
    for (long n = 0; n < count; ++n) {
        const uint8_t* own = weight + rows[n] / lanes * blocks * F::block_bytes;
        const long lane = rows[n] % lanes;
        for (long b = 0; b < blocks; ++b, own += F::block_bytes, out += packed_columns) {
            const auto scales = reinterpret_cast<const typename F::Scale*>(own + F::quant_bytes) + lane;
            const float low = F::has_min ? float(scales[F::scales * lanes]) : 0.0f;
            for (long c = 0; c < packed_columns; ++c) {
                const long column = F::bits == 4 ? c % 16 : c;
                const uint8_t byte = own[column / 4 * 4 * lanes + lane * 4 + column % 4];
                const int q = F::is_signed ? int8_t(byte) : F::bits == 8 ? byte : c < 16 ? byte & 15 : byte >> 4;
                out[c] = float(scales[c / per_scale * lanes]) * float(q + F::offset) + low;
            }
        }
    }
}

struct Packing {
    long block_bytes;
    void (*tiles)(const uint8_t* weight, const Activations& x, long tokens, float* y, long stride);
    void (*rows)(const uint8_t* weight, long columns, const int64_t* rows, long count, float* out);
};

template <class F>
constexpr Packing packing_of() {
    return {F::block_bytes, packed_tiles_of<F>, unpacked_rows_of<F>};
}

// In the order of `Packed` in kernels.h.
constexpr Packing packings[] = {packing_of<U4Offset>(), packing_of<U4Min>(), packing_of<U4MinWide>(),
                                packing_of<U5Offset>(), packing_of<U5Min>(), packing_of<U5MinWide>(),
                                packing_of<S8>(),       packing_of<S8Wide>(), packing_of<S6Wide>()};

// `tiles` (a multiple of `tiles_at_once`) tiles of a packed weight, from `first_tile` on.
inline void packed_rows(int format, const uint8_t* weight, long first_tile, long tiles, const Activations& x, long tokens,
                        float* y, long stride) {
    const Packing& packing = packings[format];
    const long tile_bytes = x.blocks() * packing.block_bytes;
    for (long i = 0; i < tiles; i += tiles_at_once)
        packing.tiles(weight + (first_tile + i) * tile_bytes, x, tokens, y + i * lanes, stride);
}

}  // namespace
}  // namespace wootz::WOOTZ_ISA
