Matrix = tuple[int, int, int, int, int]

def instruction_sets() -> list[str]: ...
def use(name: str) -> None: ...
def lanes() -> int: ...
def linear(format: int, weight: int, x: int, y: int, rows: int, cols: int, tokens: int, threads: int) -> None: ...
def packed_linear(weight: Matrix, x: int, y: int, stride: int, tokens: int, threads: int) -> None: ...
def unpacked_rows(weight: Matrix, rows: int, count: int, out: int) -> None: ...
def dequantize(format: int, weight: int, out: int, rows: int, cols: int, threads: int) -> None: ...
def attend(
    cache: tuple[int, int, int, int, bool],
    chunks: list[tuple[int, int, int, int]],
    q: int,
    out: int,
    heads: int,
    scale: float,
    window: int,
    threads: int,
) -> None: ...

class Stack:
    def add(
        self,
        norms: list[tuple[int, float]],
        matrices: list[Matrix],
        cache: tuple[int, int, int, int, bool],
        heads: int,
        window: int,
        angles: tuple[int, int, int],
        scale: float,
        activation: int,
    ) -> None: ...
    def run(
        self,
        x: int,
        tokens: int,
        hidden: int,
        chunks: list[tuple[int, int, int, int]],
        last_norm: tuple[int, float],
        threads: int,
    ) -> None: ...
