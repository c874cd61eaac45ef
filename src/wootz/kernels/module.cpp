// The Python module: picks the build of the kernels that this processor can run, and hands it raw addresses.
// `wootz.kernels` checks shapes and types; nothing is checked here.

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <string>
#include <vector>

#include "kernels.h"

namespace wootz {
namespace baseline { extern const Kernels kernels; }
#ifdef WOOTZ_X86
namespace avx2 { extern const Kernels kernels; }
namespace avx512 { extern const Kernels kernels; }
#endif

struct Build {
    const char* instruction_set;
    const Kernels* kernels;
};

// The builds this processor can run, the widest first.
static std::vector<Build> usable() {
    std::vector<Build> builds;
#ifdef WOOTZ_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq"))
        builds.push_back({"avx512", &avx512::kernels});
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
        builds.push_back({"avx2", &avx2::kernels});
#endif
    builds.push_back({"baseline", &baseline::kernels});
    return builds;
}

}  // namespace wootz

namespace nb = nanobind;

NB_MODULE(_native, m) {
    static const std::vector<wootz::Build> builds = wootz::usable();
    static wootz::Kernels k = *builds.front().kernels;
    using release = nb::call_guard<nb::gil_scoped_release>;

    m.def("instruction_sets", [] {
        nb::list names;
        for (auto& build : builds) names.append(build.instruction_set);
        return names;
    });
    m.def("use", [](const std::string& name) {
        for (auto& build : builds)
            if (name == build.instruction_set) k = *build.kernels;
    });
    m.def(
        "linear",
        [](int format, uintptr_t weight, uintptr_t x, uintptr_t y, long rows, long cols, long tokens, int threads) {
            k.linear(format, (const uint8_t*)weight, (const float*)x, (float*)y, rows, cols, tokens, threads);
        },
        release());
    m.def(
        "dequantize",
        [](int format, uintptr_t weight, uintptr_t out, long rows, long cols, int threads) {
            k.dequantize(format, (const uint8_t*)weight, (float*)out, rows, cols, threads);
        },
        release());
    m.def(
        "decode",
        [](uintptr_t cache, uintptr_t q, uintptr_t out, uintptr_t rows, uintptr_t tables, uintptr_t lengths,
           long sequences, long max_blocks, long block_size, long kv_heads, long group, long head_dim, float scale,
           int threads) {
            k.decode((const float*)cache, (const float*)q, (float*)out, (const int32_t*)rows, (const int32_t*)tables,
                     (const int32_t*)lengths, sequences, max_blocks, block_size, kv_heads, group, head_dim, scale,
                     threads);
        },
        release());
}
