"""What a call costs, to the last digit, and which price held when."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wootz.core import Config, ConfigError, ModelConfig, PriceConfig
from wootz.core.sections import TelemetryConfig
from wootz.telemetry import PriceBook
from wootz.telemetry.price_book import SHIPPED, read_prices
from wootz.telemetry.prices import Price, Tokens, cost, items

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)


def price(**fields: object) -> Price:
    found = PriceBook({"m": PriceConfig(**fields)}).find("m", "anybody", NOW)  # type: ignore[arg-type]
    assert found is not None
    return found


SMALL = {"input": "0.15", "cached_input": "0.075", "output": "0.60"}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (SMALL, "0.000132"),  # 600 x 0.15 + 400 x 0.075 + 20 x 0.60 per million
        ({"input": "0.15", "output": "0.60"}, "0.000162"),  # cached at the input price
        ({"input": "0.15", "cached_input": "0"}, "0.00009"),
        ({"output": "0.000001"}, "0.000000000020"),
        ({"output": "0.00000001"}, "0"),  # under a half of the last decimal
        (SMALL | {"batch": "0.5"}, "0.000132"),  # this is not the batch lane
    ],
)
def test_cached_tokens_have_their_own_price(fields: dict[str, str], expected: str) -> None:
    assert cost(Tokens(prompt=1000, cached=400, completion=20), price(**fields)) == Decimal(expected)


def test_half_price_cached_tokens() -> None:
    """DashScope's implicit cache: what is found there costs half."""
    half = price(input="0.8", cached_input="0.4", output="2")
    whole = price(input="0.8", output="2")
    tokens = Tokens(prompt=1_000_000, cached=600_000)
    assert (cost(tokens, whole), cost(tokens, half)) == (Decimal("0.8"), Decimal("0.56"))


def test_the_batch_lane_pays_its_part_of_everything() -> None:
    claude = price(input="3", cached_input="0.30", cache_write="3.75", output="15", batch="0.5")
    tokens = Tokens(prompt=100_000, cached=60_000, written=30_000, completion=1000)
    whole = Decimal("0.03") + Decimal("0.018") + Decimal("0.1125") + Decimal("0.015")
    assert cost(tokens, claude) == whole
    assert cost(tokens, claude, "batch") == whole / 2


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [(Tokens(prompt=4321, cached=3000, completion=215), "0.008088"), (Tokens(prompt=4321, completion=215), "0.016188")],
)
def test_the_published_record_at_its_list_price(tokens: Tokens, expected: str) -> None:
    """The article prints 0.0152 for this record; at the list price it gives, it is 0.0081 (0.0162 uncached)."""
    assert cost(tokens, price(input="3", cached_input="0.30", output="15")) == Decimal(expected)


amounts = st.decimals(min_value=0, max_value=1000, places=6)
counts = st.integers(0, 10**7)


@given(counts, counts, counts, counts, amounts, amounts, amounts, amounts)
def test_a_cost_is_exact_for_prices_of_six_decimals(
    fresh: int, cached: int, written: int, completion: int,
    input: Decimal, cached_input: Decimal, cache_write: Decimal, output: Decimal,
) -> None:  # fmt: skip
    each = price(input=input, cached_input=cached_input, cache_write=cache_write, output=output)
    micro = [int(value * 10**6) for value in (input, cached_input, cache_write, output)]
    exact = sum(tokens * price for tokens, price in zip((fresh, cached, written, completion), micro, strict=True))
    assert int(cost(Tokens(fresh + cached + written, cached, written, completion), each) * 10**12) == exact


@given(counts, st.integers(0, 2 * 10**7), st.integers(0, 2 * 10**7), counts)
def test_no_token_is_paid_twice_whatever_an_endpoint_says(
    prompt: int, cached: int, written: int, completion: int
) -> None:
    lines = items(Tokens(prompt, cached, written, completion), price(input="1", output="1"))
    assert sum(line.tokens for line in lines) == prompt + completion
    assert all(line.tokens > 0 for line in lines)


# --- the book -------------------------------------------------------------------------------------------------

BOOK = """
[[list]]
provider = ["cloud", "*.cloud.test"]
source = "a list"
batch = 0.5
price = [
  { model = ["big", "big-2025-*"], from = 2025-01-01, input = 1.00, output = 4 },
  { model = ["big*"], from = 2026-01-01, input = 0.80, output = 3.20 },
  { model = ["big*"], from = 2026-01-01, prompt_from = 200_000, input = 1.60, output = 3.20, batch = 1 },
]

[[list]]
provider = ["far"]
source = "a list in yuan"
currency = "CNY"
price = [{ model = ["plus"], from = 2026-04-01, input = 0.8, cached_input = 0.4, output = 2 }]

[[rate]]
currency = "CNY"
from = 2026-01-01
usd = 0.14
source = "a bank"

[[rate]]
currency = "CNY"
from = 2026-04-20
usd = 0.15
source = "a bank"
"""


@pytest.fixture
def book(tmp_path: Path) -> PriceBook:
    (tmp_path / "book.toml").write_text(BOOK)
    return PriceBook(files=[read_prices(tmp_path / "book.toml")])


def day(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def test_the_price_is_the_one_that_held_when_the_request_began(book: PriceBook) -> None:
    held = {
        moment: book.find("big", "cloud", day(moment))
        for moment in ("2024-12-31T23:59:59", "2025-01-01", "2025-12-31T23:59:59", "2026-01-01")
    }
    assert [found and found.input for found in held.values()] == [None, 1, 1, Decimal("0.80")]
    newest = held["2026-01-01"]
    assert newest is not None
    assert newest.version == "book.toml 2026-01-01 big*"


def test_a_day_begins_at_midnight_utc(book: PriceBook) -> None:
    in_tokyo = datetime.fromisoformat("2026-01-01T08:59:59+09:00")
    found = book.find("big", "cloud", in_tokyo)
    assert found is not None
    assert found.input == 1


def test_long_prompts_have_their_own_price(book: PriceBook) -> None:
    prices = [book.find("big", "cloud", NOW, tokens) for tokens in (0, 199_999, 200_000, 10**6)]
    assert [found and found.input for found in prices] == [Decimal("0.80")] * 2 + [Decimal("1.60")] * 2


def test_a_price_is_for_its_provider_only(book: PriceBook) -> None:
    assert book.find("big", "eu.cloud.test", day("2025-06-01")) is not None
    assert book.find("big", "elsewhere.test", NOW) is None
    assert book.find("bigger", "cloud", day("2025-06-01")) is None


def test_another_currency_is_converted_at_the_rate_of_the_day(book: PriceBook) -> None:
    before, after = book.find("plus", "far", day("2026-04-19")), book.find("plus", "far", day("2026-04-20"))
    assert before is not None
    assert after is not None
    assert (before.input, after.input) == (Decimal("0.1120"), Decimal("0.1200"))
    assert after.cached_input * 2 == after.input
    assert cost(Tokens(prompt=1, completion=1), after) == Decimal("0.000000420000")
    assert "CNY at 0.15 USD" in after.version


def test_what_the_config_says_goes_before_your_file_and_that_before_ours(tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text(
        '[[list]]\nprovider = ["api.openai.com"]\nsource = "my contract"\n'
        'price = [{ model = ["gpt-4o"], from = 2020-01-01, input = 2, output = 8 }]\n'
    )
    url = "https://api.openai.com/v1"
    models = {
        "agreed": ModelConfig(base_url=url, upstream_model="gpt-4o", price=PriceConfig(input=Decimal(1))),
        "contract": ModelConfig(base_url=url, upstream_model="gpt-4o"),
        "listed": ModelConfig(base_url=url, upstream_model="gpt-4o-mini"),
        "local": ModelConfig(source="pypi:x", adapters={"tuned": Path("/adapters/tuned")}),
    }
    book = PriceBook.of(Config(models=models, telemetry=TelemetryConfig(price_file=mine)))
    found = {
        name: book.find(name, "wootz" if name in ("local", "tuned") else "api.openai.com", NOW)
        for name in ("agreed", "contract", "listed", "local", "tuned")
    }
    versions = {name: price.version if price else None for name, price in found.items()}
    assert versions["agreed"] == "models.agreed.price"
    assert versions["contract"] == "mine.toml 2020-01-01 gpt-4o"
    assert str(versions["listed"]).startswith("prices.toml ")
    assert (found["local"] and found["local"].input, found["tuned"] and found["tuned"].output) == (0, 0)
    book.share("later", "contract")
    assert book.find("later", "api.openai.com", NOW) == found["contract"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[list]]\nprovider = 3", "list.0.provider"),
        ("[[list]", "price file"),
        (BOOK.replace("input = 1.00", "input = -1"), "list.0.price.0.input"),
        (BOOK.replace("input = 1.00", "inptu = 1"), "inptu"),
    ],
)
def test_a_price_file_with_a_mistake_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.toml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_prices(tmp_path / "bad.toml")


def test_every_price_that_ships_says_where_it_is_from() -> None:
    shipped = read_prices(SHIPPED)
    assert sum(len(prices.price) for prices in shipped.lists) > 30
    for prices in shipped.lists:
        assert prices.source.startswith("https://"), prices.provider
        for price in prices.price:
            assert price.cached_input is None or price.cached_input <= price.input, price.model
            assert price.input <= price.output or price.output == 0, price.model
    assert {prices.currency for prices in shipped.lists} - {"USD"} == {rate.currency for rate in shipped.rates}


def test_a_list_halves_its_batch_prices_but_for_those_that_say_otherwise(book: PriceBook) -> None:
    prices = [book.find("big", "cloud", NOW, tokens) for tokens in (0, 200_000)]
    assert [found and found.batch for found in prices] == [Decimal("0.5"), 1]
