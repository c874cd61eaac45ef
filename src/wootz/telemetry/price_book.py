"""The price book: which price held for which model at which moment.

Three places are asked, and the first that knows the model answers: ``[models.NAME.price]`` in the config (which holds
at all times), the file named by ``telemetry.price_file``, and the book that ships with Wootz (`prices.toml`: public
list prices and their sources). The two files have the same format and keep old prices, so that a request is counted
at the price that held when it began::

    [[list]]
    provider = ["openai", "api.openai.com"]     # patterns of who computes: a provider's name or host
    source = "https://openai.com/api/pricing"
    batch = 0.5                                 # what the batch lane pays of all this
    price = [                                   # USD per million tokens; each from midnight UTC on, until a later one
      { model = ["gpt-4o", "gpt-4o-2024-*"], from = 2024-10-02, input = 2.50, cached_input = 1.25, output = 10.00 },
    ]

``prompt_from`` makes a price that holds for prompts of so many tokens and more; a list in another ``currency`` is
converted at the file's ``[[rate]]``.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from wootz.core import Config, ConfigError, PriceConfig
from wootz.core.sections import Section
from wootz.telemetry.prices import EXACT, Price

SHIPPED = Path(__file__).with_name("prices.toml")
FREE = PriceConfig()


class DatedPrice(PriceConfig):
    """``model`` are patterns of the name that the provider knows it by."""

    model: list[str]
    since: date = Field(alias="from")
    prompt_from: int = Field(default=0, ge=0)


class PriceList(Section):
    """What one provider asks."""

    provider: list[str]
    source: str
    currency: str = "USD"
    batch: Decimal = Field(default=Decimal(1), ge=0, le=1)
    price: list[DatedPrice]

    def of(self, provider: str, model: str) -> list[DatedPrice]:
        if not any(fnmatchcase(provider, one) for one in self.provider):
            return []
        return [price for price in self.price if any(fnmatchcase(model, one) for one in price.model)]


class Rate(Section):
    """What one unit of a currency is worth in USD, from a day on."""

    currency: str
    since: date = Field(alias="from")
    usd: Decimal = Field(gt=0)
    source: str


class PriceFile(Section):
    name: str
    lists: list[PriceList] = Field(default=[], alias="list")
    rates: list[Rate] = Field(default=[], alias="rate")

    def in_force(self, provider: str, model: str) -> tuple[Dated, ...]:
        """All that is known of one model, newest first, and of the same day the price of the longest prompts."""
        found = [Dated(self, prices, price) for prices in self.lists for price in prices.of(provider, model)]
        return tuple(sorted(found, key=lambda one: (one.price.since, one.price.prompt_from), reverse=True))


@dataclass(frozen=True, slots=True, eq=False)
class Dated:
    file: PriceFile
    prices: PriceList
    price: DatedPrice


class PriceBook:
    """``own`` are prices by deployment, as the config has them; ``models`` are the providers' names for them."""

    def __init__(
        self,
        own: Mapping[str, PriceConfig] | None = None,
        files: Sequence[PriceFile] = (),
        models: Mapping[str, str] | None = None,
    ) -> None:
        self._own = {
            name: _price(entry, "nothing, it runs here" if entry is FREE else f"models.{name}.price")
            for name, entry in (own or {}).items()
        }
        self._files = files
        self._models = dict(models or {})
        self._known: dict[tuple[str, str], list[tuple[Dated, ...]]] = {}
        self._converted: dict[tuple[Dated, Decimal], Price] = {}

    @staticmethod
    def of(config: Config) -> PriceBook:
        """Raises `ConfigError` for a price file that is none."""
        own, models = {}, {}
        for name, model in config.models.items():
            for alias in (name, *model.adapters):
                models[alias] = model.upstream_model or name
                if model.price is not None or model.is_local:
                    own[alias] = model.price or FREE
        mine = config.telemetry.price_file
        return PriceBook(own, [*([read_prices(mine)] if mine else []), read_prices(SHIPPED)], models)

    def find(self, deployment: str, provider: str, at: datetime, num_prompt_tokens: int = 0) -> Price | None:
        """The price that held at that moment; None when nobody knows it."""
        if (own := self._own.get(deployment)) is not None:
            return own
        day = at.astimezone(UTC).date()
        for prices in self._of(deployment, provider):
            for dated in prices:
                if dated.price.since <= day and num_prompt_tokens >= dated.price.prompt_from:
                    return self._convert(dated, day)
        return None

    def listed(self, name: str, at: datetime) -> Price | None:
        """For planning: the price of a model of the config, or of any model that a file lists, whoever computes it."""
        if (own := self._own.get(name)) is not None:
            return own
        model, day = self._models.get(name, name), at.astimezone(UTC).date()
        providers = [provider for file in self._files for prices in file.lists for provider in prices.provider]
        for provider in providers:
            for file in self._files:
                for dated in file.in_force(provider, model):
                    if dated.price.since <= day and not dated.price.prompt_from:
                        return self._convert(dated, day)
        return None

    def share(self, deployment: str, other: str) -> None:
        """``deployment`` costs from now on what ``other`` does: an adapter and the model that it is on."""
        self._models[deployment] = self._models.get(other, other)
        if (own := self._own.get(other)) is not None:
            self._own[deployment] = own

    def _of(self, deployment: str, provider: str) -> list[tuple[Dated, ...]]:
        """What each file knows of it."""
        known = self._known.get((deployment, provider))
        if known is None:
            model = self._models.get(deployment, deployment)
            known = [file.in_force(provider, model) for file in self._files]
            self._known[deployment, provider] = known
        return known

    def _convert(self, dated: Dated, day: date) -> Price | None:
        file, currency, rate = dated.file, dated.prices.currency, Decimal(1)
        version = f"{file.name} {dated.price.since} {dated.price.model[0]}"
        if currency != "USD":
            rates = [one for one in file.rates if one.currency == currency and one.since <= day]
            if not rates:
                return None
            rate = max(rates, key=lambda one: one.since).usd
            version += f" ({currency} at {rate} USD)"
        if (price := self._converted.get((dated, rate))) is None:
            price = self._converted[dated, rate] = _price(dated.price, version, rate, dated.prices.batch)
        return price


def read_prices(file: Path) -> PriceFile:
    """Raises `ConfigError`, which names the entry and what is wrong with it."""
    try:
        content: dict[str, Any] = tomllib.loads(file.read_text("utf-8"), parse_float=Decimal)
        return PriceFile.model_validate({"name": file.name, **content})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ConfigError(f"{file}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"price file {file}: {error}") from None


def _price(entry: PriceConfig, version: str, rate: Decimal = Decimal(1), batch: Decimal | None = None) -> Price:
    def usd(amount: Decimal | None) -> Decimal:
        return EXACT.multiply(entry.input if amount is None else amount, rate)

    return Price(
        input=usd(entry.input),
        cached_input=usd(entry.cached_input),
        cache_write=usd(entry.cache_write),
        output=usd(entry.output),
        batch=batch if batch is not None and "batch" not in entry.model_fields_set else entry.batch,
        unit=usd(entry.unit),
        version=version,
    )
