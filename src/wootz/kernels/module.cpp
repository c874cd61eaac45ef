// The Python module: picks the build of the kernels that this processor can run, and hands it raw addresses.
// `wootz.kernels` checks shapes and types; nothing is checked here.

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <tuple>
#include <vector>

#include "kernels.h"
#include "training/training.h"

#if defined(WOOTZ_ARM) && defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(WOOTZ_ARM)
#include <sys/auxv.h>
#endif

namespace wootz {
#define BUILD extern const Kernels kernels; extern const TrainingKernels training_kernels;
#ifdef WOOTZ_ARM
namespace neon { BUILD }
namespace dotprod { BUILD }
#else
namespace baseline { BUILD }
#endif
#ifdef WOOTZ_X86
namespace avx2 { BUILD }
namespace avx512 { BUILD }
namespace avx512vnni { BUILD }
#endif
#undef BUILD

struct Build {
    const char* instruction_set;
    const Kernels* kernels;
    const TrainingKernels* training;
};

#ifdef WOOTZ_ARM
static bool multiplies_bytes_in_fours() {  // FEAT_DotProd
#ifdef __APPLE__
    int has = 0;
    size_t size = sizeof has;
    return sysctlbyname("hw.optional.arm.FEAT_DotProd", &has, &size, nullptr, 0) == 0 && has;
#else
    return getauxval(AT_HWCAP) & (1UL << 20);  // HWCAP_ASIMDDP
#endif
}
#endif

#define WOOTZ_BUILD(isa) {#isa, &isa::kernels, &isa::training_kernels}

// The builds this processor can run, the fastest first.
static std::vector<Build> usable() {
    std::vector<Build> builds;
#ifdef WOOTZ_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq")) {
        if (__builtin_cpu_supports("avx512vnni")) builds.push_back(WOOTZ_BUILD(avx512vnni));
        builds.push_back(WOOTZ_BUILD(avx512));
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
        builds.push_back(WOOTZ_BUILD(avx2));
#endif
#ifdef WOOTZ_ARM
    if (multiplies_bytes_in_fours()) builds.push_back(WOOTZ_BUILD(dotprod));
    builds.push_back(WOOTZ_BUILD(neon));
#else
    builds.push_back(WOOTZ_BUILD(baseline));
#endif
    return builds;
}

using Address = uintptr_t;
using Matrix = std::tuple<int, Address, long, long, Address>;  // format, data, rows, columns, bias
using NormOf = std::tuple<Address, float>;                     // weight, eps
using ChunkOf = std::tuple<long, long, long, Address>;         // row, tokens, start, table
using WholeChunkOf = std::tuple<long, long, long, std::vector<int32_t>>;
using AnglesOf = std::tuple<Address, Address, long>;           // cos, sin, dim
using CacheOf = std::tuple<Address, long, long, long, bool>;   // data, block_size, kv_heads, head_dim, is_half
using ViewOf = std::tuple<Address, long, long>;                // data, down, right
using HeadsOf = std::tuple<Address, long>;                     // data, stride
using SizesOf = std::tuple<long, long, long>;                  // heads, kv_heads, head_dim
using DrawOf = std::tuple<float, long, double, float, double>;  // temperature, top_k, top_p, min_p, place

static PackedMatrix matrix(const Matrix& m) {
    auto [format, data, rows, columns, bias] = m;
    return {format, (const uint8_t*)data, rows, columns, (const float*)bias};
}

static Norm norm(const NormOf& n) { return {(const float*)std::get<0>(n), std::get<1>(n)}; }

static CacheView view(const CacheOf& c) {
    auto [data, block_size, kv_heads, head_dim, is_half] = c;
    return {(void*)data, block_size, kv_heads, head_dim, is_half};
}

static std::vector<Chunk> chunks_of(const std::vector<ChunkOf>& given) {
    std::vector<Chunk> chunks;
    for (auto [row, tokens, start, table] : given) chunks.push_back({row, tokens, start, (const int32_t*)table});
    return chunks;
}

static MatrixView view(const ViewOf& v) { return {(const float*)std::get<0>(v), std::get<1>(v), std::get<2>(v)}; }

static Heads heads(const HeadsOf& h) { return {(float*)std::get<0>(h), std::get<1>(h)}; }

static PackedAttention packed(const std::vector<long>& lengths, const SizesOf& sizes, float scale,
                              const std::vector<HeadsOf>& parts, Address logsumexp) {
    auto [num_heads, kv_heads, head_dim] = sizes;
    return {lengths, num_heads, kv_heads, head_dim, scale, heads(parts.at(0)), heads(parts.at(1)),
            heads(parts.at(2)), heads(parts.at(3)), (float*)logsumexp};
}

struct Stack {
    std::vector<StackLayer> layers;
    StackEnds ends;
};

}  // namespace wootz

namespace nb = nanobind;
using namespace wootz;

NB_MODULE(_native, m) {
    static const std::vector<Build> builds = usable();
    static Kernels k = *builds.front().kernels;
    static TrainingKernels t = *builds.front().training;
    using release = nb::call_guard<nb::gil_scoped_release>;

    m.def("instruction_sets", [] {
        nb::list names;
        for (auto& build : builds) names.append(build.instruction_set);
        return names;
    });
    m.def("use", [](const std::string& name) {
        for (auto& build : builds)
            if (name == build.instruction_set) k = *build.kernels, t = *build.training;
    });
    m.def("lanes", [] { return k.lanes; });
    m.def(
        "linear",
        [](int format, Address weight, Address x, Address y, long rows, long cols, long tokens, int threads) {
            k.linear(format, (const uint8_t*)weight, (const float*)x, (float*)y, rows, cols, tokens, threads);
        },
        release());
    m.def(
        "packed_linear",
        [](const Matrix& weight, Address x, Address y, long stride, long tokens, int threads) {
            k.packed_linear(matrix(weight), (const float*)x, (float*)y, stride, tokens, threads);
        },
        release());
    m.def(
        "unpacked_rows",
        [](const Matrix& weight, Address rows, long count, Address out) {
            k.unpacked_rows(matrix(weight), (const int64_t*)rows, count, (float*)out);
        },
        release());
    m.def(
        "dequantize",
        [](int format, Address weight, Address out, long rows, long cols, int threads) {
            k.dequantize(format, (const uint8_t*)weight, (float*)out, rows, cols, threads);
        },
        release());
    m.def(
        "attend",
        [](const CacheOf& cache, const std::vector<ChunkOf>& chunks, Address q, Address out, long heads, float scale,
           long window, int threads) {
            k.attend(view(cache), chunks_of(chunks), (const float*)q, (float*)out, heads, scale, window, threads);
        },
        release());

    m.def(
        "draw",
        [](Address logits, long vocabulary, const std::vector<DrawOf>& given, int threads) {
            std::vector<Draw> draws;
            for (auto [temperature, top_k, top_p, min_p, place] : given)
                draws.push_back({temperature, top_k, top_p, min_p, place});
            std::vector<int64_t> tokens(draws.size());
            k.draw((const float*)logits, long(draws.size()), vocabulary, draws.data(), tokens.data(), threads);
            return tokens;
        },
        release());

    nb::class_<Stack>(m, "Stack")
        .def(nb::init<>())
        .def("add",
             [](Stack& stack, const std::vector<NormOf>& norms, const std::vector<Matrix>& matrices, const CacheOf& cache,
                long heads, long window, const AnglesOf& angles, float scale, int activation) {
                 StackLayer layer;
                 Norm* own[] = {&layer.attention_norm,  &layer.attention_output_norm, &layer.mlp_norm,
                                &layer.mlp_output_norm, &layer.q_norm,                &layer.k_norm};
                 for (size_t i = 0; i < 6; ++i) *own[i] = norm(norms.at(i));
                 PackedMatrix* weights[] = {&layer.q,    &layer.k,  &layer.v,   &layer.output,
                                            &layer.gate, &layer.up, &layer.down};
                 for (size_t i = 0; i < 7; ++i) *weights[i] = matrix(matrices.at(i));
                 layer.cache = view(cache);
                 layer.heads = heads;
                 layer.window = window;
                 auto [cos, sin, dim] = angles;
                 layer.angles = {(const float*)cos, (const float*)sin, dim};
                 layer.scale = scale;
                 layer.activation = Activation(activation);
                 stack.layers.push_back(layer);
             })
        .def(
            "run",
            [](const Stack& stack, Address x, long tokens, long hidden, const std::vector<ChunkOf>& chunks,
               const NormOf& last, int threads) {
                StackStep step{(float*)x, tokens, hidden, chunks_of(chunks)};
                k.stack(stack.layers, norm(last), step, threads);
            },
            release())
        .def("set_ends",
             [](Stack& stack, const NormOf& last, const Matrix& embedding, const Matrix& head, float scale) {
                 stack.ends = {norm(last), matrix(embedding), matrix(head), scale};
             })
        .def(
            "whole",
            [](const Stack& stack, const std::vector<int64_t>& tokens, const std::vector<WholeChunkOf>& given,
               const std::vector<long>& rows, Address logits, long vocabulary, int threads) {
                StackStep step{nullptr, long(tokens.size()), stack.ends.embedding.columns, {}};
                for (const auto& [row, count, start, table] : given)
                    step.chunks.push_back({row, count, start, table.data()});
                StackLogits asked{rows, (float*)logits, vocabulary, {}};
                k.whole(stack.layers, stack.ends, step, tokens.data(), asked, threads);
                return asked.likeliest;
            },
            release());

    m.def(
        "product",
        [](const SizesOf& sizes, const ViewOf& a, const ViewOf& b, Address c, long stride, bool adds, int threads) {
            auto [rows, columns, depth] = sizes;
            t.product({rows, columns, depth, view(a), view(b), (float*)c, stride, adds}, threads);
        },
        release());
    m.def(
        "packed_attention",
        [](const std::vector<long>& lengths, const SizesOf& sizes, float scale, const std::vector<HeadsOf>& parts,
           Address logsumexp, int threads) { t.attention(packed(lengths, sizes, scale, parts, logsumexp), threads); },
        release());
    m.def(
        "packed_attention_backward",
        [](const std::vector<long>& lengths, const SizesOf& sizes, float scale, const std::vector<HeadsOf>& parts,
           Address logsumexp, const std::vector<HeadsOf>& grads, int threads) {
            t.attention_backward(packed(lengths, sizes, scale, parts, logsumexp),
                                 {heads(grads.at(0)), heads(grads.at(1)), heads(grads.at(2)), heads(grads.at(3))},
                                 threads);
        },
        release());
    m.def(
        "norm",
        [](Address x, const NormOf& given, long rows, long size, Address y, Address inverse, int threads) {
            const Norm own = norm(given);
            t.norm((const float*)x, own.weight, own.eps, rows, size, (float*)y, (float*)inverse, threads);
        },
        release());
    m.def(
        "norm_backward",
        [](Address x, Address weight, Address inverse, Address dy, long rows, long size, Address dx, Address dweight,
           int threads) {
            t.norm_backward((const float*)x, (const float*)weight, (const float*)inverse, (const float*)dy, rows, size,
                            (float*)dx, (float*)dweight, threads);
        },
        release());
    m.def(
        "gated",
        [](int activation, Address x, long rows, long width, Address y, int threads) {
            t.gated(Activation(activation), (const float*)x, rows, width, (float*)y, threads);
        },
        release());
    m.def(
        "gated_backward",
        [](int activation, Address x, Address dy, long rows, long width, Address dx, int threads) {
            t.gated_backward(Activation(activation), (const float*)x, (const float*)dy, rows, width, (float*)dx, threads);
        },
        release());
    m.def(
        "rotate",
        [](const HeadsOf& x, const SizesOf& sizes, const AnglesOf& angles, bool back, Address y, int threads) {
            auto [rows, num_heads, head_dim] = sizes;
            auto [cos, sin, dim] = angles;
            t.rotate(heads(x), rows, num_heads, head_dim, (const float*)cos, (const float*)sin, dim, back, (float*)y,
                     threads);
        },
        release());
    m.def(
        "cross_entropy",
        [](Address logits, Address labels, long rows, long vocabulary, long of, int threads) {
            return t.cross_entropy((float*)logits, (const int64_t*)labels, rows, vocabulary, of, threads);
        },
        release());
}
