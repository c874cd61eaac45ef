// The kernels, in C++ over the compiler's vector type. CMake compiles this file once per instruction set, each time with
// another WOOTZ_ISA and WOOTZ_LANES; `module.cpp` picks the widest that the processor has. Here are the products that
// keep activations as they are; `packed.h` has those that round them to 8 bits, `stack.h` a whole decoder out of them, and
// `sampling.h` chooses a token.
//
// `linear` turns a few weight rows into floats in the first-level cache and multiplies them with all tokens, so a
// weight is read from memory once per step, in its quantised form: at batch 1 that reading is what decides the speed.
// Each dot product adds in the same order however many tokens there are. So a token's result does not depend on
// what else is in the batch, to the last bit.

#include <vector>

#include "attention.h"
#include "kernels.h"
#include "packed.h"
#include "sampling.h"
#include "simd.h"
#include "stack.h"

namespace wootz::WOOTZ_ISA {
namespace {

constexpr int tile_rows = 4;
constexpr int tile_tokens = vector_registers == 32 ? 6 : 3;  // what fits into them
constexpr long block = 32;

// --- block formats: 32 weights that share a scale, and in some a minimum -----------------------------------------
// https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h
// A scale has 11 bits and a quant at most 8, so their product is exact in float32: however the compiler contracts
// `d * q + m`, the result is that of the reference, to the bit. Nibbles are stored so that a block's first half lies in
// the low ones and its second half in the high ones.

constexpr int vecs = block / lanes;  // vectors per block
constexpr int half = vecs / 2;

struct BlockQ4_0 {
    Half d;
    uint8_t q[16];
    inline void weights(vec* out) const {
        for (int i = 0; i < half; ++i) {
            const bytes both = load_bytes(q + i * lanes);
            out[i] = float(d) * (floats(both & 15) - 8);
            out[half + i] = float(d) * (floats(both >> 4) - 8);
        }
    }
};

struct BlockQ4_1 {
    Half d, m;
    uint8_t q[16];
    inline void weights(vec* out) const {
        for (int i = 0; i < half; ++i) {
            const bytes both = load_bytes(q + i * lanes);
            out[i] = float(d) * floats(both & 15) + float(m);
            out[half + i] = float(d) * floats(both >> 4) + float(m);
        }
    }
};

// The fifth bit of each weight, as 16 or 0.
inline void fifth_bits(const uint8_t* high, uint8_t* out) {
    uint32_t bits;
    std::memcpy(&bits, high, 4);
    for (int i = 0; i < 32; ++i) out[i] = (bits >> i & 1) << 4;
}

struct BlockQ5_0 {
    Half d;
    uint8_t high[4], q[16];
    inline void weights(vec* out) const {
        uint8_t fifth[32];
        fifth_bits(high, fifth);
        for (int i = 0; i < half; ++i) {
            const bytes both = load_bytes(q + i * lanes);
            out[i] = float(d) * (floats(both & 15 | load_bytes(fifth + i * lanes)) - 16);
            out[half + i] = float(d) * (floats(both >> 4 | load_bytes(fifth + 16 + i * lanes)) - 16);
        }
    }
};

struct BlockQ5_1 {
    Half d, m;
    uint8_t high[4], q[16];
    inline void weights(vec* out) const {
        uint8_t fifth[32];
        fifth_bits(high, fifth);
        for (int i = 0; i < half; ++i) {
            const bytes both = load_bytes(q + i * lanes);
            out[i] = float(d) * floats(both & 15 | load_bytes(fifth + i * lanes)) + float(m);
            out[half + i] = float(d) * floats(both >> 4 | load_bytes(fifth + 16 + i * lanes)) + float(m);
        }
    }
};

struct BlockQ8_0 {
    Half d;
    int8_t q[32];
    inline void weights(vec* out) const {
        // As unsigned bytes, 128 too large: the compiler widens those in one instruction.
        for (int i = 0; i < vecs; ++i) out[i] = float(d) * (floats(load_bytes(q + i * lanes) ^ 128) - 128);
    }
};

template <class Block>
inline void weights_of_row(const uint8_t* row, float* out, long cols) {
    auto blocks = reinterpret_cast<const Block*>(row);
    for (long b = 0; b < cols / block; ++b) {
        vec w[vecs];
        blocks[b].weights(w);
        for (int i = 0; i < vecs; ++i) store(out + b * block + i * lanes, w[i]);
    }
}

// --- linear ------------------------------------------------------------------------------------------------------

// Several tokens: the tile's weights are floats in the first-level cache already.
template <int tokens>
inline void tile(const float* w, const float* x, float* y, long cols, long rows, int rows_here) {
    vec acc[tile_rows][tokens] = {};
    for (long c = 0; c < cols; c += lanes) {
        vec xs[tokens];
        for (int t = 0; t < tokens; ++t) xs[t] = load(x + t * cols + c);
        for (int r = 0; r < tile_rows; ++r) {
            const vec ws = load(w + r * cols + c);
            for (int t = 0; t < tokens; ++t) acc[r][t] += ws * xs[t];
        }
    }
    for (int t = 0; t < tokens; ++t)
        for (int r = 0; r < rows_here; ++r) y[t * rows + r] = sum(acc[r][t]);
}

template <int tokens>
inline void last_tile(long left, const float* w, const float* x, float* y, long cols, long rows, int rows_here) {
    if (left == tokens) return tile<tokens>(w, x, y, cols, rows, rows_here);
    if constexpr (tokens > 1) last_tile<tokens - 1>(left, w, x, y, cols, rows, rows_here);
}

// One token: weights are used as they come out of their blocks, in the same order.
template <class Block>
inline void tile_of_one(const uint8_t* weight, long row_bytes, const float* x, float* y, long cols, int rows_here) {
    const Block* blocks[tile_rows];
    for (int r = 0; r < tile_rows; ++r)
        blocks[r] = reinterpret_cast<const Block*>(weight + std::min(r, rows_here - 1) * row_bytes);
    vec acc[tile_rows] = {};
    for (long b = 0; b < cols / block; ++b) {
        for (int r = 0; r < tile_rows; ++r) {
            vec w[vecs];
            blocks[r][b].weights(w);
            for (int i = 0; i < vecs; ++i) acc[r] += w[i] * load(x + b * block + i * lanes);
        }
    }
    for (int r = 0; r < rows_here; ++r) y[r] = sum(acc[r]);
}

template <class Block>
void linear_of(const uint8_t* weight, const float* x, float* y, long rows, long cols, long tokens, int threads) {
    const long row_bytes = cols / block * long(sizeof(Block));
    const long tiles = (rows + tile_rows - 1) / tile_rows;
    // Small dynamic pieces: a thread that other processes hold up takes fewer of them.
    const long piece = std::max(1L, tiles / (threads * 8L));
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> w(tokens > 1 ? tile_rows * cols : 0);
#pragma omp for schedule(dynamic, piece) nowait
        for (long i = 0; i < tiles; ++i) {
            const long first = i * tile_rows;
            const uint8_t* own = weight + first * row_bytes;
            const int rows_here = int(std::min<long>(tile_rows, rows - first));
            // Fetch the tile after the next; most likely it is in this thread's piece too.
            for (long b = 0; b < tile_rows * row_bytes; b += 64) __builtin_prefetch(own + 2 * tile_rows * row_bytes + b);
            if (tokens == 1) {
                tile_of_one<Block>(own, row_bytes, x, y + first, cols, rows_here);
                continue;
            }
            for (int r = 0; r < rows_here; ++r) weights_of_row<Block>(own + r * row_bytes, w.data() + r * cols, cols);
            long t = 0;
            for (; t + tile_tokens <= tokens; t += tile_tokens)
                tile<tile_tokens>(w.data(), x + t * cols, y + t * rows + first, cols, rows, rows_here);
            last_tile<tile_tokens - 1>(tokens - t, w.data(), x + t * cols, y + t * rows + first, cols, rows, rows_here);
        }
    }
}

void linear(int format, const uint8_t* weight, const float* x, float* y, long rows, long cols, long tokens,
            int threads) {
    switch (format) {
        case Q4_0: return linear_of<BlockQ4_0>(weight, x, y, rows, cols, tokens, threads);
        case Q4_1: return linear_of<BlockQ4_1>(weight, x, y, rows, cols, tokens, threads);
        case Q5_0: return linear_of<BlockQ5_0>(weight, x, y, rows, cols, tokens, threads);
        case Q5_1: return linear_of<BlockQ5_1>(weight, x, y, rows, cols, tokens, threads);
        case Q8_0: return linear_of<BlockQ8_0>(weight, x, y, rows, cols, tokens, threads);
    }
}

template <class Block>
void dequantize_of(const uint8_t* weight, float* out, long rows, long cols, int threads) {
    const long row_bytes = cols / block * long(sizeof(Block));
#pragma omp parallel for num_threads(threads) schedule(dynamic, 64)
    for (long r = 0; r < rows; ++r) weights_of_row<Block>(weight + r * row_bytes, out + r * cols, cols);
}

void dequantize(int format, const uint8_t* weight, float* out, long rows, long cols, int threads) {
    switch (format) {
        case Q4_0: return dequantize_of<BlockQ4_0>(weight, out, rows, cols, threads);
        case Q4_1: return dequantize_of<BlockQ4_1>(weight, out, rows, cols, threads);
        case Q5_0: return dequantize_of<BlockQ5_0>(weight, out, rows, cols, threads);
        case Q5_1: return dequantize_of<BlockQ5_1>(weight, out, rows, cols, threads);
        case Q8_0: return dequantize_of<BlockQ8_0>(weight, out, rows, cols, threads);
    }
}

}  // namespace

extern const Kernels kernels;
const Kernels kernels = {lanes, linear, packed_linear, unpacked_rows, dequantize, attend, stack, whole, draw};

}  // namespace wootz::WOOTZ_ISA
