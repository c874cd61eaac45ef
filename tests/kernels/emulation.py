"""Another processor's build of the kernels in place of this one's: cross-compiled, and run by an emulator.

An `Emulated` has the functions of `wootz.kernels._native`. It sends each call, with the memory that the call reads or
writes, to `emulated.cpp` under QEMU, and puts what comes back where it belongs. So every test of the kernels holds for
a processor that is not there.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np

from wootz import kernels
from wootz.kernels.packing import LAYOUTS

SOURCES = Path(kernels.__file__).parent
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64-static"
FLAGS = "-std=c++17 -O3 -fno-math-errno -fno-trapping-math -fno-tree-reassoc -fopenmp -static"
"""As in CMakeLists.txt."""

BUILDS = {"neon": ("cortex-a53", ""), "dotprod": ("cortex-a76", "-march=armv8.2-a+dotprod")}
"""The processor each is to run on, which has nothing that came later, and what the compiler has to be told."""

LANES = 4
GGUF_BLOCK_BYTES = {2: 18, 3: 20, 6: 22, 7: 24, 8: 34}

Matrix = tuple[int, int, int, int, int]
Cache = tuple[int, int, int, int, bool]
Chunk = tuple[int, int, int, int]
View = tuple[int, int, int]
Heads = tuple[int, int]
Sizes = tuple[int, int, int]


def missing() -> str | None:
    """What this machine lacks."""
    lacking = [tool for tool in (COMPILER, EMULATOR) if shutil.which(tool) is None]
    if not (SOURCES / "kernels.cpp").exists():
        lacking.append("the kernels' source")
    return f"needs {' and '.join(lacking)}" if lacking else None


def build(instruction_set: str, folder: Path) -> Path:
    program = folder / instruction_set
    defines = [f"-DWOOTZ_ISA={instruction_set}", f"-DWOOTZ_LANES={LANES}", f"-I{SOURCES}"]
    files = [str(SOURCES / name) for name in ("kernels.cpp", "training/training.cpp")] + [
        str(Path(__file__).with_name("emulated.cpp"))
    ]
    flags = FLAGS.split() + BUILDS[instruction_set][1].split()
    subprocess.run([COMPILER, *flags, *defines, *files, "-o", str(program)], check=True)
    return program


class Emulated:
    """`wootz.kernels._native` for one instruction set."""

    def __init__(self, instruction_set: str, program: Path) -> None:
        command = [EMULATOR, "-cpu", BUILDS[instruction_set][0], str(program)]
        # One emulated thread after the other: QEMU translates each, and waiting awake costs most here.
        environment = os.environ | {"OMP_WAIT_POLICY": "passive"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, bufsize=1 << 20
        )
        outer = self

        class Stack(EmulatedStack):
            native = outer

        self.Stack = Stack

    def close(self) -> None:
        self.process.communicate()

    def lanes(self) -> int:
        return LANES

    def linear(self, format: int, weight: int, x: int, y: int, rows: int, cols: int, tokens: int, threads: int) -> None:
        sizes = {
            weight: rows * cols // 32 * GGUF_BLOCK_BYTES[format],
            x: tokens * cols * 4,
            y: tokens * rows * 4,
        }
        self.call(sizes, 0, format, weight, x, y, rows, cols, tokens, threads)

    def packed_linear(self, weight: Matrix, x: int, y: int, stride: int, tokens: int, threads: int) -> None:
        sizes = matrix_sizes(weight) | {x: tokens * weight[3] * 4, y: tokens * stride * 4}
        self.call(sizes, 1, *weight, x, y, stride, tokens, threads)

    def unpacked_rows(self, weight: Matrix, rows: int, count: int, out: int) -> None:
        sizes = matrix_sizes(weight) | {rows: count * 8, out: count * weight[3] * 4}
        self.call(sizes, 2, *weight, rows, count, out)

    def dequantize(self, format: int, weight: int, out: int, rows: int, cols: int, threads: int) -> None:
        sizes = {weight: rows * cols // 32 * GGUF_BLOCK_BYTES[format], out: rows * cols * 4}
        self.call(sizes, 3, format, weight, out, rows, cols, threads)

    def attend(
        self,
        cache: Cache,
        chunks: list[Chunk],
        q: int,
        out: int,
        heads: int,
        scale: float,
        window: int,
        threads: int,
    ) -> None:
        rows = max(row + tokens for row, tokens, _, _ in chunks)
        row_bytes = heads * cache[3] * 4
        sizes = chunk_sizes(cache, chunks) | {q: rows * row_bytes, out: rows * row_bytes}
        self.call(sizes, 4, *cache, *flat(chunks), q, out, heads, scale, window, threads)

    def draw(
        self, logits: int, vocabulary: int, draws: list[tuple[float, int, float, float, float]], threads: int
    ) -> list[int]:
        tokens = np.zeros(len(draws), np.int64)
        sizes = {logits: len(draws) * vocabulary * 4, tokens.ctypes.data: tokens.nbytes}
        numbers = [number for draw in draws for number in draw]
        self.call(sizes, 7, logits, vocabulary, len(draws), *numbers, tokens.ctypes.data, threads)
        return tokens.tolist()

    def product(self, sizes: Sizes, a: View, b: View, c: int, stride: int, adds: bool, threads: int) -> None:
        rows, columns, depth = sizes
        memory = view_size(a, rows, depth) | view_size(b, depth, columns) | view_size((c, stride, 1), rows, columns)
        self.call(memory, 8, *sizes, *a, *b, c, stride, adds, threads)

    def packed_attention(
        self, lengths: list[int], sizes: Sizes, scale: float, parts: list[Heads], logsumexp: int, threads: int
    ) -> None:
        memory, numbers = packed_attention(lengths, sizes, scale, parts, logsumexp)
        self.call(memory, 9, *numbers, threads)

    def packed_attention_backward(
        self,
        lengths: list[int],
        sizes: Sizes,
        scale: float,
        parts: list[Heads],
        logsumexp: int,
        grads: list[Heads],
        threads: int,
    ) -> None:
        memory, numbers = packed_attention(lengths, sizes, scale, parts, logsumexp)
        memory |= heads_sizes(sum(lengths), sizes, grads, (True, True, False, False))
        self.call(memory, 10, *numbers, *(number for heads in grads for number in heads), threads)

    def norm(self, x: int, norm: tuple[int, float], rows: int, size: int, y: int, inverse: int, threads: int) -> None:
        memory = {x: rows * size * 4, norm[0]: size * 4, y: rows * size * 4, inverse: rows * 4}
        self.call(memory, 11, x, *norm, rows, size, y, inverse, threads)

    def norm_backward(
        self, x: int, weight: int, inverse: int, dy: int, rows: int, size: int, dx: int, dweight: int, threads: int
    ) -> None:
        memory = dict.fromkeys((x, dy, dx), rows * size * 4) | dict.fromkeys((weight, dweight), size * 4)
        numbers = x, weight, inverse, dy, rows, size, dx, dweight
        self.call(memory | {inverse: rows * 4}, 12, *numbers, threads)

    def gated(self, gate: int, x: int, rows: int, width: int, y: int, threads: int) -> None:
        self.call({x: rows * width * 8, y: rows * width * 4}, 13, gate, x, rows, width, y, threads)

    def gated_backward(self, gate: int, x: int, dy: int, rows: int, width: int, dx: int, threads: int) -> None:
        memory = {x: rows * width * 8, dy: rows * width * 4, dx: rows * width * 8}
        self.call(memory, 14, gate, x, dy, rows, width, dx, threads)

    def rotate(self, x: Heads, sizes: Sizes, angles: tuple[int, int, int], back: bool, y: int, threads: int) -> None:
        rows, heads, head_dim = sizes
        memory = view_size((*x, 1), rows, heads * head_dim) | {y: rows * heads * head_dim * 4}
        memory |= dict.fromkeys(angles[:2], rows * angles[2] * 4)
        self.call(memory, 15, *x, *sizes, *angles, back, y, threads)

    def cross_entropy(self, logits: int, labels: int, rows: int, vocabulary: int, of: int, threads: int) -> float:
        total = np.zeros(1)
        memory = {logits: rows * vocabulary * 4, labels: rows * 8, total.ctypes.data: total.nbytes}
        self.call(memory, 16, logits, labels, rows, vocabulary, of, total.ctypes.data, threads)
        return total.item()

    def call(self, sizes: dict[int, int], *numbers: float) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        send, receive = self.process.stdin, self.process.stdout
        sizes = joined({address: size for address, size in sizes.items() if address and size})
        send.write(struct.pack(f"<q{len(numbers)}dq", len(numbers), *numbers, len(sizes)))
        for address, size in sizes.items():
            send.write(struct.pack("<qq", address, size))
            send.write(ctypes.string_at(address, size))
        send.flush()
        for address, size in sizes.items():
            ctypes.memmove(address, receive.read(size), size)


class EmulatedStack:
    native: Emulated

    def __init__(self) -> None:
        self.layers: list[tuple] = []

    def add(self, *layer) -> None:
        self.layers.append(layer)

    def run(
        self,
        x: int,
        tokens: int,
        hidden: int,
        chunks: list[Chunk],
        last_norm: tuple[int, float],
        threads: int,
    ) -> None:
        sizes, numbers = self._layers(hidden, chunks)
        sizes |= {x: tokens * hidden * 4, last_norm[0]: hidden * 4}
        self.native.call(sizes, 5, *numbers, x, tokens, hidden, *flat(chunks), *last_norm, threads)

    def set_ends(self, last_norm: tuple[int, float], embedding: Matrix, head: Matrix, scale: float) -> None:
        self.ends = last_norm, embedding, head, scale

    def whole(
        self,
        token_ids: list[int],
        chunks: list[tuple[int, int, int, list[int]]],
        rows: list[int],
        logits: int,
        vocabulary: int,
        threads: int,
    ) -> list[int]:
        last_norm, embedding, head, scale = self.ends
        tables = [np.array(blocks, np.int32) for *_, blocks in chunks]
        told = [(*chunk[:3], table.ctypes.data) for chunk, table in zip(chunks, tables, strict=True)]
        tokens, likeliest = np.array(token_ids, np.int64), np.zeros(len(rows), np.int64)
        sizes, numbers = self._layers(embedding[3], told)
        sizes |= matrix_sizes(embedding) | matrix_sizes(head) | {last_norm[0]: embedding[3] * 4}
        sizes |= {array.ctypes.data: array.nbytes for array in (tokens, likeliest)}
        sizes[logits] = len(rows) * vocabulary * 4
        numbers += [*last_norm, *embedding, *head, scale, len(tokens), tokens.ctypes.data, *flat(told)]
        numbers += [len(rows), *rows, logits, vocabulary, likeliest.ctypes.data]
        self.native.call(sizes, 6, *numbers, threads)
        return likeliest.tolist()

    def _layers(self, hidden: int, chunks: list[Chunk]) -> tuple[dict[int, int], list[float]]:
        """The memory that they read and write, and what is to be said of them."""
        sizes: dict[int, int] = {}
        numbers: list[float] = [len(self.layers)]
        positions = max(start + tokens for _, tokens, start, _ in chunks)
        for norms, matrices, cache, heads, window, (cos, sin, dim), scale, activation in self.layers:
            for i, norm in enumerate(norms):
                sizes[norm[0]] = (hidden if i < 4 else cache[3]) * 4
                numbers += norm
            for weight in matrices:
                sizes |= matrix_sizes(weight)
                numbers += weight
            sizes |= chunk_sizes(cache, chunks) | {cos: positions * dim * 4, sin: positions * dim * 4}
            numbers += [*cache, heads, window, cos, sin, dim, scale, activation]
        return sizes, numbers


def matrix_sizes(weight: Matrix) -> dict[int, int]:
    number, data, rows, columns, bias = weight
    layout = next(layout for layout in LAYOUTS.values() if layout.number == number)
    return {data: rows // LANES * (columns // 32) * layout.block_bytes(LANES), bias: rows * 4}


def chunk_sizes(cache: Cache, chunks: list[Chunk]) -> dict[int, int]:
    """Of the tables, and of the cache up to the last block that they name."""
    data, block_size, num_heads, head_dim, is_half = cache
    sizes, last = {}, 0
    for _, tokens, start, table in chunks:
        sizes[table] = -(-(start + tokens) // block_size) * 4
        last = max(last, *struct.unpack(f"<{sizes[table] // 4}i", ctypes.string_at(table, sizes[table])))
    sizes[data] = (last + 1) * block_size * 2 * num_heads * head_dim * (2 if is_half else 4)
    return sizes


def flat(chunks: list[Chunk]) -> list[int]:
    return [len(chunks), *(number for chunk in chunks for number in chunk)]


def joined(sizes: dict[int, int]) -> dict[int, int]:
    """Regions that overlap, as parts of one tensor do, as one."""
    regions: list[tuple[int, int]] = []
    for start, end in sorted((address, address + size) for address, size in sizes.items()):
        if regions and start < regions[-1][1]:
            regions[-1] = regions[-1][0], max(end, regions[-1][1])
        else:
            regions.append((start, end))
    return {start: end - start for start, end in regions}


def view_size(view: View, rows: int, columns: int) -> dict[int, int]:
    """From a matrix's first element to its last, whichever way it lies."""
    data, down, right = view
    return {data: ((rows - 1) * down + (columns - 1) * right + 1) * 4}


def heads_sizes(tokens: int, sizes: Sizes, parts: list[Heads], are_queries: tuple[bool, ...]) -> dict[int, int]:
    heads, kv_heads, head_dim = sizes
    memory: dict[int, int] = {}
    for part, is_query in zip(parts, are_queries, strict=True):
        memory |= view_size((*part, 1), tokens, (heads if is_query else kv_heads) * head_dim)
    return memory


def packed_attention(
    lengths: list[int], sizes: Sizes, scale: float, parts: list[Heads], logsumexp: int
) -> tuple[dict[int, int], list[float]]:
    """The memory that it reads and writes, and what is to be said of it."""
    memory = heads_sizes(sum(lengths), sizes, parts, (True, False, False, True))
    memory[logsumexp] = sum(lengths) * sizes[0] * 4
    numbers = [len(lengths), *lengths, *sizes, scale, *(number for heads in parts for number in heads), logsumexp]
    return memory, numbers
