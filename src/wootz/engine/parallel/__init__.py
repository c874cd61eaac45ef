"""One engine on several processes (*ranks*): `ParallelModel` on the first, `worker` on the others.

The first rank is the engine process itself, with scheduler, block pool, sampler and tokenizer. All that the others do
is to hold their share of the weights and of the cache, and to run it when they are told. To the engine this is a model
like any other: what it is called with (tokens, positions, block tables) is sent to all ranks before they run.

- `messages`: what the first rank tells the others;
- `ranks`: the process group, and how its processes come to be and end;
- `share`: one rank's part of a pass;
- `model`: `ParallelModel`, the first rank's; `worker`: the others' loop;
- `rows`, `sequence`: a step's rows cut into micro-batches, or spread over ranks.
"""
