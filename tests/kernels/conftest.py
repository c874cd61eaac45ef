"""Tests of CPU kernels run on several threads and in every build that this processor can run; slow ones for ARM too."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from emulation import BUILDS, Emulated, build, missing

from wootz import kernels


@pytest.fixture(autouse=True)
def _several_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Emulated]]:
    folder = tmp_path_factory.mktemp("emulated")
    made: dict[str, Emulated] = {}

    def get(instruction_set: str) -> Emulated:
        if reason := missing():
            pytest.skip(reason)
        if instruction_set not in made:
            made[instruction_set] = Emulated(instruction_set, build(instruction_set, folder))
        return made[instruction_set]

    yield get
    for native in made.values():
        native.close()


@pytest.fixture(params=[*kernels.instruction_sets(), *(pytest.param(isa, marks=pytest.mark.slow) for isa in BUILDS)])
def instruction_set(
    request: pytest.FixtureRequest, emulated: Callable[[str], Emulated], monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    if request.param not in kernels.instruction_sets():
        monkeypatch.setattr(kernels, "_native", emulated(request.param))
        yield request.param
        return
    kernels.use(request.param)
    yield request.param
    kernels.use(kernels.instruction_sets()[0])
