"""Models whose reading is known exactly, for a harness to measure: of everything, of the end, of all but the middle.

They solve the tasks by parsing the prompt, with no knowledge of how it was built.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import AsyncGenerator, Callable

from wootz.core import BadRequestError, LanguageModel
from wootz.core.wire import (
    ChatChunk,
    ChatRequest,
    ChunkChoice,
    Completion,
    CompletionChoice,
    CompletionRequest,
    Delta,
    Usage,
)


def count_words(text: str) -> int:
    """A tokenizer one can check by hand: a token is a run of letters and digits, or one other visible character."""
    return len(re.findall(r"\w+|[^\w\s]", text))


class Reader(LanguageModel):
    """Answers with ``solve(what it sees of the prompt)``. Refuses what is longer than ``window``, if it has one."""

    def __init__(
        self,
        solve: Callable[[str], str],
        see: Callable[[str], str] = lambda prompt: prompt,
        *,
        window: int | None = None,
    ) -> None:
        self.name = "reader"
        self._solve, self._see, self._window = solve, see, window
        self.prompts: list[str] = []

    async def chat(self, request: ChatRequest) -> AsyncGenerator[ChatChunk, None]:
        prompt = request.messages[0].text
        for text in (" ", self._answer(prompt, request.max_tokens)):
            yield ChatChunk(id="1", model=self.name, choices=[ChunkChoice(delta=Delta(content=text))])
        yield ChatChunk(id="1", model=self.name, choices=[ChunkChoice(delta=Delta(), finish_reason="stop")])
        yield ChatChunk(id="1", model=self.name, choices=[], usage=self._usage(prompt))

    async def complete(self, request: CompletionRequest) -> AsyncGenerator[Completion, None]:
        prompt = str(request.prompt)
        choice = CompletionChoice(text=self._answer(prompt, request.max_tokens), finish_reason="stop")
        yield Completion(id="1", model=self.name, choices=[choice])
        yield Completion(id="1", model=self.name, choices=[], usage=self._usage(prompt))

    def _answer(self, prompt: str, max_tokens: int | None) -> str:
        self.prompts.append(prompt)
        if self._window is not None and count_words(prompt) + (max_tokens or 0) > self._window:
            raise BadRequestError("this is too long", code="context_length_exceeded")
        return self._solve(self._see(prompt))

    def _usage(self, prompt: str) -> Usage:
        return Usage(prompt_tokens=count_words(prompt), completion_tokens=1)


def last(num_words: int) -> Callable[[str], str]:
    """Sees only so many tokens of the end: a window that slid."""
    return lambda prompt: "".join(re.findall(r"\w+\s*|[^\w\s]\s*", prompt)[-num_words:])


# --- solvers --------------------------------------------------------------------------------------------------


def solve(prompt: str) -> str:
    """The right answer to any question of the suite, as far as what was seen tells it."""
    for pattern, solver in _SOLVERS.items():
        if re.search(pattern, prompt):
            return solver(prompt)
    return "I don't know."


def _magic(prompt: str) -> str:
    asked = re.search(r"magic (?:number|uuid)s? for (.+?) mentioned in", prompt)
    assert asked is not None
    keys = re.split(r", | and ", asked[1])
    pairs = re.findall(r"One of the special magic \w+ for (\S+) is: (\S+)\.", prompt)
    return ", ".join(value for key, value in pairs if key in keys)


def _chain(prompt: str) -> str:
    asked = re.search(r"of the town where (\w+) lives", prompt)
    assert asked is not None
    towns = dict(re.findall(r"(\w+) lives in the town of (\w+)\.", prompt))
    houses = dict(re.findall(r"The archive of (\w+) is kept in (\w+) House\.", prompt))
    codes = dict(re.findall(r"The door code of (\w+) House is (\d+)\.", prompt))
    return codes.get(houses.get(towns.get(asked[1], ""), ""), "unknown")


def _variables(prompt: str) -> str:
    asked = re.search(r"have the value (\d+), directly", prompt)
    assert asked is not None
    names = re.findall(rf"VAR (\w+) = {asked[1]}\.", prompt)
    for name, before in re.findall(r"VAR (\w+) = VAR (\w+)\.", prompt):
        if before in names:
            names.append(name)
    return ", ".join(names)


def _most_common(prompt: str) -> str:
    words = Counter(re.findall(r"^\d+\. (\S+)$", prompt, re.MULTILINE))
    return ", ".join(word for word, _ in words.most_common(10))


def _most_frequent(prompt: str) -> str:
    text = prompt.split("\n\n")[1] if "\n\n" in prompt else prompt
    return ", ".join(word for word, _ in Counter(text.replace("....", "").split()).most_common(3))


def _invented(prompt: str) -> str:
    description = r"The (\w+ \w+) stands in the town of (\w+)\. It was opened in the year (\d+) by (\w+ \w+)"
    places = {name: (town, year, founder) for name, town, year, founder in re.findall(description, prompt)}
    births = dict(re.findall(r"(\w+ \w+) was born in (\w+)", prompt))
    questions = {
        r"In which town does the (\w+ \w+) stand": lambda place: place[0],
        r"In which year was the (\w+ \w+) opened": lambda place: place[1],
        r"Who opened the (\w+ \w+)\?": lambda place: place[2],
        r"Where was the person born who opened the (\w+ \w+)\?": lambda place: births.get(place[2], "unknown"),
    }
    for pattern, answer in questions.items():
        if (asked := re.search(pattern, prompt)) and asked[1] in places:
            return answer(places[asked[1]])
    return "unknown"


_SOLVERS = {
    r"magic (?:number|uuid)s? for .+ mentioned in": _magic,
    r"What is the door code": _chain,
    r"Which variables have": _variables,
    r"10 most common words": _most_common,
    r"three most frequent words": _most_frequent,
    r"^Question: |\nQuestion: ": _invented,
}


def documents_of(prompt: str) -> list[str]:
    return re.findall(r"^Document \d+: (.*)$", prompt, re.MULTILINE)


def seen_through(visible: Callable[[int, int], bool]) -> Callable[[str], str]:
    """Shows of a prompt's documents only those at visible ``(position from 1, number of documents)``."""

    def see(prompt: str) -> str:
        documents = documents_of(prompt)
        for position, document in enumerate(documents, 1):
            if not visible(position, len(documents)):
                prompt = prompt.replace(document, "…")
        return prompt

    return see
