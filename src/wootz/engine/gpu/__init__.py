"""The engine on a GPU: Triton's kernels behind the context (`paged`), around the matrix products (`layers`), and
decoding steps replayed as CUDA graphs (`graphs`). What none of them serves runs in plain PyTorch, as anywhere."""
