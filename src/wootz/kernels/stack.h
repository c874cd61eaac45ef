// A whole decoder in one parallel region: what would be some dozen operations per layer, each started and awaited from
// Python, is seven or eight phases with a barrier in between. At one token per step that waiting is as long as the work.
//
//     norm, round  ->  q, k, v by head: norm, turn, into the cache  ->  attention, round  ->  output into the stream
//     norm, round  ->  gate and up: activate, round                ->  down into the stream
//
// Within a phase a thread that is held up by other processes leaves work to the others. Everything that is multiplied with weights was rounded to 8 bits by whoever made it, while it was at hand.

#pragma once
#include <omp.h>

#include <atomic>
#include <vector>

#include "attention.h"
#include "packed.h"

namespace wootz::WOOTZ_ISA {
namespace {

constexpr long tokens_of_task = 128, rows_of_task = packed_columns;

inline float rms_factor(const float* x, long n, float eps) {
    vec squares = {};
    long i = 0;
    for (; i + lanes <= n; i += lanes) squares += load(x + i) * load(x + i);
    float total = sum(squares);
    for (; i < n; ++i) total += x[i] * x[i];
    return 1.0f / std::sqrt(total / float(n) + eps);
}

inline void rms_norm(const float* x, const Norm& norm, float* out, long n) {
    const float factor = rms_factor(x, n, norm.eps);
    for (long i = 0; i < n; ++i) out[i] = x[i] * factor * norm.weight[i];
}

inline void rotate(float* x, const float* cos, const float* sin, long dim) {
    const long half = dim / 2;
    for (long i = 0; i < half; ++i) {
        const float a = x[i], b = x[i + half];
        x[i] = a * cos[i] + b * sin[i];
        x[i + half] = b * cos[i + half] + a * sin[i + half];
    }
}

inline vec activated(vec gate, Activation activation) {
    vec x = gate;
    if (activation == GELU_TANH) x = 1.5957691216f * (gate + 0.044715f * gate * gate * gate);
    return gate / (1.0f + exp_of(-x));  // gelu's tanh form is x * sigmoid(2 u)
}

struct Likeliest {
    float logit = -INFINITY;
    long token = 0;
    // Of equals the first, in whatever order they come.
    void see(float other, long at) {
        if (other > logit || (other == logit && at < token)) logit = other, token = at;
    }
};

struct Worker {  // what one thread needs for itself
    AttentionScratch attention;
    std::vector<float> first, second;
};

struct StackRun {
    const std::vector<StackLayer>& layers;
    StackStep& step;
    ActivationBuffer normed, attended, gated;
    std::vector<float> q, attention_out, part;
    std::vector<long> positions, places;  // of each token: in its sequence, and in the cache

    StackRun(const std::vector<StackLayer>& layers, StackStep& step) : layers(layers), step(step) {}
};

// Work that is shared out. Each thread has a stretch of its own, so that what it reads lies in a row, and when it is done
// takes what is left of the others'.
struct alignas(64) Counter {
    std::atomic<long> next{0};
};

class Phases {
  public:
    Phases(long count, int threads) : threads_(threads), counters_(count * threads) {}

    // The next phase: `work(i)` for all i < count, by all threads, which go on together when all is done.
    template <class Work>
    void run(long& phase, long count, const Work& work) {
        Counter* own = counters_.data() + phase++ * threads_;
        for (int turn = 0, me = omp_get_thread_num(); turn < threads_; ++turn) {
            const int whose = (me + turn) % threads_;
            const long first = count * whose / threads_, end = count * (whose + 1) / threads_;
            for (long i; (i = first + own[whose].next.fetch_add(1, std::memory_order_relaxed)) < end;) work(i);
        }
#pragma omp barrier
    }

  private:
    int threads_;
    std::vector<Counter> counters_;
};

// Rows [row, row + rows_here) of a weight times tokens [t0, t0 + n), bias added, into out (n, rows_here).
inline void product(const PackedMatrix& w, long row, long rows_here, const ActivationBuffer& x, long t0, long n,
                    std::vector<float>& out) {
    if (long(out.size()) < n * rows_here) out.resize(n * rows_here);
    Activations view = x.view();
    view.q += t0 * view.columns;
    view.scale += t0 * view.blocks();
    view.sum += t0 * view.blocks();
    packed_rows(w.format, w.data, row / lanes, rows_here / lanes, view, n, out.data(), rows_here);
    if (w.bias)
        for (long t = 0; t < n; ++t)
            for (long r = 0; r < rows_here; ++r) out[t * rows_here + r] += w.bias[row + r];
}

// One head of queries, keys or values for some tokens: multiplied, normed, turned, and put where it belongs.
inline void project_head(const StackLayer& layer, StackRun& run, Worker& own, long head, long t0, long n) {
    const long d = layer.cache.head_dim, kv_heads = layer.cache.kv_heads;
    const bool is_q = head < layer.heads, is_k = !is_q && head < layer.heads + kv_heads;
    const long index = is_q ? head : is_k ? head - layer.heads : head - layer.heads - kv_heads;
    const Norm& norm = is_q ? layer.q_norm : layer.k_norm;
    const Angles& angles = layer.angles;
    product(is_q ? layer.q : is_k ? layer.k : layer.v, index * d, d, run.normed, t0, n, own.first);
    for (long t = 0; t < n; ++t) {
        float* x = own.first.data() + t * d;
        if (is_q || is_k) {
            if (norm.weight) rms_norm(x, norm, x, d);
            const long at = run.positions[t0 + t] * angles.dim;
            rotate(x, angles.cos + at, angles.sin + at, angles.dim);
        }
        if (is_q)
            std::memcpy(run.q.data() + ((t0 + t) * layer.heads + index) * d, x, d * sizeof(float));
        else
            write_numbers(layer.cache, ((run.places[t0 + t] * 2 + !is_k) * kv_heads + index) * d, x);
    }
}

// Rows of a product that go into the residual stream, or wait in `part` for the norm that comes first.
inline void into_stream(const PackedMatrix& w, bool waits, const ActivationBuffer& x, StackRun& run, Worker& own, long row,
                        long t0, long n) {
    const long rows_here = std::min(rows_of_task, w.rows - row), hidden = run.step.hidden;
    product(w, row, rows_here, x, t0, n, own.first);
    for (long t = 0; t < n; ++t)
        for (long r = 0; r < std::min(rows_here, hidden - row); ++r) {
            const long at = (t0 + t) * hidden + row + r;
            if (waits)
                run.part[at] = own.first[t * rows_here + r];
            else
                run.step.x[at] += own.first[t * rows_here + r];
        }
}

inline void gate_and_up(const StackLayer& layer, StackRun& run, Worker& own, long row, long t0, long n) {
    product(layer.gate, row, rows_of_task, run.normed, t0, n, own.first);
    product(layer.up, row, rows_of_task, run.normed, t0, n, own.second);
    for (long t = 0; t < n; ++t) {
        float* gate = own.first.data() + t * rows_of_task;
        const float* up = own.second.data() + t * rows_of_task;
        for (long i = 0; i < rows_of_task; i += lanes)
            store(gate + i, activated(load(gate + i), layer.activation) * load(up + i));
        run.gated.put(t0 + t, row, gate);
    }
}

// Bring into the stream what waits for a norm.
inline void add_waiting(const Norm& output_norm, StackRun& run, Worker& own, long t) {
    if (!output_norm.weight) return;
    const long hidden = run.step.hidden;
    own.first.resize(std::max<size_t>(own.first.size(), hidden));
    rms_norm(&run.part[t * hidden], output_norm, own.first.data(), hidden);
    for (long i = 0; i < hidden; ++i) run.step.x[t * hidden + i] += own.first[i];
}

// Norm and round a row for the next product.
inline void norm_row(const Norm& output_norm, const Norm& norm, StackRun& run, Worker& own, long t) {
    const long hidden = run.step.hidden;
    float* x = run.step.x + t * hidden;
    own.first.resize(std::max<size_t>(own.first.size(), hidden));
    add_waiting(output_norm, run, own, t);
    const float* normed = x;
    if (norm.weight) {
        rms_norm(x, norm, own.first.data(), hidden);
        normed = own.first.data();
    }
    run.normed.put_row(t, normed);
}

// Attention in two phases: prompts, and blocks of keys of single tokens; then what the latter saw, merged. `done(token,
// first head, heads)` for what is ready.
template <class Share, class Done>
inline void attend_all(const AttentionCall& call, const AttentionPlan& plan, SeenBuffer& seen, AttentionScratch& own,
                       const Share& share, const Done& done) {
    const long kv_heads = call.cache.kv_heads, group = call.heads / kv_heads;
    const long prompts = long(plan.prompts.size()) * kv_heads, blocks = long(plan.blocks.size());
    const long parts = blocks < 2 * omp_get_num_threads() ? kv_heads : 1;  // of a block: a short text has to be shared out too
    share(prompts + blocks * parts, [&](long i) {
        if (i >= prompts)
            return attend_block(call, plan.blocks[(i - prompts) / parts], (i - prompts) % parts, kv_heads / parts, seen, own);
        const AttentionPlan::Prompt& task = plan.prompts[plan.prompts.size() - 1 - i / kv_heads];  // the longest first
        attend_prompt(call, task, i % kv_heads, own);
        const long first = task.chunk->row + task.from;
        for (long t = first; t < first + task.count; ++t) done(t, i % kv_heads * group, group);
    });
    if (plan.singles.empty()) return;
    share(long(plan.singles.size()) * kv_heads, [&](long i) {
        const AttentionPlan::Single& single = plan.singles[i / kv_heads];
        const long first = i % kv_heads * group;
        for (long head = first; head < first + group; ++head) merge_blocks(call, single, head, seen, own);
        done(single.chunk->row + single.from, first, group);
    });
}

// Rows of the output layer, times the tokens that were asked for; `best` are those tokens'.
inline void logits_of(const PackedMatrix& head, StackRun& run, Worker& own, StackLogits& logits, Likeliest* best, long row,
                      long t0, long n) {
    const long rows_here = std::min(rows_of_task, head.rows - row), shown = std::min(rows_here, logits.vocabulary - row);
    product(head, row, rows_here, run.normed, t0, n, own.first);
    for (long t = 0; t < n; ++t) {
        const float* found = own.first.data() + t * rows_here;
        std::memcpy(logits.out + (t0 + t) * logits.vocabulary + row, found, shown * sizeof(float));
        vec tops = splat(-INFINITY);
        long i = 0;
        for (; i + lanes <= shown; i += lanes) tops = larger(tops, load(found + i));
        const float top = std::max(largest(tops), i < shown ? *std::max_element(found + i, found + shown) : -INFINITY);
        if (top >= best[t0 + t].logit) best[t0 + t].see(top, row + (std::find(found, found + shown, top) - found));
    }
}

// Layers and last norm, and for a whole step what is before and behind them: `tokens` and `logits` are given together.
inline void run_stack(const std::vector<StackLayer>& layers, const StackEnds& ends, StackStep& step, const int64_t* tokens,
                      StackLogits* logits, int threads) {
    StackRun run(layers, step);
    const long T = step.tokens;
    const AttentionPlan plan(step.chunks);
    SeenBuffer seen;
    long widest = 0, q_width = 0;
    for (const StackLayer& layer : layers) {
        widest = std::max(widest, layer.down.columns);
        q_width = std::max(q_width, layer.heads * layer.cache.head_dim);
        seen.resize(std::max(long(seen.tops.size()), long(plan.blocks.size()) * layer.heads), layer.cache.head_dim);
    }
    run.normed.resize(T, step.hidden);
    run.gated.resize(T, widest);
    run.attended.resize(T, q_width);
    run.q.resize(T * q_width);
    run.attention_out.resize(T * q_width);
    run.part.resize(T * step.hidden);
    const long block_size = layers[0].cache.block_size;
    for (const Chunk& chunk : step.chunks)
        for (long p = chunk.start; p < chunk.start + chunk.tokens; ++p) {
            run.positions.push_back(p);
            run.places.push_back(chunk.table[p / block_size] * block_size + p % block_size);
        }
    const Norm none;
    const long asked = logits ? long(logits->rows.size()) : 0;
    std::vector<Likeliest> likeliest(asked * threads);
    Phases phases(8 * layers.size() + 4, threads);

#pragma omp parallel num_threads(threads)
    {
        Worker own;
        long phase = 0;
        const auto share = [&](long count, auto&& work) { phases.run(phase, count, work); };
        // Pieces of (rows, tokens): all rows for one block of tokens, which stays in the cache, before the next block.
        const auto pieces = [&](long tokens, long groups, auto&& work) {
            share(groups * ((tokens + tokens_of_task - 1) / tokens_of_task), [&](long i) {
                const long t0 = i / groups * tokens_of_task;
                work(i % groups, t0, std::min(tokens_of_task, tokens - t0));
            });
        };
        const Norm* waiting = &none;
        if (tokens)
            share(T, [&](long t) {
                float* x = step.x + t * step.hidden;
                packings[ends.embedding.format].rows(ends.embedding.data, step.hidden, tokens + t, 1, x);
                for (long i = 0; i < step.hidden; ++i) x[i] *= ends.scale;
            });
        for (const StackLayer& layer : layers) {
            const long d = layer.cache.head_dim, kv_heads = layer.cache.kv_heads;
            const long hidden_groups = (step.hidden + rows_of_task - 1) / rows_of_task;
            share(T, [&](long t) { norm_row(*waiting, layer.attention_norm, run, own, t); });
            pieces(T, layer.heads + 2 * kv_heads,
                   [&](long head, long t0, long n) { project_head(layer, run, own, head, t0, n); });
            const AttentionCall call{layer.cache, layer.heads, run.q.data(), run.attention_out.data(), layer.scale,
                                     layer.window};
            attend_all(call, plan, seen, own.attention, share, [&](long t, long head, long heads) {
                for (long c = head * d; c < (head + heads) * d; c += packed_columns)
                    run.attended.put(t, c, &run.attention_out[t * layer.heads * d + c]);
            });
            pieces(T, hidden_groups, [&](long i, long t0, long n) {
                into_stream(layer.output, layer.attention_output_norm.weight, run.attended, run, own, i * rows_of_task, t0, n);
            });
            share(T, [&](long t) { norm_row(layer.attention_output_norm, layer.mlp_norm, run, own, t); });
            pieces(T, layer.down.columns / rows_of_task,
                   [&](long i, long t0, long n) { gate_and_up(layer, run, own, i * rows_of_task, t0, n); });
            pieces(T, hidden_groups, [&](long i, long t0, long n) {
                into_stream(layer.down, layer.mlp_output_norm.weight, run.gated, run, own, i * rows_of_task, t0, n);
            });
            waiting = &layer.mlp_output_norm;
        }
        share(T, [&](long t) {
            float* x = step.x + t * step.hidden;
            add_waiting(*waiting, run, own, t);
            rms_norm(x, ends.norm, x, step.hidden);
        });
        if (asked) {
            Likeliest* best = likeliest.data() + omp_get_thread_num() * asked;
            share(asked, [&](long i) { run.normed.put_row(i, step.x + logits->rows[i] * step.hidden); });
            pieces(asked, (ends.head.rows + rows_of_task - 1) / rows_of_task, [&](long i, long t0, long n) {
                logits_of(ends.head, run, own, *logits, best, i * rows_of_task, t0, n);
            });
        }
    }
    for (long i = 0; i < asked; ++i) {
        for (int other = 1; other < threads; ++other)
            likeliest[i].see(likeliest[other * asked + i].logit, likeliest[other * asked + i].token);
        logits->likeliest.push_back(likeliest[i].token);
    }
}

void stack(const std::vector<StackLayer>& layers, const Norm& last, StackStep& step, int threads) {
    run_stack(layers, {last}, step, nullptr, nullptr, threads);
}

void whole(const std::vector<StackLayer>& layers, const StackEnds& ends, StackStep& step, const int64_t* tokens,
           StackLogits& logits, int threads) {
    std::vector<float> x(step.tokens * step.hidden);
    step.x = x.data();
    run_stack(layers, ends, step, tokens, &logits, threads);
}

// --- one product, and attention, by themselves -------------------------------------------------------------------

void packed_linear(const PackedMatrix& w, const float* x, float* y, long stride, long tokens, int threads) {
    ActivationBuffer rounded;
    rounded.resize(tokens, w.columns);
    Phases phases(2, threads);
    const long groups = (w.rows + rows_of_task - 1) / rows_of_task;
    const long blocks_of_tokens = (tokens + tokens_of_task - 1) / tokens_of_task;
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> own;
        long phase = 0;
        phases.run(phase, tokens, [&](long t) { rounded.put_row(t, x + t * w.columns); });
        phases.run(phase, groups * blocks_of_tokens, [&](long i) {
            const long row = i % groups * rows_of_task, t0 = i / groups * tokens_of_task;
            const long n = std::min(tokens_of_task, tokens - t0), rows_here = std::min(rows_of_task, w.rows - row);
            product(w, row, rows_here, rounded, t0, n, own);
            for (long t = 0; t < n; ++t)
                std::memcpy(y + (t0 + t) * stride + row, own.data() + t * rows_here,
                            std::min(rows_here, stride - row) * sizeof(float));
        });
    }
}

void unpacked_rows(const PackedMatrix& w, const int64_t* rows, long count, float* out) {
    packings[w.format].rows(w.data, w.columns, rows, count, out);
}

void attend(const CacheView& cache, const std::vector<Chunk>& chunks, const float* q, float* out, long heads, float scale,
            long window, int threads) {
    const AttentionPlan plan(chunks);
    SeenBuffer seen;
    seen.resize(long(plan.blocks.size()) * heads, cache.head_dim);
    Phases phases(2, threads);
#pragma omp parallel num_threads(threads)
    {
        AttentionScratch scratch;
        long phase = 0;
        attend_all({cache, heads, q, out, scale, window}, plan, seen, scratch,
                   [&](long count, auto&& work) { phases.run(phase, count, work); }, [](long, long, long) {});
    }
}

}  // namespace
}  // namespace wootz::WOOTZ_ISA
