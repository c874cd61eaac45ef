"""``[engine]``: how local models are run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from wootz.core.sections.section import Section


class SpeculationConfig(Section):
    """Guess some tokens cheaply and have the model check them in one pass. What is written does not change."""

    method: Literal["prompt-lookup", "draft-model", "heads"] = Field(
        default="prompt-lookup",
        description="What drafts: the text's own repetitions, a small model, or heads trained on this model.",
    )
    path: Path | None = Field(default=None, description="The draft model, or the folder of heads.")
    num_tokens: int | None = Field(
        default=None, ge=1, description="Most tokens drafted per step. Default: 4; 12 where drafts branch."
    )
    row_cost: float | None = Field(
        default=None,
        ge=0,
        description="What one more row takes in a step, as a part of what reading the weights takes: decides from "
        "which batch on nothing is drafted. Default: 1/6 on a CPU, 1/128 on a GPU.",
    )

    @model_validator(mode="after")
    def _has_what_its_method_needs(self) -> SpeculationConfig:
        if (self.path is None) != (self.method == "prompt-lookup"):
            raise ValueError(f'"{self.method}" takes {"no" if self.path else "a"} "path"')
        return self


class EngineConfig(Section):
    device: str = Field(default="auto", description='"auto", "cpu", "cuda", "cuda:1", "mps".')
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description='"auto" is bfloat16 where the device computes it fast, else float32.'
    )
    threads: int | None = Field(default=None, ge=1, description="CPU threads of an engine process. Default: all cores.")
    activations: Literal["auto", "int8", "float32"] = Field(
        default="auto",
        description="On a CPU, what quantised weights are multiplied with. int8 rounds each token in blocks of 32 "
        'and is several times as fast; float32 is exact. "auto" is int8 where the processor has the instructions.',
    )
    block_size: int = Field(default=16, ge=1, description="Tokens per cache block.")
    cache_bytes: int | None = Field(
        default=None, ge=1, description="Memory for the paged cache. Default: from what is free."
    )
    cache_dtype: Literal["auto", "float32", "bfloat16", "float16", "int8", "fp8", "int4"] = Field(
        default="auto",
        description='How keys and values are kept; "auto" is as they are computed, or float16 beside int8 activations.',
    )
    max_running: int = Field(default=64, ge=1, description="Most sequences in one step.")
    max_step_tokens: int = Field(
        default=512, ge=1, description="Token budget of one step; long prompts are cut into chunks."
    )
    max_waiting: int = Field(default=2048, ge=1, description="Requests queued beyond this are refused with 429.")
    max_model_len: int | None = Field(
        default=None, ge=1, description="Longest prompt plus answer. Default: the model's own."
    )
    prefix_caching: bool = True
    max_inter_token_latency_ms: float | None = Field(
        default=None, gt=0, description="Read prompts in chunks so small that running answers go on this often."
    )
    preemption: Literal["auto", "recompute", "swap"] = Field(
        default="auto", description='How a preempted answer comes back; "auto" takes what was measured to be cheaper.'
    )
    preemption_victim: Literal["latest", "longest", "fifo"] = Field(
        default="latest", description="Who gives up blocks: latest arrival, longest running, first arrival."
    )
    swap_bytes: int | None = Field(
        default=None, ge=0, description="Host memory for preempted answers. Default: at most 4 GiB on a GPU, else none."
    )
    user_weights: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict, description="Shares of users (or key ids) who are to get more, or less, than others' 1."
    )
    speculation: SpeculationConfig | None = Field(default=None, description="Drafts, off by default.")
    tool_format: str | None = Field(
        default=None, description="How the model writes tool calls (hermes, llama3, …). Default: as its template shows."
    )
    max_adapters: int = Field(default=8, ge=1, description="Adapters loaded at a time.")
    tensor_parallel: int = Field(default=1, ge=1, description="Processes that share every layer.")
    pipeline_parallel: int = Field(default=1, ge=1, description="Stages of layers, each on processes of its own.")
    sequence_parallel: int = Field(
        default=1, ge=1, description="Processes that share a step's tokens and each hold the whole model."
    )
    expert_parallel: bool = Field(
        default=False, description="Whole experts on each of the tensor-parallel processes, not a part of each expert."
    )

    disaggregated: bool = Field(
        default=False, description="Compute prompts in a second process, so that answers never wait for them."
    )

    @model_validator(mode="after")
    def _divides_one_way(self) -> EngineConfig:
        if self.sequence_parallel > 1 and self.tensor_parallel * self.pipeline_parallel > 1:
            raise ValueError("sequence_parallel goes with neither tensor_parallel nor pipeline_parallel")
        if self.expert_parallel and self.tensor_parallel == 1:
            raise ValueError("expert_parallel needs tensor_parallel: it says how those processes share the experts")
        if self.disaggregated and (self.num_ranks > 1 or not self.prefix_caching):
            raise ValueError("disaggregated needs prefix_caching, and engines of one process each")
        return self

    @property
    def num_ranks(self) -> int:
        """Processes of one engine."""
        return self.tensor_parallel * self.pipeline_parallel * self.sequence_parallel
