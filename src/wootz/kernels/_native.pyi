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
def draw(
    logits: int, vocabulary: int, draws: list[tuple[float, int, float, float, float]], threads: int
) -> list[int]: ...

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
    def set_ends(self, last_norm: tuple[int, float], embedding: Matrix, head: Matrix, scale: float) -> None: ...
    def whole(
        self,
        token_ids: list[int],
        chunks: list[tuple[int, int, int, list[int]]],
        rows: list[int],
        logits: int,
        vocabulary: int,
        threads: int,
    ) -> list[int]: ...
