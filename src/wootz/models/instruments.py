"""What running something costs, counted and not timed: operators launched, bytes held.

Both watch every operator that PyTorch dispatches, on any device, backward passes included. What a fused kernel does
inside itself is one launch, and what it allocates and frees there is not seen.
"""

from __future__ import annotations

import re
import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def count_launches(run: Callable[[], object]) -> Counter[str]:
    """How often each operator ran; ``.total()`` is what a device is asked to launch.

    Operators that only look at memory in another way (views, `detach`) launch nothing and are not counted.
    """
    with _Launches() as launches:
        run()
    return launches.counts


def launches_by_layer(layers: Iterable[nn.Module], run: Callable[[], object]) -> list[Counter[str]]:
    """What of it ran inside each layer, in order: ``launches_by_layer(model.layers, one_decoding_step)``.

    >>> with torch.nn.attention.sdpa_kernel(SDPBackend.MATH):  # attention not fused, for comparison
    ...     launches_by_layer(model.layers, one_decoding_step)
    """
    hooks, counts = [], []
    with _Launches() as launches:

        def enter(*_: object) -> None:
            counts.append(launches.counts.copy())

        def leave(*_: object) -> None:
            counts[-1] = launches.counts - counts[-1]

        for layer in layers:
            hooks += [layer.register_forward_pre_hook(enter), layer.register_forward_hook(leave)]
        try:
            run()
        finally:
            for hook in hooks:
                hook.remove()
    return counts


_COMPILED_CALL = re.compile(
    r"^ +(?:\w+ = )?(?:(cpp_fused|triton)_\w+?(?:\.run)?|(?:extern_kernels|torch\.ops\.aten)\.(\w+)[\w.]*)\(", re.M
)


def compiled_launches(model: nn.Module, run: Callable[[Any], object]) -> Counter[str]:
    """What `torch.compile` leaves to launch of ``run(model)``: kernels that it has written itself (``fused``), each of
    them many operators, and those that it calls, which are matrix products and attention.

    Read off the program that inductor writes. Compiles the model anew, which takes a C++ compiler and its time.
    """
    from torch._inductor.utils import run_and_get_code

    torch.compiler.reset()
    compiled: Any = torch.compile(model, dynamic=False)
    _, programs = run_and_get_code(run, compiled)
    calls = (call for program in programs for call in _COMPILED_CALL.findall(program[program.index("def call(") :]))
    return Counter("fused" if written else called for written, called in calls)


def peak_bytes(run: Callable[[], object]) -> int:
    """The most bytes that ``run`` held at once in tensors it made, results included."""
    with _Memory() as memory:
        run()
    return memory.peak


class _Launches(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with self:  # in inference mode, what is only a name for several operators comes here whole
            result = func.decompose(*args, **(kwargs or {}))
        if result is not NotImplemented:
            return result
        if not _is_view(func):
            self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


class _Memory(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.held = self.peak = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with self:
            result = func.decompose(*args, **(kwargs or {}))
        if result is not NotImplemented:
            return result
        # What was there before is not this run's: its views and in-place results share its storage.
        before = {_address(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, Tensor) and _address(x) not in before:
                self._see(x.untyped_storage())
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        address, size = storage._cdata, storage.nbytes()
        if address in self._known:
            return

        def freed(_: object) -> None:
            self.held -= size
            del self._known[address]

        self._known[address] = weakref.ref(storage, freed)
        self.held += size
        self.peak = max(self.peak, self.held)


def _address(x: Tensor) -> int:
    return x.untyped_storage()._cdata


def _is_view(func: Any) -> bool:
    returns = func._schema.returns
    aliases = [value.alias_info is not None and not value.alias_info.is_write for value in returns]
    return func is torch.ops.aten.detach.default or (bool(aliases) and all(aliases))
