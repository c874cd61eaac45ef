// Vectors of `lanes` numbers in the compiler's own vector type, and the one thing that type cannot say: the product of
// bytes. Included by `kernels.cpp`, once per instruction set.

#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace wootz::WOOTZ_ISA {
namespace {

constexpr long lanes = WOOTZ_LANES;

#if defined(__AVX512F__) || defined(__ARM_NEON)
constexpr int vector_registers = 32;
#else
constexpr int vector_registers = 16;
#endif

#if defined(__ARM_NEON)
typedef __fp16 Half;  // GCC knows `_Float16` here from its version 13 on
#else
typedef _Float16 Half;
#endif

typedef float vec __attribute__((vector_size(lanes * sizeof(float))));
typedef int32_t ivec __attribute__((vector_size(lanes * sizeof(int32_t))));
typedef uint8_t bytes __attribute__((vector_size(lanes)));
typedef uint8_t quads __attribute__((vector_size(4 * lanes)));  // four bytes for each lane
typedef Half halves __attribute__((vector_size(lanes * sizeof(Half))));

inline vec load(const float* p) {
    vec v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

inline vec load(const Half* p) {
    halves h;
    std::memcpy(&h, p, sizeof h);
#if defined(__AVX512F__)
    __m256i bits;
    std::memcpy(&bits, &h, sizeof bits);
    return (vec)_mm512_cvtph_ps(bits);
#elif defined(__F16C__)
    __m128i bits;
    std::memcpy(&bits, &h, sizeof bits);
    return (vec)_mm256_cvtph_ps(bits);
#elif defined(__ARM_NEON)
    return (vec)vcvt_f32_f16((float16x4_t)h);
#else
    return __builtin_convertvector(h, vec);
#endif
}

inline void store(float* p, vec v) { std::memcpy(p, &v, sizeof v); }

inline vec splat(float x) { return x - vec{}; }  // `+` would be computed: it turns -0 into 0

inline float sum(vec v) {
    float a[lanes];
    store(a, v);
    for (long n = lanes / 2; n; n /= 2)
        for (long i = 0; i < n; ++i) a[i] += a[i + n];
    return a[0];
}

inline float largest(vec v) {
    float a[lanes];
    store(a, v);
    return *std::max_element(a, a + lanes);
}

inline vec larger(vec a, vec b) { return a > b ? a : b; }

inline bytes load_bytes(const void* p) {
    bytes b;
    std::memcpy(&b, p, sizeof b);
    return b;
}

inline vec floats(bytes b) { return __builtin_convertvector(__builtin_convertvector(b, ivec), vec); }

inline vec floats(ivec v) { return __builtin_convertvector(v, vec); }

// e^x, to about 2 units in the last place: 2^n from the exponent's bits times a polynomial on [-ln2/2, ln2/2].
inline vec exp_of(vec x) {
    vec clamped = x < -87.0f ? vec{} - 87.0f : x;
    clamped = clamped > 88.0f ? vec{} + 88.0f : clamped;
    const vec n_f = clamped * 1.44269504f;
    const ivec n = __builtin_convertvector(n_f + (n_f < 0 ? vec{} - 0.5f : vec{} + 0.5f), ivec);  // to nearest
    const vec whole = floats(n);
    const vec r = clamped - whole * 0.693359375f + whole * 2.12194440e-4f;
    vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const ivec bits = (n + 127) << 23;
    vec power;
    std::memcpy(&power, &bits, sizeof power);
    return p * power;
}

// --- products of bytes -------------------------------------------------------------------------------------------
// `ByteSum` adds up, for each lane, the products of that lane's four weights with the same four numbers. Weights are
// unsigned where the format makes them so. An instruction set that adds pairs of products in 16 bits can take only so
// many of them before they have to be widened: that is the format's `chain`, and `total` widens.

inline quads load_quads(const uint8_t* p) {
    quads q;
    std::memcpy(&q, p, sizeof q);
    return q;
}

#if defined(__AVX512BW__) || defined(__AVX2__)

#if defined(__AVX512BW__)
typedef __m512i wide;
inline wide four_numbers(const int8_t* x) {
    int32_t four;
    std::memcpy(&four, x, 4);
    return _mm512_set1_epi32(four);
}
#else
typedef __m256i wide;
inline wide four_numbers(const int8_t* x) {
    int32_t four;
    std::memcpy(&four, x, 4);
    return _mm256_set1_epi32(four);
}
#endif

struct ByteSum {
    wide sum;

    template <bool is_signed, bool first>
    inline void add(quads weights, wide x) {
        wide w = (wide)weights;
        // Weights must be unsigned here: a negative one gives its sign to the number.
#if defined(__AVX512BW__)
        if constexpr (is_signed) {
            x = _mm512_mask_sub_epi8(x, _mm512_movepi8_mask(w), _mm512_setzero_si512(), x);
            w = _mm512_abs_epi8(w);
        }
#if defined(__AVX512VNNI__)
        sum = _mm512_dpbusd_epi32(first ? _mm512_setzero_si512() : sum, w, x);
#else
        const wide pairs = _mm512_maddubs_epi16(w, x);
        sum = first ? pairs : _mm512_add_epi16(sum, pairs);
#endif
#else
        if constexpr (is_signed) {
            x = _mm256_sign_epi8(x, w);
            w = _mm256_abs_epi8(w);
        }
        const wide pairs = _mm256_maddubs_epi16(w, x);
        sum = first ? pairs : _mm256_add_epi16(sum, pairs);
#endif
        // The compiler would compute all products first and add them up as a tree, for which there are no registers.
        asm volatile("" : "+x"(sum));
    }

    inline ivec total() const {
#if defined(__AVX512VNNI__)
        return (ivec)sum;
#elif defined(__AVX512BW__)
        return (ivec)_mm512_madd_epi16(sum, _mm512_set1_epi16(1));
#else
        return (ivec)_mm256_madd_epi16(sum, _mm256_set1_epi16(1));
#endif
    }
};

#elif defined(__ARM_NEON)

typedef int8x16_t wide;
inline wide four_numbers(const int8_t* x) {
    int32_t four;
    std::memcpy(&four, x, 4);
    return vreinterpretq_s8_s32(vdupq_n_s32(four));
}

// Unsigned weights are below 128 in every format, so they are signed ones too.
struct ByteSum {
#if defined(__ARM_FEATURE_DOTPROD)
    int32x4_t sum;

    template <bool is_signed, bool first>
    inline void add(quads weights, wide x) {
        sum = vdotq_s32(first ? vdupq_n_s32(0) : sum, (int8x16_t)weights, x);
    }

    inline ivec total() const { return (ivec)sum; }
#else
    int16x8_t low, high;  // four sums of products for each lane, of the first and the last two lanes

    template <bool is_signed, bool first>
    inline void add(quads weights, wide x) {
        const int8x16_t w = (int8x16_t)weights;
        low = first ? vmull_s8(vget_low_s8(w), vget_low_s8(x)) : vmlal_s8(low, vget_low_s8(w), vget_low_s8(x));
        high = first ? vmull_high_s8(w, x) : vmlal_high_s8(high, w, x);
    }

    inline ivec total() const { return (ivec)vpaddlq_s16(vpaddq_s16(low, high)); }
#endif
};

#else

struct wide {
    int8_t four[4];
};
inline wide four_numbers(const int8_t* x) {
    wide w;
    std::memcpy(&w, x, 4);
    return w;
}

struct ByteSum {
    ivec sum;
    template <bool is_signed, bool first>
    inline void add(quads weights, wide x) {
        if (first) sum = ivec{};
        for (long i = 0; i < lanes; ++i)
            for (int k = 0; k < 4; ++k)
                sum[i] += (is_signed ? int32_t(int8_t(weights[4 * i + k])) : int32_t(weights[4 * i + k])) * x.four[k];
    }
    inline ivec total() const { return sum; }
};

#endif

}  // namespace
}  // namespace wootz::WOOTZ_ISA
