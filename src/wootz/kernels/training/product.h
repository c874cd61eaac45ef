// Products of float matrices, after Goto and van de Geijn ("Anatomy of high-performance matrix multiplication", 2008) and
// BLIS: both operands are copied into panels that are read from the first to the last number, and a small tile of the
// result stays in registers while a panel of either side passes by.
//
// A library does this too, and the one that PyTorch comes with does it best on its maker's processors: on others it
// reaches three fifths of what they can do, which this does not leave lying. And a number of the result is added up in the
// same order whatever is computed beside it, on however many threads.

#pragma once
#include <algorithm>
#include <cstdlib>
#include <memory>

#include "simd.h"
#include "training/training.h"

namespace wootz::WOOTZ_ISA {
namespace {

constexpr int tile_down = vector_registers == 32 ? 12 : 6;  // tile_down * tile_vecs sums and tile_vecs + 1 more fit
constexpr int tile_vecs = 2;
constexpr long tile_right = tile_vecs * lanes;
constexpr long depth_at_once = 256;  // a panel of `tile_right` columns then fits into the first-level cache
constexpr long most_of_a_pass = 400'000;  // numbers of b that are copied before they are used
constexpr long most_panels = 16;     // of `tile_down` rows, which stay in the second-level cache

// Memory that grows and is kept.
class Scratch {
    struct Free {
        void operator()(float* p) const { std::free(p); }
    };
    std::unique_ptr<float, Free> data;
    size_t size = 0;

  public:
    float* of(long count) {
        const size_t bytes = (size_t(count) * sizeof(float) + 63) / 64 * 64;
        if (bytes > size) {
            data.reset((float*)std::aligned_alloc(64, bytes));
            size = bytes;
        }
        return data.get();
    }
};

// A few of a's rows or b's columns, side by side for each step of depth: (depth, width), the depth rounded up to a
// multiple of 4 and what is missing filled with zeros.
template <long width>
inline void fill_panel(const float* from, long across, long along, long count, long depth, float* panel) {
    if (count == width && across == 1) {
        for (long k = 0; k < depth; ++k) std::memcpy(panel + k * width, from + k * along, width * sizeof(float));
    } else if (count == width && along == 1) {
        long k = 0;
        for (; k + 16 <= depth; k += 16) {
            // The next panel's rows lie elsewhere, so the processor would begin to fetch them when they are asked for.
            for (long i = 0; i < width; ++i) __builtin_prefetch(from + (width + i) * across + k);
            for (long i = 0; i < width; ++i)
                for (long u = 0; u < 16; ++u) panel[(k + u) * width + i] = from[i * across + k + u];
        }
        for (; k < depth; ++k)
            for (long i = 0; i < width; ++i) panel[k * width + i] = from[i * across + k];
    } else {
        for (long k = 0; k < depth; ++k)
            for (long i = 0; i < width; ++i) panel[k * width + i] = i < count ? from[i * across + k * along] : 0;
    }
    std::fill(panel + depth * width, panel + (depth + 3) / 4 * 4 * width, 0.0f);
}

// One tile of the result, of whole panels. `depth` is a multiple of 4. A piece of b's `next` panel is fetched meanwhile.
template <bool adds>
__attribute__((noinline)) void product_tile(long depth, const float* __restrict a, const float* __restrict b,
                                            float* __restrict c, long stride, const float* next) {
    vec sums[tile_down][tile_vecs] = {};
#pragma GCC unroll 16
    for (int i = 0; i < tile_down; ++i) __builtin_prefetch(c + i * stride);
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) __builtin_prefetch(next + i * 16);
    for (long k = 0; k < depth; k += 4) {
        for (int ahead = 0; ahead < 4 * tile_down; ahead += 16) __builtin_prefetch(a + 32 * tile_down + ahead);
#pragma GCC unroll 4
        for (int step = 0; step < 4; ++step) {
            vec row[tile_vecs];
#pragma GCC unroll 2
            for (int j = 0; j < tile_vecs; ++j) row[j] = load(b + step * tile_right + j * lanes);
#pragma GCC unroll 16
            for (int i = 0; i < tile_down; ++i) {
                const vec x = splat(a[step * tile_down + i]);
#pragma GCC unroll 2
                for (int j = 0; j < tile_vecs; ++j) sums[i][j] += x * row[j];
            }
        }
        a += 4 * tile_down, b += 4 * tile_right;
    }
#pragma GCC unroll 16
    for (int i = 0; i < tile_down; ++i)
#pragma GCC unroll 2
        for (int j = 0; j < tile_vecs; ++j) {
            float* to = c + i * stride + j * lanes;
            store(to, adds ? load(to) + sums[i][j] : sums[i][j]);
        }
}

// The tile at the lower or right edge, of which only a part is there.
inline void edge_tile(long depth, const float* a, const float* b, float* c, long stride, bool adds, long rows,
                      long columns) {
    alignas(64) float whole[tile_down * tile_right];
    product_tile<false>(depth, a, b, whole, tile_right, b);
    for (long i = 0; i < rows; ++i)
        for (long j = 0; j < columns; ++j) {
            float& to = c[i * stride + j];
            to = whole[i * tile_right + j] + (adds ? to : 0);
        }
}

inline long panels_of(long count, long width) { return (count + width - 1) / width; }

// c = or += a b of at most `depth_at_once`: a's panels lie one after the other, b's `b_step` numbers apart.
inline void product_of_panels(long rows, long columns, long depth, const float* a, const float* b, long b_step, float* c,
                              long stride, bool adds) {
    const long whole_depth = (depth + 3) / 4 * 4;
    for (long j = 0; j < columns; j += tile_right) {
        const float* own_b = b + j / tile_right * b_step;
        for (long i = 0; i < rows; i += tile_down) {
            const float* own_a = a + i * whole_depth;
            float* to = c + i * stride + j;
            const long down = std::min<long>(tile_down, rows - i), right = std::min(tile_right, columns - j);
            if (down < tile_down || right < tile_right)
                edge_tile(whole_depth, own_a, own_b, to, stride, adds, down, right);
            else if (adds)
                product_tile<true>(whole_depth, own_a, own_b, to, stride, own_b + b_step + i / tile_down * 256);
            else
                product_tile<false>(whole_depth, own_a, own_b, to, stride, own_b + b_step + i / tile_down * 256);
        }
    }
}

inline void fill_rows(const MatrixView& a, long row, long rows, long k, long depth, float* panels) {
    const long whole_depth = (depth + 3) / 4 * 4;
    for (long i = 0; i < rows; i += tile_down)
        fill_panel<tile_down>(a.data + (row + i) * a.down + k * a.right, a.down, a.right,
                              std::min<long>(tile_down, rows - i), depth, panels + i * whole_depth);
}

void product(const Product& p, int threads) {
    static thread_local Scratch shared;
    const long columns = panels_of(p.columns, tile_right), step = depth_at_once * tile_right;
    const long blocks = std::clamp(most_of_a_pass / (columns * step), 1L, panels_of(p.depth, depth_at_once));
    const long pass_depth = blocks * depth_at_once;
    float* const b = shared.of(blocks * columns * step);
    // Enough tasks for all threads, also where one is held up by something else.
    long rows_at_once = most_panels * tile_down;
    while (rows_at_once > 2 * tile_down && panels_of(p.rows, rows_at_once) < 8 * threads)
        rows_at_once = rows_at_once / tile_down / 2 * tile_down;
    const long tasks = panels_of(p.rows, rows_at_once);
#pragma omp parallel num_threads(threads)
    {
        static thread_local Scratch own;
        float* const a = own.of(most_panels * tile_down * depth_at_once);
        for (long pass = 0; pass < p.depth; pass += pass_depth) {
            const long end = std::min(p.depth, pass + pass_depth);
            const long here = panels_of(end - pass, depth_at_once);
#pragma omp for schedule(static)
            for (long i = 0; i < here * columns; ++i) {
                const long k = pass + i / columns * depth_at_once, j = i % columns * tile_right;
                fill_panel<tile_right>(p.b.data + j * p.b.right + k * p.b.down, p.b.right, p.b.down,
                                       std::min(tile_right, p.columns - j), std::min(depth_at_once, end - k), b + i * step);
            }
#pragma omp for schedule(dynamic)
            for (long t = 0; t < tasks; ++t) {
                const long row = t * rows_at_once, rows = std::min(rows_at_once, p.rows - row);
                for (long k = pass; k < end; k += depth_at_once) {
                    const long depth = std::min(depth_at_once, end - k);
                    fill_rows(p.a, row, rows, k, depth, a);
                    product_of_panels(rows, p.columns, depth, a, b + (k - pass) / depth_at_once * columns * step, step,
                                      p.c + row * p.stride, p.stride, p.adds || k > 0);
                }
            }
        }
    }
}

}  // namespace
}  // namespace wootz::WOOTZ_ISA
