// What the kernels compute, and the table through which one instruction set's build of them is reached.
#pragma once
#include <cstdint>

namespace wootz {

// GGML's numbers for the block formats we compute with (the `type` of a tensor in a GGUF file).
enum Format : int { Q4_0 = 2, Q4_1 = 3, Q5_0 = 6, Q5_1 = 7, Q8_0 = 8 };

struct Kernels {
    // y[t, r] = sum over c of x[t, c] * weight[r, c]. Weight rows are runs of `format` blocks of 32; x and y are row-major.
    void (*linear)(int format, const uint8_t* weight, const float* x, float* y, long rows, long cols, long tokens,
                   int threads);

    // out[r, c] = weight[r, c] in float32.
    void (*dequantize)(int format, const uint8_t* weight, float* out, long rows, long cols, int threads);

    // One query token per sequence over its paged keys and values.
    //   cache  (num_blocks, block_size, 2, kv_heads, head_dim)    q, out  (tokens, kv_heads * group, head_dim)
    //   rows[s]: the sequence's row in q and out.   tables[s * max_blocks ...]: its blocks.   lengths[s]: its tokens.
    void (*decode)(const float* cache, const float* q, float* out, const int32_t* rows, const int32_t* tables,
                   const int32_t* lengths, long sequences, long max_blocks, long block_size, long kv_heads, long group,
                   long head_dim, float scale, int threads);
};

}  // namespace wootz
