"""What is published of how known models were trained: peak rate, where it ends, warmup, batch. As their papers say;
nothing of it was verified here, and the figures belong to their model sizes and batches.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from wootz.core.errors import NotFoundError
from wootz.training.optimizers import OptimizerConfig
from wootz.training.schedules import ScheduleConfig


@dataclass(frozen=True, kw_only=True)
class Preset:
    source: str
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    batch_tokens: float | None = None
    warmup_tokens: float | None = None

    def schedule_for(self, tokens_per_step: float) -> ScheduleConfig:
        """With a warmup that is published in tokens as the steps of one's own batch."""
        if self.warmup_tokens is None:
            return self.schedule
        return replace(self.schedule, warmup=float(max(1, round(self.warmup_tokens / tokens_per_step))))


def _adamw(rate: float, **settings: float | tuple[float, float]) -> OptimizerConfig:
    return OptimizerConfig(name="adamw", learning_rate=rate, **settings)  # type: ignore[arg-type]


PRESETS = {
    "gpt-3-175b": Preset(
        source="arXiv 2005.14165",
        optimizer=_adamw(0.6e-4),
        schedule=ScheduleConfig(name="cosine", minimum=0.1),
        batch_tokens=3.2e6,
        warmup_tokens=375e6,
    ),
    "llama-7b": Preset(
        source="arXiv 2302.13971",
        optimizer=_adamw(3e-4),
        schedule=ScheduleConfig(name="cosine", warmup=2000, minimum=0.1),
        batch_tokens=4e6,
    ),
    "llama-65b": Preset(
        source="arXiv 2302.13971",
        optimizer=_adamw(1.5e-4),
        schedule=ScheduleConfig(name="cosine", warmup=2000, minimum=0.1),
        batch_tokens=4e6,
    ),
    "chinchilla-70b": Preset(
        source="arXiv 2203.15556",
        optimizer=_adamw(1e-4),
        schedule=ScheduleConfig(name="cosine", warmup=1875, minimum=0.1),
        batch_tokens=1.5e6,
    ),
    "minicpm": Preset(
        source="arXiv 2404.06395",
        optimizer=_adamw(1e-2),
        schedule=ScheduleConfig(name="wsd", warmup=0.02, cooldown=0.1, minimum=0.1),
        batch_tokens=4e6,
    ),
    "llm": Preset(
        source="common practice",
        optimizer=_adamw(3e-4),
        schedule=ScheduleConfig(name="wsd", warmup=0.02, cooldown=0.1, minimum=0.1),
    ),
    "fine-tune": Preset(
        source="common practice",
        optimizer=_adamw(2e-5, weight_decay=0.01, betas=(0.9, 0.999)),
        schedule=ScheduleConfig(name="linear", warmup=0.1, minimum=0.0),
    ),
    "vision-sgd": Preset(
        source="arXiv 1706.02677",
        optimizer=OptimizerConfig(name="nag", learning_rate=0.1, weight_decay=1e-4),
        schedule=ScheduleConfig(name="cosine", warmup=0.05, minimum=0.0),
    ),
}


def preset(name: str) -> Preset:
    if name not in PRESETS:
        raise NotFoundError(f'there is no preset "{name}"', hint=f"one of {', '.join(PRESETS)}")
    return PRESETS[name]
