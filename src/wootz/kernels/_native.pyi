def instruction_sets() -> list[str]: ...
def use(name: str) -> None: ...
def linear(format: int, weight: int, x: int, y: int, rows: int, cols: int, tokens: int, threads: int) -> None: ...
def dequantize(format: int, weight: int, out: int, rows: int, cols: int, threads: int) -> None: ...
def decode(
    cache: int,
    q: int,
    out: int,
    rows: int,
    tables: int,
    lengths: int,
    sequences: int,
    max_blocks: int,
    block_size: int,
    kv_heads: int,
    group: int,
    head_dim: int,
    scale: float,
    threads: int,
) -> None: ...
