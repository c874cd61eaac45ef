"""A built corpus as token stores: one per source, and one more per source for what is held out.

    OUT/tokens/SOURCE/     OUT/held_out_tokens/SOURCE/     OUT/tokenizer/ (if it was trained here)

A document is what the tokenizer makes of it between two marks: its end-of-text token last, which tells the model to
stop and packing where to cut, and first its begin-of-text token (the end of a text before, if it has none), so that the
first word is learned as well. A control token that is spelled out in a document is text there, never a command.
Documents keep their order, so document n of a store is the n-th of its source in ``OUT/documents``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from wootz.core.errors import ConfigError, NotFoundError
from wootz.core.progress import SILENT, Progress
from wootz.data.build import BuildReport
from wootz.data.hashes import hash_text
from wootz.data.recipe import Tokens
from wootz.data.shards import read_all, shard_files
from wootz.data.token_store import TokenStore, TokenStoreWriter
from wootz.tokenization import ByteTokenizer, Tokenizer, load_tokenizer
from wootz.tokenization.fingerprint import fingerprint
from wootz.tokenization.train import train_tokenizer, write_tokenizer

END_OF_TEXT = "<|endoftext|>"
_ENDS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>")
"""What ends a document in tokenizers that also have a token to end an answer with."""
CONTINUE = "{% for message in messages %}{{ message.content }}{% endfor %}"
"""The chat template of a base model, which has never seen a chat: whatever is said is text to go on with."""
_AT_ONCE = 512


@dataclass(frozen=True)
class Tokenized:
    """Tokens and documents of each source, and how many bytes of text a token stands for."""

    tokens: dict[str, int]
    documents: dict[str, int]
    bytes_per_token: float
    throughput: Throughput = field(compare=False)


@dataclass(frozen=True)
class Throughput:
    """Of what one call tokenised and wrote, reading it included; what a call before had done is not counted."""

    documents: int
    bytes: int
    tokens: int
    seconds: float

    def rates(self) -> dict[str, float]:
        each = 1 / max(self.seconds, 1e-9)
        return {
            "documents_per_second": self.documents * each,
            "megabytes_per_second": self.bytes / 1e6 * each,
            "tokens_per_second": self.tokens * each,
        }


def tokenizer_for(out: Path, tokens: Tokens) -> Tokenizer | ByteTokenizer:
    """The one that is named, or one trained on the documents of ``out``, which is kept in ``out/tokenizer``."""
    if tokens.tokenizer == "bytes":
        return ByteTokenizer()
    if tokens.tokenizer is not None:
        return load_tokenizer(tokens.tokenizer)
    folder = out / "tokenizer"
    if not (folder / "tokenizer_config.json").exists():
        texts = _texts_to_train_on(out, tokens.train_on_bytes)
        made = train_tokenizer(
            texts, vocab_size=tokens.vocab_size or 0, pattern=tokens.pattern, special_tokens=[END_OF_TEXT]
        )
        write_tokenizer(made, folder, roles={"eos_token": END_OF_TEXT}, chat_template=CONTINUE)
    return load_tokenizer(folder)


PARTS = {"documents": "tokens", "held_out": "held_out_tokens"}


def tokenize(
    out: Path, tokenizer: Tokenizer | ByteTokenizer, progress: Progress = SILENT, *, parts: Mapping[str, str] = PARTS
) -> Tokenized:
    """Stores of everything in ``out``, or of these ``parts`` (folder of documents: folder of stores). Stopped, it goes
    on; with other documents or another tokenizer it refuses. The report is told how fast it went."""
    report = BuildReport.read(out)
    if report is None or not report.finished:
        raise ConfigError(f"{out}: holds no finished corpus", hint="run `wootz data build` to its end first")
    progress.set_total(report.steps[-1].after.documents if "documents" in parts else report.held_out)
    sources = {source["name"]: source for source in report.recipe["sources"]}
    count, documents = dict[str, int](), dict[str, int]()
    num_bytes, began = 0, time.monotonic()
    new_documents = new_bytes = new_tokens = 0
    for part, name in parts.items():
        writers = _Writers(out / name, tokenizer, sources)
        documents_left = read_all(shard_files(out / part))
        while batch := [*islice(documents_left, _AT_ONCE)]:
            waiting = [document for document in batch if writers.wants(document.source)]
            for document, ids in zip(waiting, encode(tokenizer, [d.text for d in waiting]), strict=True):
                writers.add(document.source, ids)
                new_documents, new_tokens = new_documents + 1, new_tokens + len(ids)
                new_bytes += len(document.text.encode())
            num_bytes += sum(len(document.text.encode()) for document in batch)
            progress.advance(len(batch))
        writers.close()
        for source, store in open_stores(out / name).items():
            count[source] = count.get(source, 0) + store.num_tokens
            documents[source] = documents.get(source, 0) + store.num_documents
    throughput = Throughput(new_documents, new_bytes, new_tokens, time.monotonic() - began)
    if new_documents:
        report.tokenizing = asdict(throughput) | throughput.rates()
        report.write(out)
    return Tokenized(count, documents, num_bytes / max(1, sum(count.values())), throughput)


def open_stores(folder: Path | str, *, verify: bool = False) -> dict[str, TokenStore]:
    """All stores of a folder such as ``OUT/tokens``, by source. Raises as `TokenStore.open` does."""
    folder = Path(folder)
    found = sorted(path for path in folder.glob("*") if (path / "index.json").exists())
    return {path.name: TokenStore.open(path, verify=verify) for path in found}


def weights_of(out: Path, stores: dict[str, TokenStore]) -> dict[str, float]:
    """The recipe's weights for these stores. Sources that a language step made of one share its weight by their
    size."""
    return weights_by_size(out, {name: store.num_tokens for name, store in stores.items()})


def weights_by_size(out: Path, sizes: Mapping[str, int]) -> dict[str, float]:
    report = BuildReport.read(out)
    if report is None:
        raise NotFoundError(f"{out}: holds no report of a build")
    weights = {source["name"]: source["weight"] for source in report.recipe["sources"]}
    origin = {name: name if name in weights else name.rpartition(".")[0] for name in sizes}
    total = {name: sum(sizes[n] for n in sizes if origin[n] == name) for name in origin.values()}
    return {name: weights[origin[name]] * size / total[origin[name]] for name, size in sizes.items()}


def vocabulary(tokenizer: Tokenizer | ByteTokenizer) -> dict[str, str]:
    """What made a store's ids, as its index has it."""
    return {"vocabulary": "bytes"} if isinstance(tokenizer, ByteTokenizer) else fingerprint(tokenizer)


def encode(tokenizer: Tokenizer | ByteTokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Ids of each text as a document, its begin and end included."""
    if isinstance(tokenizer, ByteTokenizer):
        return [[tokenizer.eos_token_id, *tokenizer.encode(text)] for text in texts]
    end = end_of_text(tokenizer)
    begin = end if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    spelled = [tokenizer.token_bytes(id).decode() for id in tokenizer.control_ids]
    encoded = tokenizer.encode_batch(texts)
    for place, text in enumerate(texts):
        if any(token in text for token in spelled):
            encoded[place] = tokenizer.encode(text, control="text")
    opened = (ids if ids[:1] == [begin] else [begin, *ids] for ids in encoded)
    return [ids if len(ids) > 1 and ids[-1] == end else [*ids, end] for ids in opened]


def end_of_text(tokenizer: Tokenizer) -> int:
    """Raises `ConfigError` for a tokenizer without such a token."""
    named = (tokenizer.token_to_id(spelling) for spelling in _ENDS)
    found = next((id for id in named if id is not None), min(tokenizer.eos_token_ids, default=None))
    if found is None:
        raise ConfigError("the tokenizer has no token that ends a text", hint=f"add {END_OF_TEXT} to it")
    return found


class _Writers:
    """A store for each source, made when its first document comes; those that it holds already are passed over."""

    def __init__(self, folder: Path, tokenizer: Tokenizer | ByteTokenizer, about: dict[str, Any]) -> None:
        made_by = vocabulary(tokenizer)
        self._open: Callable[[str], TokenStoreWriter] = lambda source: TokenStoreWriter(
            folder / source,
            vocab_size=tokenizer.vocab_size,
            tokenizer=made_by,
            about=about.get(source) or about.get(source.rpartition(".")[0], {}),
        )
        self._writers: dict[str, TokenStoreWriter] = {}
        self._left_to_pass: dict[str, int] = {}

    def wants(self, source: str) -> bool:
        if source not in self._writers:
            self._writers[source] = self._open(source)
            self._left_to_pass[source] = self._writers[source].num_documents
        self._left_to_pass[source] -= 1
        return self._left_to_pass[source] < 0

    def add(self, source: str, ids: list[int]) -> None:
        self._writers[source].add(ids)

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()


def _texts_to_train_on(out: Path, most_bytes: int) -> Iterator[str]:
    """The whole corpus, or documents by lot where it is larger."""
    report = BuildReport.read(out)
    size = report.steps[-1].after.bytes if report else 0
    limit = int(min(1.0, most_bytes / max(1, size)) * (2**64 - 1))
    for document in read_all(shard_files(out / "documents")):
        if hash_text(f"tokenizer {document.id}") <= limit:
            yield document.text
