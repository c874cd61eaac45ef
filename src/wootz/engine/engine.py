"""`Engine`: requests in, tokens out, one step at a time.

    engine = Engine("SmolLM2-135M-Instruct.Q4_1.gguf")
    answers = engine.generate(["The sea is"], SamplingParams(temperature=0, max_tokens=20))

`step` is the whole life of the engine: schedule, run, sample, say what is new. `generate` calls it until all is done;
the server's thread calls it for as long as the process lives. One thread at a time uses an engine; only
`make_request`, which tokenizes, may be called from any.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Many
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from wootz.core import BadRequestError, EngineConfig, RateLimitError, UnavailableError, progress_bar
from wootz.engine import setup
from wootz.engine.adapters import AdapterCache
from wootz.engine.attention import PagedCache
from wootz.engine.beam_search import BeamSearch, go_on, hear
from wootz.engine.cache import BlockPool
from wootz.engine.connection import failed
from wootz.engine.fused import fuse, unfuse
from wootz.engine.generation import Choice, Event, Generation, Prompt
from wootz.engine.grammar import Masks
from wootz.engine.intake import Intake
from wootz.engine.pace import Pace
from wootz.engine.parallel.model import ParallelModel
from wootz.engine.protocol import Finished, Output, SamplingParams, Stats, ToolUse
from wootz.engine.runner import Model, Runner
from wootz.engine.sampler import Sampled
from wootz.engine.scheduler import Chunk, Scheduler
from wootz.engine.sequence import Request, Sequence
from wootz.engine.speculation.methods import load_speculator
from wootz.engine.speculation.speculate import Speculation, Speculator
from wootz.engine.speculation.verify import choose, choosing, walks_of
from wootz.engine.structure import Planner
from wootz.engine.timeline import Timeline, Unwatched
from wootz.engine.weights import Weights
from wootz.engine.writer import Writer
from wootz.models import RecurrentState
from wootz.models.positions.rotary import fix_length
from wootz.models.replacing import read_weights

if TYPE_CHECKING:
    from wootz.tokenization import Tokenizer


class Engine:
    """One model, its cache, and the requests being worked on.

    ``model`` is a path (a folder in Hugging Face layout, or a GGUF file) or a model that is loaded already; the
    tokenizer is read from the path, and may be missing for a loaded model, which then takes and gives token ids only.
    ``speculator`` drafts for it; if None, what ``config.speculation`` says.
    ``adapters`` are folders in PEFT's format, by the names that requests will call them.
    """

    def __init__(
        self,
        model: str | Path | Model,
        *,
        config: EngineConfig | None = None,
        tokenizer: Tokenizer | None = None,
        path: Path | None = None,
        speculator: Speculator | None = None,
        adapters: Mapping[str, str | Path] | None = None,
    ) -> None:
        config = config or EngineConfig()
        self.model, self.tokenizer = setup.load(model, tokenizer, config)
        path = Path(model) if isinstance(model, str | Path) else path
        self.weights = Weights(self.model, path and (lambda: setup.load(path, self.tokenizer, config)[0]))
        if speculator is None and config.speculation is not None:
            speculator = load_speculator(config, self.model, self.tokenizer)
        specs = [*self.model.cache_specs, *(speculator.cache_specs if speculator else ())]
        num_blocks, self.max_model_len = setup.size_cache(self.model, specs, config)
        if isinstance(self.model, ParallelModel):
            num_blocks = self.model.agree(num_blocks)
            self.max_model_len = min(self.max_model_len, num_blocks * config.block_size)
        fix_length(self.model.modules(), self.max_model_len)
        recurrent = any(isinstance(spec, RecurrentState) for spec in specs)
        num_states = config.max_running if recurrent else None
        self._make_cache = partial(
            PagedCache,
            specs,
            num_blocks,
            config.block_size,
            num_states=num_states or 0,
            dtype=self.model.dtype,
            device=self.model.device,
            format=setup.cache_format(self.model, config),
        )
        cache = self._make_cache()
        self.pool = BlockPool(
            num_blocks,
            config.block_size,
            num_states=num_states,
            prefix_caching=config.prefix_caching and not recurrent,
            copy=cache.copy,
            copy_state=cache.copy_state,
        )
        if isinstance(self.model, ParallelModel):
            self.model.open(cache, self.pool, self.max_model_len)
        self.adapters = AdapterCache(
            self.model, config.max_adapters, lambda: (sequence.request for sequence in self.scheduler.running)
        )
        for name, folder in (adapters or {}).items():
            self.adapters.register(name, folder)
        self.pace = Pace(config.max_step_tokens, config.max_inter_token_latency_ms)
        self.scheduler = Scheduler(
            self.pool,
            max_running=config.max_running,
            pace=self.pace,
            swap=setup.make_swap_space(cache, self.pool, config),
            victim=config.preemption_victim,
            user_weights=config.user_weights,
            may_start=self.adapters.may_start,
        )
        fuse(self.model, cache, self.max_model_len)
        self.runner = Runner(self.model, cache, self.adapters)
        self.timeline: Unwatched = self.runner.timeline
        self.speculation: Speculation | None = None
        if speculator is not None:
            self.speculation = Speculation.begin(speculator, config.speculation, self.scheduler, self.runner)
        self.max_waiting = config.max_waiting
        self.eos_token_ids = frozenset(self.model.config.eos_token_ids)
        if self.tokenizer is not None:
            self.eos_token_ids |= self.tokenizer.eos_token_ids
        self.num_parameters = self.model.num_parameters
        self.masks, self.planner = Masks(), None
        if self.tokenizer is not None:
            vocab_size = self.model.config.vocab_size
            self.planner = Planner(self.tokenizer, vocab_size, self.eos_token_ids, config.tool_format)
        self.writer = Writer(self.tokenizer)
        self.intake = Intake(
            self.tokenizer,
            self.planner,
            self.adapters,
            self.pool,
            vocab_size=self.model.config.vocab_size,
            eos_token_ids=self.eos_token_ids,
            max_model_len=self.max_model_len,
            max_running=config.max_running,
        )
        self.make_request = self.intake.make_request
        """Tokenize and check; see `Intake.make_request`. Any thread may."""
        self._arrivals = itertools.count()
        self._chunks: list[Chunk] = []
        self.asleep = 0
        """The level of its sleep (see `sleep`); 0 while it is awake."""
        self._started = time.monotonic()
        self.num_steps = self.num_prompt_tokens = self.num_generated = self.num_finished = self.num_cancelled = 0
        self.num_forced = 0

    # --- one step ---------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Compute one batch; returns what is new, in order. With nothing to do (or asleep), nothing is new."""
        if self.asleep:
            return []
        started = time.perf_counter()
        self.timeline.begin(self.num_steps)
        chunks = self._chunks = self.scheduler.schedule()
        lost = self._without_adapter() if self.adapters.failed else []
        if not chunks:
            return lost
        if self.speculation is not None:
            chunks = self.speculation.extend(chunks)
        masks = self.masks.begin({row: chunk.sequence.constraint for row, chunk in choosing(chunks).items()})
        self.timeline.mark("schedule")
        logits = self.runner.run(chunks)
        self.scheduler.computed(chunks)
        self._count(chunks)
        walks = walks_of(chunks, self._fork)
        events = lost
        if beams := [walk for walk in walks if walk.sequence.request.beams is not None]:
            events += self._search([walk.sequence for walk in beams], logits.rows_SV[[walk.row for walk in beams]])
        walks = going = [walk for walk in walks if walk.sequence.request.beams is None]
        self.timeline.mark("schedule")
        while going:  # one round, and one more for each token of a draft that was right
            chosen = choose(logits, going, masks)
            self.timeline.mark("sample")
            for walk, sampled in zip(going, chosen, strict=True):
                outputs = self._extend(walk.sequence, sampled)
                walk.follow(outputs[-1])
                self.num_generated += sum(len(output.token_ids) for output in outputs)
                events += [(walk.sequence.request, output) for output in outputs]
            going = [walk for walk in going if walk.goes_on]
            self.timeline.mark("detokenise")
        if self.speculation is not None:
            self.speculation.settle(walks)
        events += [event for walk in walks if walk.has_ended for event in self._end(walk.sequence)]
        self.timeline.mark("schedule")
        self.timeline.end(tokens=sum(chunk.num_rows for chunk in chunks), running=len(self.scheduler.running))
        self.pace.observe(chunks, time.perf_counter() - started)
        return events

    def _search(self, beams: list[Sequence], logits_SV: Tensor) -> list[Event]:
        """What was computed of beams; searches whose beams are all there go on or end."""
        events: list[Event] = []
        for search in hear(beams, logits_SV):
            request = search.request
            if going := search.select():
                for index in range(len(request.sequences), len(going)):
                    self._new_sequence(request, index)
                go_on(search, going, request.sequences, self.scheduler)
            else:
                events += self._end_search(search)
        return events

    def _end_search(self, search: BeamSearch) -> list[Event]:
        request = search.request
        for sequence in request.sequences:
            self.scheduler.remove(sequence)
        request.num_open = 0
        self.num_finished += 1
        outputs = search.outputs(lambda: self.writer.text(request))
        num_tokens = sum(len(output.token_ids) for output in outputs)
        self.num_generated += num_tokens
        return [*((request, output) for output in outputs), (request, self._finished(request, num_tokens))]

    def _without_adapter(self) -> list[Event]:
        """End the requests whose adapter cannot be loaded any more."""
        events: list[Event] = []
        for request, error in self.adapters.failed:
            self.cancel(request)
            events.append((request, failed(request.id, error)))
        self.adapters.failed.clear()
        return events

    def _fork(self, sequence: Sequence) -> list[Sequence]:
        """When a prompt is computed, its other choices begin, over the same blocks and from the same logits."""
        request = sequence.request
        if request.beams is not None or len(request.sequences) == request.params.n:
            return []
        children = [self._new_sequence(request, index) for index in range(1, request.params.n)]
        for child in children:
            self.scheduler.fork(sequence, child)
        return children

    def _extend(self, sequence: Sequence, sampled: Sampled) -> list[Output]:
        """Append the token, and after it those that a grammar leaves no choice about, as far as they find room."""
        constraint = sequence.constraint
        if constraint is None:
            return [self.writer.append(sequence, sampled)]
        if constraint.forced:
            sampled = Sampled(constraint.forced.popleft())
        outputs = [self.writer.append(sequence, sampled)]
        if sequence.request.params.logprobs is None:
            while not outputs[-1].finish_reason and constraint.next_forced() and self._has_room(sequence):
                outputs.append(self.writer.append(sequence, Sampled(constraint.forced.popleft())))
                self.num_forced += 1
        return outputs

    def _has_room(self, sequence: Sequence) -> bool:
        """Whether one more token can follow the last, which is not computed yet either."""
        last = len(sequence.token_ids) - 1
        return not sequence.table.blocks or all(
            self.pool.make_writable(sequence.table, position) for position in (last, last + 1)
        )

    def _end(self, sequence: Sequence) -> list[Event]:
        request = sequence.request
        self.scheduler.remove(sequence)
        request.num_open -= 1
        if request.num_open:
            return []
        self.num_finished += 1
        return [(request, self._finished(request, sum(choice.num_output_tokens for choice in request.sequences)))]

    def _finished(self, request: Request, num_tokens: int) -> Finished:
        return Finished(
            request_id=request.id,
            prompt_tokens=len(request.prompt_token_ids) - request.num_virtual_tokens,
            completion_tokens=num_tokens,
            cached_tokens=request.cached_tokens or 0,
        )

    # --- requests ---------------------------------------------------------------------------------------------

    def submit(self, request: Request) -> None:
        """Put the request into the queue. Raises `RateLimitError` when the queue is full."""
        if len(self.scheduler.waiting) >= self.max_waiting:
            raise RateLimitError(f"{self.max_waiting} requests are waiting already; try again later", code="queue_full")
        request.arrival, request.num_open = next(self._arrivals), request.params.n
        request.submitted_at, request.submitted_time = self.scheduler.num_steps, time.monotonic()
        self.scheduler.add(self._new_sequence(request, 0))

    def cancel(self, request: Request) -> None:
        """Its blocks are free at once, and nothing more is said of it. A request that is over is left alone."""
        if request.num_open:
            for sequence in request.sequences:
                self.scheduler.remove(sequence)
            request.num_open = 0
            self.num_cancelled += 1

    def drop_running(self) -> list[Request]:
        """After a step that raised: cancel, and return, every request that it may have left half-done."""
        sequences = [*self.scheduler.running, *(chunk.sequence for chunk in self._chunks)]
        requests = list(dict.fromkeys(sequence.request for sequence in sequences))
        for request in requests:
            self.cancel(request)
        return requests

    @property
    def has_work(self) -> bool:
        return not self.asleep and bool(self.scheduler.running or self.scheduler.waiting)

    def watch(self) -> Timeline:
        """Keep from now on what each step's time goes to."""
        timeline = self.timeline = self.runner.timeline = Timeline(self.model.device)
        return timeline

    # --- weights ----------------------------------------------------------------------------------------------

    def sleep(self, level: int = 1) -> None:
        """Give memory back until `wake`: the cache, and from the device the weights (level 1: to host memory; level 2:
        for good, to be read from the file again). Requests wait; what was computed of them is computed again."""
        if level not in (1, 2):
            raise BadRequestError(f'"level" must be 1 or 2, not {level}', param="level")
        self.scheduler.preempt_all()
        self.runner.cache.layers.clear()
        unfuse(self.model)
        self.weights.let_go(level)
        self.asleep = max(level, self.asleep)

    def wake(self) -> None:
        """Go on. Raises `UnavailableError` if the weights are gone, and came from no file."""
        if self.asleep:
            if (model := self.weights.take_back()) is not self.model:
                self.model = self.runner.model = model
                self.adapters.move_to(model)
            fix_length(self.model.modules(), self.max_model_len)
            self.runner.cache.layers += self._make_cache().layers
            fuse(self.model, self.runner.cache, self.max_model_len)
            if self.speculation is not None:
                self.speculation.attach(self.model)
            self.asleep = 0

    def update_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Replace weights in place, by their names in a checkpoint (see `wootz.models.replacing`).

        What the cache holds belongs to the old weights and is forgotten. Requests in flight keep the tokens they
        have; those are computed again, and the next ones come from the new weights. An engine asleep stays so.
        """
        self.scheduler.preempt_all()
        self.weights.replace(weights)
        fix_length(self.model.modules(), self.max_model_len)

    def load_weights(self, path: Path) -> None:
        """`update_weights` from a checkpoint of the same architecture. Raises `ModelFileError`."""
        self.update_weights(read_weights(path))

    def stats(self) -> Stats:
        speculation = self.speculation
        return Stats(
            running=len(self.scheduler.running),
            waiting=len(self.scheduler.waiting),
            blocks_total=self.pool.num_blocks,
            blocks_used=self.pool.num_referenced,
            steps=self.num_steps,
            prompt_tokens_computed=self.num_prompt_tokens,
            prompt_tokens_cached=self.scheduler.num_cached_tokens,
            tokens_generated=self.num_generated,
            requests_finished=self.num_finished,
            requests_cancelled=self.num_cancelled,
            preemptions=self.scheduler.num_preemptions,
            grammars_compiled=self.planner.compiler.num_compiled if self.planner else 0,
            grammars_reused=self.planner.compiler.num_reused if self.planner else 0,
            tokens_forced=self.num_forced,
            uptime_seconds=time.monotonic() - self._started,
            requests_admitted=self.scheduler.num_admitted,
            prefix_hits=self.scheduler.num_prefix_hits,
            swapped_out=self.scheduler.swap.num_saved,
            swapped_in=self.scheduler.swap.num_loaded,
            swap_blocks=self.scheduler.swap.num_blocks,
            swap_blocks_used=self.scheduler.swap.num_used,
            asleep=self.asleep,
            parameters=self.num_parameters,
            wait_seconds=self.scheduler.wait_seconds,
            drafts=speculation.num_drafts if speculation else 0,
            draft_tokens=speculation.num_drafted if speculation else 0,
            draft_tokens_accepted=speculation.num_accepted if speculation else 0,
        )

    # --- many at once -----------------------------------------------------------------------------------------

    def generate(
        self,
        prompts: str | Many[Prompt],
        params: SamplingParams | Many[SamplingParams] | None = None,
        *,
        tools: ToolUse | None = None,
        adapters: str | Many[str | None] | None = None,
        progress: bool = False,
    ) -> list[Generation]:
        """Answer all prompts, batched as well as they can be, in the order given.

        ``params`` is for all of them, or one for each; and so is ``adapters``, a name or None for the model alone.
        Nothing is begun if any of them is refused (`BadRequestError`, `NotFoundError` for an adapter).
        ``progress`` shows a bar on a terminal.
        """
        prompts = [prompts] if isinstance(prompts, str) else prompts
        if params is None or isinstance(params, SamplingParams):
            params = [params or SamplingParams()] * len(prompts)
        if self.asleep:
            raise UnavailableError("the engine is asleep", hint="call wake() first")
        if adapters is None or isinstance(adapters, str):
            adapters = [adapters] * len(prompts)
        requests = [
            self.make_request(prompt, each, tools=tools, adapter=adapter)
            for prompt, each, adapter in zip(prompts, params, adapters, strict=True)
        ]
        answers = {
            request: Generation(
                request.prompt_token_ids[request.num_virtual_tokens :],
                [Choice(index) for index in range(request.params.n)],
            )
            for request in requests
        }
        queue = iter(requests)
        num_left = len(requests)
        try:
            with progress_bar("Generating", len(requests), quiet=not progress) as bar:
                while num_left:
                    while len(self.scheduler.waiting) < self.max_waiting and (request := next(queue, None)):
                        self.submit(request)
                    for request, event in self.step():
                        if request in answers:
                            answers[request].add(event)
                            if isinstance(event, Finished):
                                num_left -= 1
                                bar.advance()
        finally:
            for request in requests:
                self.cancel(request)
        return list(answers.values())

    # --- parts ------------------------------------------------------------------------------------------------

    def _new_sequence(self, request: Request, index: int) -> Sequence:
        sequence = Sequence(request, index, list(request.prompt_token_ids), self.writer.text(request))
        if request.plan is not None:
            sequence.constraint, sequence.answer = request.plan.begin(), request.plan.new_answer()
        request.sequences.append(sequence)
        return sequence

    def _count(self, chunks: list[Chunk]) -> None:
        self.num_steps += 1
        for chunk in chunks:
            prompt_end = min(chunk.end, len(chunk.sequence.request.prompt_token_ids))
            self.num_prompt_tokens += max(0, prompt_end - chunk.start)
