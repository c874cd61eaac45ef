"""`Mixture`: which source the next row comes from, so that each has its share at every moment.

Sources are not drawn by lot. The next row is of the source that is furthest behind its share, so any stretch of
training is mixed as the whole is, the realised share is the wanted one to within a row or so, and the order is the same
in every run. Where a source begins in the round is decided by the seed.

Reading a source again costs little up to about four times and gains little after (Muennighoff, arXiv 2305.16264): a
fifth epoch is warned of, and ``max_epochs`` takes a source out of the mixture when it has been read so often.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wootz.core.errors import ConfigError
from wootz.data.permutation import key_of

EPOCHS_WORTH_READING = 4


@dataclass(frozen=True)
class Share:
    """What one source has given so far."""

    wanted: float
    realised: float
    rows: int
    epochs: float


class Mixture:
    """``weights`` need not sum to one; a weight of 0 keeps a source for later. ``rows_per_epoch`` says how many rows a
    source has. Raises `ConfigError` for weights that mean nothing."""

    def __init__(
        self,
        weights: Mapping[str, float],
        rows_per_epoch: Mapping[str, int],
        *,
        seed: int = 0,
        max_epochs: float | None = None,
    ) -> None:
        if set(weights) != set(rows_per_epoch):
            odd = sorted(set(weights) ^ set(rows_per_epoch))
            raise ConfigError(f"weights and sources are not of the same names: {', '.join(odd)}")
        self._rows_per_epoch = dict(rows_per_epoch)
        self._max_epochs = max_epochs
        self._rows = dict.fromkeys(weights, 0)
        # Shares are counted from the last change of weights on.
        self._due = {name: key_of(seed, name) / 2**64 for name in weights}
        self._warned: set[str] = set()
        self.set_weights(weights)

    @property
    def weights(self) -> dict[str, float]:
        """As they hold now, of sum 1, without the sources that are used up."""
        return dict(self._weights)

    def set_weights(self, weights: Mapping[str, float]) -> None:
        """From the next row on. What was drawn before does not count against a source."""
        if set(weights) != set(self._rows):
            raise ConfigError(f"weights are wanted for {', '.join(self._rows)}, and given for {', '.join(weights)}")
        if not all(0 <= weight < float("inf") for weight in weights.values()) or not sum(weights.values()):
            raise ConfigError(f"these are not weights: {dict(weights)}", hint="positive numbers, or 0 for none")
        self._wanted = {name: float(weight) for name, weight in weights.items()}
        self._weights = self._normalised()

    def draw(self) -> tuple[str, int]:
        """The source of the next row, and how many rows were drawn from it before."""
        if self._max_epochs is not None and any(self._used_up(name) for name in self._weights):
            self._weights = self._normalised()
        for name, weight in self._weights.items():
            self._due[name] += weight
        name = max(self._weights, key=self._due.__getitem__)
        self._due[name] -= 1
        number = self._rows[name]
        self._rows[name] += 1
        if number >= EPOCHS_WORTH_READING * self._rows_per_epoch[name] and name not in self._warned:
            self._warned.add(name)
            warnings.warn(
                f'"{name}" is read for more than {EPOCHS_WORTH_READING} epochs, which rarely helps; lower its weight',
                stacklevel=2,
            )
        return name, number

    def epochs(self) -> dict[str, float]:
        """How often each source has been read."""
        return {name: rows / self._rows_per_epoch[name] for name, rows in self._rows.items()}

    def report(self) -> dict[str, Share]:
        total, wanted = sum(self._rows.values()), sum(self._wanted.values())
        epochs = self.epochs()
        return {
            name: Share(self._wanted[name] / wanted, rows / total if total else 0.0, rows, epochs[name])
            for name, rows in self._rows.items()
        }

    def state_dict(self) -> dict[str, Any]:
        return {"rows": dict(self._rows), "due": dict(self._due), "weights": dict(self._wanted)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if set(state["rows"]) != set(self._rows):
            raise ConfigError(
                f"the state is of the sources {', '.join(state['rows'])}, and these are {', '.join(self._rows)}"
            )
        self._rows = {name: state["rows"][name] for name in self._rows}
        self._due = {name: state["due"][name] for name in self._rows}
        self.set_weights({name: state["weights"][name] for name in self._rows})

    def _used_up(self, name: str) -> bool:
        return self._max_epochs is not None and self._rows[name] >= self._max_epochs * self._rows_per_epoch[name]

    def _normalised(self) -> dict[str, float]:
        left = {name: weight for name, weight in self._wanted.items() if weight and not self._used_up(name)}
        if not left:
            raise ConfigError(
                f"every source has been read {self._max_epochs} times", hint="train for fewer steps or add text"
            )
        total = sum(left.values())
        return {name: weight / total for name, weight in left.items()}
