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
def product(
    sizes: tuple[int, int, int],
    a: tuple[int, int, int],
    b: tuple[int, int, int],
    c: int,
    stride: int,
    adds: bool,
    threads: int,
) -> None: ...
def packed_attention(
    lengths: list[int],
    sizes: tuple[int, int, int],
    scale: float,
    parts: list[tuple[int, int]],
    logsumexp: int,
    threads: int,
) -> None: ...
def packed_attention_backward(
    lengths: list[int],
    sizes: tuple[int, int, int],
    scale: float,
    parts: list[tuple[int, int]],
    logsumexp: int,
    grads: list[tuple[int, int]],
    threads: int,
) -> None: ...
def norm(x: int, norm: tuple[int, float], rows: int, size: int, y: int, inverse: int, threads: int) -> None: ...
def norm_backward(
    x: int, weight: int, inverse: int, dy: int, rows: int, size: int, dx: int, dweight: int, threads: int
) -> None: ...
def gated(activation: int, x: int, rows: int, width: int, y: int, threads: int) -> None: ...
def gated_backward(activation: int, x: int, dy: int, rows: int, width: int, dx: int, threads: int) -> None: ...
def rotate(
    x: tuple[int, int], sizes: tuple[int, int, int], angles: tuple[int, int, int], back: bool, y: int, threads: int
) -> None: ...
def cross_entropy(logits: int, labels: int, rows: int, vocabulary: int, of: int, threads: int) -> float: ...

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
