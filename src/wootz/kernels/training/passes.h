// What stands between products, each in as few passes over memory as there can be: RMSNorm, gated activations, rotary
// positions and the loss, with their gradients. PyTorch's operations one by one write and read every step between.

#pragma once
#include <vector>

#include "simd.h"
#include "training/training.h"

namespace wootz::WOOTZ_ISA {
namespace {

// `work(i)` for i = 0, lanes, … and what is left over one by one: with vectors, and with floats in the first lane.
template <class Work>
inline void over(long count, const Work& work) {
    long i = 0;
    for (; i + lanes <= count; i += lanes) work(i, [](const float* p) { return load(p); }, [](float* p, vec v) { store(p, v); });
    for (; i < count; ++i) work(i, [](const float* p) { return splat(*p); }, [](float* p, vec v) { *p = v[0]; });
}

constexpr long rows_of_a_task = 32;

// `work(first, last)` over some rows each; which rows go together does not depend on the number of threads.
template <class Work>
inline void in_tasks(long rows, int threads, const Work& work) {
    const long tasks = (rows + rows_of_a_task - 1) / rows_of_a_task;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long t = 0; t < tasks; ++t) work(t * rows_of_a_task, std::min(rows, (t + 1) * rows_of_a_task));
}

void norm(const float* x, const float* weight, float eps, long rows, long size, float* y, float* inverse, int threads) {
    in_tasks(rows, threads, [&](long first, long last) {
        for (long r = first; r < last; ++r) {
            const float* own = x + r * size;
            vec squares = {};
            float rest = 0;
            long i = 0;
            for (; i + lanes <= size; i += lanes) squares += load(own + i) * load(own + i);
            for (; i < size; ++i) rest += own[i] * own[i];
            const float factor = 1 / std::sqrt((sum(squares) + rest) / size + eps);
            inverse[r] = factor;
            over(size, [&](long i, auto get, auto put) { put(y + r * size + i, get(own + i) * factor * get(weight + i)); });
        }
    });
}

void norm_backward(const float* x, const float* weight, const float* inverse, const float* dy, long rows, long size,
                   float* dx, float* dweight, int threads) {
    const long tasks = (rows + rows_of_a_task - 1) / rows_of_a_task;
    std::vector<float> parts(tasks * size);
    in_tasks(rows, threads, [&](long first, long last) {
        float* const part = parts.data() + first / rows_of_a_task * size;
        for (long r = first; r < last; ++r) {
            const float *own = x + r * size, *from = dy + r * size;
            const float factor = inverse[r];
            vec products = {};
            float rest = 0;
            long i = 0;
            for (; i + lanes <= size; i += lanes) products += load(own + i) * load(from + i) * load(weight + i);
            for (; i < size; ++i) rest += own[i] * from[i] * weight[i];
            const float mean = (sum(products) + rest) / size * factor * factor;
            over(size, [&](long i, auto get, auto put) {
                const vec grad = get(from + i), number = get(own + i);
                put(dx + r * size + i, (grad * get(weight + i) - number * mean) * factor);
                put(part + i, get(part + i) + grad * number * factor);
            });
        }
    });
    std::fill(dweight, dweight + size, 0.0f);
    for (long t = 0; t < tasks; ++t)
        for (long i = 0; i < size; ++i) dweight[i] += parts[t * size + i];
}

inline vec sigmoid(vec x) { return 1.0f / (1.0f + exp_of(-x)); }

// act(x) = x * sigmoid(inner(x)), of which both gates are: {act(x), its derivative}.
struct Activated {
    vec value, slope;
};

inline Activated activate(Activation activation, vec x) {
    constexpr float twice_root = 1.5957691216057308f;  // 2 sqrt(2 / pi): gelu's tanh as a sigmoid
    const bool gelu = activation == GELU_TANH;
    const vec inner = gelu ? (x + 0.044715f * x * x * x) * twice_root : x;
    const vec inner_slope = gelu ? (1.0f + 3 * 0.044715f * x * x) * twice_root : splat(1.0f);
    const vec s = sigmoid(inner);
    return {x * s, s + x * s * (1.0f - s) * inner_slope};
}

void gated(Activation activation, const float* x, long rows, long width, float* y, int threads) {
    in_tasks(rows, threads, [&](long first, long last) {
        for (long r = first; r < last; ++r) {
            const float *gates = x + 2 * r * width, *up = gates + width;
            over(width, [&](long i, auto get, auto put) {
                put(y + r * width + i, activate(activation, get(gates + i)).value * get(up + i));
            });
        }
    });
}

void gated_backward(Activation activation, const float* x, const float* dy, long rows, long width, float* dx,
                    int threads) {
    in_tasks(rows, threads, [&](long first, long last) {
        for (long r = first; r < last; ++r) {
            const float *gates = x + 2 * r * width, *up = gates + width, *from = dy + r * width;
            float* const to = dx + 2 * r * width;
            over(width, [&](long i, auto get, auto put) {
                const auto [value, slope] = activate(activation, get(gates + i));
                const vec grad = get(from + i);
                put(to + i, grad * get(up + i) * slope);
                put(to + width + i, grad * value);
            });
        }
    });
}

void rotate(const Heads& x, long rows, long heads, long head_dim, const float* cos, const float* sin, long dim, bool back,
            float* y, int threads) {
    const long half = dim / 2;
    in_tasks(rows, threads, [&](long first, long last) {
        for (long r = first; r < last; ++r) {
            const float *cosines = cos + r * dim, *sines = sin + r * dim;
            for (long h = 0; h < heads; ++h) {
                const float* from = x.data + r * x.stride + h * head_dim;
                float* to = y + (r * heads + h) * head_dim;
                // Turning back, a half gets from the other what it gave to it.
                const float *low = back ? sines + half : sines, *high = back ? sines : sines + half;
                over(half, [&](long i, auto get, auto put) {
                    const vec a = get(from + i), b = get(from + half + i);
                    put(to + i, a * get(cosines + i) + b * get(low + i));
                    put(to + half + i, b * get(cosines + half + i) + a * get(high + i));
                });
                std::copy(from + dim, from + head_dim, to + dim);
            }
        }
    });
}

double cross_entropy(float* logits, const int64_t* labels, long rows, long vocabulary, long of, int threads) {
    std::vector<double> losses(rows);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 4)
    for (long r = 0; r < rows; ++r) {
        float* const row = logits + r * vocabulary;
        const float asked = row[labels[r]];
        vec tops = splat(asked);
        over(vocabulary, [&](long i, auto get, auto) { tops = larger(get(row + i), tops); });
        const float most = largest(tops);
        double total = 0;
        for (long block = 0; block < vocabulary; block += 1024) {
            const long count = std::min(1024L, vocabulary - block);
            vec part = {};
            float rest = 0;
            long i = 0;
            float* const own = row + block;
            for (; i + lanes <= count; i += lanes) {
                const vec e = exp_of(load(own + i) - most);
                store(own + i, e);
                part += e;
            }
            for (; i < count; ++i) rest += own[i] = exp_of(splat(own[i] - most))[0];
            total += sum(part) + rest;
        }
        const float factor = float(1 / (total * of));
        over(vocabulary, [&](long i, auto get, auto put) { put(row + i, get(row + i) * factor); });
        row[labels[r]] -= 1.0f / of;
        losses[r] = most + std::log(total) - asked;
    }
    double sum_of_losses = 0;
    for (double loss : losses) sum_of_losses += loss;
    return sum_of_losses;
}

}  // namespace
}  // namespace wootz::WOOTZ_ISA
