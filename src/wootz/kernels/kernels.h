// What the kernels compute, and the table through which one instruction set's build of them is reached.
#pragma once
#include <cstdint>
#include <vector>

namespace wootz {

// GGML's numbers for the block formats that are computed with as they are (the `type` of a tensor in a GGUF file).
enum Format : int { Q4_0 = 2, Q4_1 = 3, Q5_0 = 6, Q5_1 = 7, Q8_0 = 8 };

// Layouts of packed weights; see packed.h, and `wootz.kernels.packing`, which writes them.
enum Packed : int { U4_OFFSET, U4_MIN, U4_MIN_WIDE, U5_OFFSET, U5_MIN, U5_MIN_WIDE, S8, S8_WIDE, S6_WIDE };

struct PackedMatrix {
    int format = 0;
    const uint8_t* data = nullptr;
    long rows = 0;     // a multiple of twice the number of lanes
    long columns = 0;  // a multiple of 32
    const float* bias = nullptr;
};

// Keys and values of one layer: (num_blocks, block_size, 2, kv_heads, head_dim) floats or halves.
struct CacheView {
    void* data = nullptr;
    long block_size = 0, kv_heads = 0, head_dim = 0;
    bool is_half = false;
};

// Consecutive tokens of one sequence, which stand in rows row.. of a step and at positions start.. of their sequence.
struct Chunk {
    long row, tokens, start;
    const int32_t* table;  // the sequence's blocks
};

struct Norm {
    const float* weight = nullptr;  // null: there is none here
    float eps = 0;
};

enum Activation : int { SILU, GELU_TANH };

// Angles of all positions: (positions, dim) each; the signs of "rotate half" are in `sin`.
struct Angles {
    const float *cos = nullptr, *sin = nullptr;
    long dim = 0;
};

// A decoder layer of attention and a gated MLP around a residual stream.
struct StackLayer {
    Norm attention_norm, attention_output_norm, mlp_norm, mlp_output_norm, q_norm, k_norm;
    PackedMatrix q, k, v, output, gate, up, down;
    CacheView cache;
    long heads = 0, window = 0;  // 0: no window
    Angles angles;
    float scale = 0;
    Activation activation = SILU;
};

// What stands before and behind the layers: tokens become rows of `embedding` times `scale`, the last norm's output
// becomes logits.
struct StackEnds {
    Norm norm;
    PackedMatrix embedding, head;
    float scale = 1;
};

struct StackStep {
    float* x;  // (tokens, hidden), the residual stream, changed in place
    long tokens, hidden;
    std::vector<Chunk> chunks;
};

// The logits that a whole step was asked for, and each row's largest.
struct StackLogits {
    std::vector<long> rows;  // of the step
    float* out;              // (rows, vocabulary)
    long vocabulary;
    std::vector<long> likeliest;
};

// How a row's token is drawn; `top_k` 0 and `top_p` 1 leave all, and `place` in [0, 1) is the random number.
struct Draw {
    float temperature;
    long top_k;
    double top_p;
    float min_p;
    double place;
};

struct Kernels {
    // Numbers that the vectors of this build hold: packed weights interleave so many rows.
    long lanes;

    // y[t, r] = sum over c of x[t, c] * weight[r, c]. Weight rows are runs of `format` blocks of 32; x and y are row-major.
    void (*linear)(int format, const uint8_t* weight, const float* x, float* y, long rows, long cols, long tokens,
                   int threads);

    // The same with a packed weight and activations rounded to 8 bits. y is (tokens, stride).
    void (*packed_linear)(const PackedMatrix& weight, const float* x, float* y, long stride, long tokens, int threads);

    // Some rows of a packed weight in float32: out is (count, columns).
    void (*unpacked_rows)(const PackedMatrix& weight, const int64_t* rows, long count, float* out);

    // out[r, c] = weight[r, c] in float32.
    void (*dequantize)(int format, const uint8_t* weight, float* out, long rows, long cols, int threads);

    // Causal attention of all chunks over paged keys and values; q and out are (tokens, heads, head_dim).
    void (*attend)(const CacheView& cache, const std::vector<Chunk>& chunks, const float* q, float* out, long heads,
                   float scale, long window, int threads);

    // All layers of a decoder and its last norm, for one step.
    void (*stack)(const std::vector<StackLayer>& layers, const Norm& last, StackStep& step, int threads);

    // The same from tokens to logits.
    void (*whole)(const std::vector<StackLayer>& layers, const StackEnds& ends, StackStep& step, const int64_t* tokens,
                  StackLogits& logits, int threads);

    // A token for each row of logits (rows, vocabulary), by chance.
    void (*draw)(const float* logits, long rows, long vocabulary, const Draw* draws, int64_t* tokens, int threads);
};

}  // namespace wootz
