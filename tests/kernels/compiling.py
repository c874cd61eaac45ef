"""Compile Triton kernels for a GPU that is not there: record what the wrappers would launch, then build each for it.

Run as a program (the interpreter, if it was chosen, is chosen for a whole process). Prints a line for each kernel: its
name, registers' spills, shared memory.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

TYPES = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.uint8: "*u8",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
MOST_SHARED_MEMORY = 227 * 1024
"""Of a Hopper GPU, for a program."""

launches: list[tuple[JITFunction, dict[str, Any], dict[str, Any]]] = []


def record(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
    names = kernel.arg_names
    options = {name: kwargs.pop(name) for name in list(kwargs) if name not in names}
    launches.append((kernel, dict(zip(names, args, strict=False)) | kwargs, options))


def build(kernel: JITFunction, values: dict[str, Any], options: dict[str, Any], target: GPUTarget):
    signature, constants = {}, {}
    for parameter in kernel.params:
        value = values[parameter.name]
        if parameter.is_constexpr:
            signature[parameter.name] = "constexpr"
            constants[(parameter.num,)] = value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = TYPES[value.dtype]
        elif type(value) is int and value == 1:  # a launch makes a constant of it
            signature[parameter.name] = "constexpr"
            constants[(parameter.num,)] = value
        else:
            signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
    attributes = {
        (parameter.num,): [["tt.divisibility", 16]]
        for parameter in kernel.params
        if isinstance(values[parameter.name], torch.Tensor)
    }
    return triton.compile(ASTSource(kernel, signature, constants, attributes), target=target, options=options)


def launch_all() -> None:
    from wootz.kernels.triton import activations, attention, float8, int4, norms, rope

    bf16, heads, kv_heads, dim = torch.bfloat16, 32, 8, 128
    q = torch.empty(4, heads, dim, dtype=bf16)
    numbers = attention.Cache(torch.empty(8, 16, 2, kv_heads, dim, dtype=bf16))
    codes = torch.empty(8, 16, 2, kv_heads, dim, dtype=torch.uint8)
    half = torch.empty(8, 16, 2, kv_heads, 1, dtype=torch.float16)
    tables, lengths = torch.zeros(4, 4, dtype=torch.int32), torch.ones(4, dtype=torch.int32)
    plain = attention.Scoring(0.1)
    all_of_it = attention.Scoring(0.1, 20, 5.0, torch.empty(heads, dtype=bf16))
    chunks = attention.Chunks(lengths, lengths, lengths, tables, torch.zeros(1, 2, dtype=torch.int32))
    for cache in (numbers, attention.Cache(codes, half), attention.Cache(codes, half, half)):
        for scoring in (plain, all_of_it) if cache is numbers else (plain,):
            for longest in (1, 2000):
                attention.decode(q, cache, tables, lengths, scoring, longest=longest)
            attention.prefill(q, torch.empty_like(q), cache, chunks, scoring)
    for dtype, size in ((torch.float32, 128), (torch.float16, 256)):  # the largest tiles
        q = torch.empty(1, 2, size, dtype=dtype)
        single = attention.Cache(torch.empty(8, 16, 2, 1, size, dtype=dtype))
        attention.decode(q, single, tables[:1, :1], lengths, plain, longest=2000)
        attention.prefill(q, torch.empty_like(q), single, chunks, plain)
    x, scale = torch.empty(4, 2048, dtype=bf16), torch.empty(2048, dtype=bf16)
    norms.add_norm(x, None, None, scale, 1e-5)
    norms.add_norm(x, x, scale, scale, 1e-5)
    for activation in ("silu", "gelu_pytorch_tanh"):
        activations.gated(x, activation)
    angles, head_scale = torch.empty(4, dim, dtype=bf16), torch.empty(dim, dtype=bf16)
    qkv, slots = torch.empty(4, heads + 2 * kv_heads, dim, dtype=bf16), torch.zeros(4, dtype=torch.int64)
    rope.rotate_and_store(qkv, angles, angles, numbers.kv, slots, heads)
    rope.rotate_and_store(
        qkv, angles, angles, numbers.kv, slots, heads, q_scale_d=head_scale, k_scale_d=head_scale, eps=1e-6
    )
    data, scales = torch.empty(64, 1024, dtype=torch.uint8), torch.empty(64, 16, dtype=torch.float16)
    int4.linear(x, data, scales, None)
    int4.linear(x, data, scales, scales.to(torch.uint8))
    float8.encode(x)
    float8.linear(x, torch.empty(64, 2048, dtype=torch.float8_e4m3fn), torch.empty(64, 1))


def main() -> None:
    JITFunction.run = record  # pyright: ignore[reportAttributeAccessIssue]
    launch_all()
    for kernel, values, options in launches:
        built = build(kernel, values, options, GPUTarget("cuda", 90, 32))
        assert "cubin" in built.asm, kernel.fn.__name__
        assert built.metadata.shared <= MOST_SHARED_MEMORY, kernel.fn.__name__
        print(kernel.fn.__name__, built.metadata.shared, "bytes of shared memory")


if __name__ == "__main__":
    main()
