// One build of the CPU kernels as a program that computes what it is told on stdin: what an emulator of another
// processor runs (`emulation.py`). Every message is numbers (doubles, which hold any address), the memory that the call
// reads or writes, and after the call that memory comes back. Addresses are those of the other process.

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "kernels.h"
#include "training/training.h"

namespace wootz::WOOTZ_ISA {
extern const Kernels kernels;
extern const TrainingKernels training_kernels;
}
using namespace wootz;
using WOOTZ_ISA::kernels;
static const TrainingKernels& training = WOOTZ_ISA::training_kernels;

struct Region {
    long address, size;
    char* copy;  // aligned as the original is
};

static std::vector<Region> regions;
static std::vector<double> numbers;
static size_t at;

static void take(void* to, size_t size) {
    if (fread(to, 1, size, stdin) != size) exit(size == 0);
}

static long whole() { return long(numbers.at(at++)); }

template <class T>
static T* memory() {
    const long address = whole();
    for (const Region& region : regions)
        if (region.address <= address && address < region.address + region.size)
            return (T*)(region.copy + (address - region.address));
    if (address != 0) fprintf(stderr, "no memory for %lx\n", address), abort();
    return nullptr;
}

static PackedMatrix matrix() {
    PackedMatrix m;
    m.format = whole(), m.data = memory<uint8_t>(), m.rows = whole(), m.columns = whole(), m.bias = memory<float>();
    return m;
}

static Norm norm() {
    Norm n;
    n.weight = memory<float>(), n.eps = numbers.at(at++);
    return n;
}

static CacheView cache() {
    CacheView c;
    c.data = memory<void>(), c.block_size = whole(), c.kv_heads = whole(), c.head_dim = whole(), c.is_half = whole();
    return c;
}

static std::vector<Chunk> chunks() {
    std::vector<Chunk> all(whole());
    for (Chunk& c : all) c.row = whole(), c.tokens = whole(), c.start = whole(), c.table = memory<int32_t>();
    return all;
}

static StackLayer layer() {
    StackLayer l;
    for (Norm* n : {&l.attention_norm, &l.attention_output_norm, &l.mlp_norm, &l.mlp_output_norm, &l.q_norm, &l.k_norm})
        *n = norm();
    for (PackedMatrix* m : {&l.q, &l.k, &l.v, &l.output, &l.gate, &l.up, &l.down}) *m = matrix();
    l.cache = cache(), l.heads = whole(), l.window = whole();
    l.angles.cos = memory<float>(), l.angles.sin = memory<float>(), l.angles.dim = whole();
    l.scale = numbers.at(at++), l.activation = Activation(whole());
    return l;
}

static MatrixView matrix_view() {
    MatrixView v;
    v.data = memory<float>(), v.down = whole(), v.right = whole();
    return v;
}

static Heads heads() {
    Heads h;
    h.data = memory<float>(), h.stride = whole();
    return h;
}

static PackedAttention packed_attention() {
    PackedAttention p;
    p.lengths.resize(whole());
    for (long& length : p.lengths) length = whole();
    p.heads = whole(), p.kv_heads = whole(), p.head_dim = whole(), p.scale = numbers.at(at++);
    for (Heads* h : {&p.q, &p.k, &p.v, &p.out}) *h = heads();
    p.logsumexp = memory<float>();
    return p;
}

static void call() {
    at = 0;
    switch (whole()) {
        case 0: {
            const int format = whole();
            auto weight = memory<uint8_t>();
            auto x = memory<float>(), y = memory<float>();
            const long rows = whole(), cols = whole(), tokens = whole();
            return kernels.linear(format, weight, x, y, rows, cols, tokens, whole());
        }
        case 1: {
            const PackedMatrix m = matrix();
            auto x = memory<float>(), y = memory<float>();
            const long stride = whole(), tokens = whole();
            return kernels.packed_linear(m, x, y, stride, tokens, whole());
        }
        case 2: {
            const PackedMatrix m = matrix();
            auto rows = memory<int64_t>();
            const long count = whole();
            return kernels.unpacked_rows(m, rows, count, memory<float>());
        }
        case 3: {
            const int format = whole();
            auto weight = memory<uint8_t>();
            auto out = memory<float>();
            const long rows = whole(), cols = whole();
            return kernels.dequantize(format, weight, out, rows, cols, whole());
        }
        case 4: {
            const CacheView view = cache();
            const auto all = chunks();
            auto q = memory<float>(), out = memory<float>();
            const long heads = whole();
            const float scale = numbers.at(at++);
            const long window = whole();
            return kernels.attend(view, all, q, out, heads, scale, window, whole());
        }
        case 5: {
            std::vector<StackLayer> layers(whole());
            for (StackLayer& l : layers) l = layer();
            StackStep step;
            step.x = memory<float>(), step.tokens = whole(), step.hidden = whole(), step.chunks = chunks();
            const Norm last = norm();
            return kernels.stack(layers, last, step, whole());
        }
        case 6: {
            std::vector<StackLayer> layers(whole());
            for (StackLayer& l : layers) l = layer();
            StackEnds ends;
            ends.norm = norm(), ends.embedding = matrix(), ends.head = matrix(), ends.scale = numbers.at(at++);
            StackStep step{nullptr, whole(), ends.embedding.columns, {}};
            auto tokens = memory<int64_t>();
            step.chunks = chunks();
            StackLogits logits;
            logits.rows.resize(whole());
            for (long& row : logits.rows) row = whole();
            logits.out = memory<float>(), logits.vocabulary = whole();
            auto likeliest = memory<int64_t>();
            kernels.whole(layers, ends, step, tokens, logits, whole());
            std::copy(logits.likeliest.begin(), logits.likeliest.end(), likeliest);
            return;
        }
        case 7: {
            auto logits = memory<float>();
            const long vocabulary = whole();
            std::vector<Draw> draws(whole());
            for (Draw& d : draws) {
                d.temperature = numbers.at(at++), d.top_k = whole(), d.top_p = numbers.at(at++);
                d.min_p = numbers.at(at++), d.place = numbers.at(at++);
            }
            auto tokens = memory<int64_t>();
            return kernels.draw(logits, long(draws.size()), vocabulary, draws.data(), tokens, whole());
        }
        case 8: {
            Product p;
            p.rows = whole(), p.columns = whole(), p.depth = whole(), p.a = matrix_view(), p.b = matrix_view();
            p.c = memory<float>(), p.stride = whole(), p.adds = whole();
            return training.product(p, whole());
        }
        case 9: {
            const PackedAttention p = packed_attention();
            return training.attention(p, whole());
        }
        case 10: {
            const PackedAttention p = packed_attention();
            PackedAttentionGradients g;
            for (Heads* h : {&g.out, &g.q, &g.k, &g.v}) *h = heads();
            return training.attention_backward(p, g, whole());
        }
        case 11: {
            auto x = memory<float>();
            const Norm n = norm();
            const long rows = whole(), size = whole();
            auto y = memory<float>(), inverse = memory<float>();
            return training.norm(x, n.weight, n.eps, rows, size, y, inverse, whole());
        }
        case 12: {
            auto x = memory<float>(), weight = memory<float>(), inverse = memory<float>(), dy = memory<float>();
            const long rows = whole(), size = whole();
            auto dx = memory<float>(), dweight = memory<float>();
            return training.norm_backward(x, weight, inverse, dy, rows, size, dx, dweight, whole());
        }
        case 13: {
            const auto activation = Activation(whole());
            auto x = memory<float>();
            const long rows = whole(), width = whole();
            auto y = memory<float>();
            return training.gated(activation, x, rows, width, y, whole());
        }
        case 14: {
            const auto activation = Activation(whole());
            auto x = memory<float>(), dy = memory<float>();
            const long rows = whole(), width = whole();
            auto dx = memory<float>();
            return training.gated_backward(activation, x, dy, rows, width, dx, whole());
        }
        case 15: {
            const Heads x = heads();
            const long rows = whole(), num_heads = whole(), head_dim = whole();
            auto cos = memory<float>(), sin = memory<float>();
            const long dim = whole(), back = whole();
            auto y = memory<float>();
            return training.rotate(x, rows, num_heads, head_dim, cos, sin, dim, back, y, whole());
        }
        case 16: {
            auto logits = memory<float>();
            auto labels = memory<int64_t>();
            const long rows = whole(), vocabulary = whole(), of = whole();
            auto total = memory<double>();
            *total = training.cross_entropy(logits, labels, rows, vocabulary, of, whole());
            return;
        }
    }
}

int main() {
    for (long count;;) {
        if (fread(&count, sizeof count, 1, stdin) != 1) return 0;
        numbers.resize(count);
        take(numbers.data(), count * sizeof(double));
        take(&count, sizeof count);
        regions.resize(count);
        for (Region& region : regions) {
            take(&region.address, sizeof(long));
            take(&region.size, sizeof(long));
            region.copy = (char*)aligned_alloc(64, (region.size + 64) / 64 * 64);
            take(region.copy, region.size);
        }
        call();
        for (Region& region : regions) {
            fwrite(region.copy, 1, region.size, stdout);
            free(region.copy);
        }
        fflush(stdout);
    }
}
