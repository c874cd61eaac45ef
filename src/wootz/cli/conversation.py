"""The state of a terminal chat: the messages so far, the settings, the commands that change them, and the view of an
answer as it streams."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path

from rich.live import Live
from rich.markdown import Markdown

from wootz.cli.common import stdout
from wootz.core import BadRequestError, LanguageModel
from wootz.core.wire import ChatMessage, ChatRequest, Usage

HELP = """\
/model [NAME]     show or change the model
/system [TEXT]    set the system prompt; without text, remove it
/temp [NUMBER]    set the temperature; without a number, the model's own
/clear            forget the conversation
/save FILE        write the conversation as one line of JSON with "messages"
/exit             leave (so does Ctrl-D)
End a line with \\ to go on in the next one; open and close a longer text with \"\"\"."""


class Conversation:
    """What has been said, and how to ask. An answer that was stopped counts as far as it came."""

    def __init__(
        self,
        model: LanguageModel,
        names: dict[str, LanguageModel],
        system: str | None,
        temperature: float | None,
        max_tokens: int | None,
    ) -> None:
        self.model, self.names = model, names
        self.system, self.temperature, self.max_tokens = system, temperature, max_tokens
        self.messages: list[ChatMessage] = []

    def command(self, line: str) -> bool:
        """Carry out a line such as ``/temp 0.2``; True when it asks to leave."""
        name, _, argument = line.partition(" ")
        argument = argument.strip()
        match name:
            case "/exit" | "/quit" | "/bye":
                return True
            case "/help":
                stdout().print(HELP, style="dim", markup=False)
            case "/clear":
                self.messages.clear()
                _note("forgotten")
            case "/system":
                self.system = argument or None
                _note(f"system prompt: {self.system or 'none'}")
            case "/temp":
                self.temperature = _temperature(argument)
                _note(f"temperature: {'the default of the model' if self.temperature is None else self.temperature}")
            case "/model":
                if argument and argument not in self.names:
                    raise BadRequestError(f'no model "{argument}"', hint=f"there is {', '.join(self.names)}")
                self.model = self.names[argument] if argument else self.model
                _note(f"model: {self.model.name}" + ("" if argument else f" (of {', '.join(self.names)})"))
            case "/save":
                self._save(argument)
            case _:
                raise BadRequestError(f"no command {name}", hint="/help lists them")
        return False

    async def answer(self, text: str) -> None:
        """Stream the answer as rendered Markdown, then its tokens and speed."""
        start = time.perf_counter()
        first: float | None = None
        view = MarkdownView()
        said, usage = "", Usage()
        try:
            with silent_keyboard(), view:
                async with aclosing(self.model.chat(self._request(text))) as chunks:
                    async for chunk in chunks:
                        usage = chunk.usage or usage
                        for choice in chunk.choices:
                            if choice.delta.content:
                                first = first or time.perf_counter()
                                said += choice.delta.content
                                view.update(said)
        finally:
            if said:
                self._remember(text, said)
        if first is not None and usage.completion_tokens:
            rate = max(usage.completion_tokens - 1, 1) / max(time.perf_counter() - first, 1e-9)
            cached = f" ({usage.cached_tokens} cached)" if usage.cached_tokens else ""
            _note(
                f"{usage.prompt_tokens}{cached} tokens in, {usage.completion_tokens} out, "
                f"first after {first - start:.2f} s, then {rate:.1f} a second"
            )

    async def answer_plainly(self, text: str) -> None:
        """Stream the answer as plain text, for a pipe or a single question."""
        async with aclosing(self.model.chat(self._request(text))) as chunks:
            async for chunk in chunks:
                for choice in chunk.choices:
                    sys.stdout.write(choice.delta.content or "")
                    sys.stdout.flush()
        print()

    def _request(self, text: str) -> ChatRequest:
        system = [ChatMessage(role="system", content=self.system)] if self.system else []
        return ChatRequest(
            model=self.model.name,
            messages=[*system, *self.messages, ChatMessage(role="user", content=text)],
            temperature=self.temperature,
            max_tokens=self.max_tokens,
            stream=True,
        )

    def _remember(self, question: str, answer: str) -> None:
        self.messages += [ChatMessage(role="user", content=question), ChatMessage(role="assistant", content=answer)]

    def _save(self, name: str) -> None:
        if not name:
            raise BadRequestError("/save needs a file name")
        system = [{"role": "system", "content": self.system}] if self.system else []
        messages = system + [{"role": message.role, "content": message.text} for message in self.messages]
        try:
            Path(name).expanduser().write_text(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
        except OSError as error:
            raise BadRequestError(f"{name} can't be written: {error.strerror}") from None
        _note(f"saved {len(messages)} messages to {name}")


class MarkdownView:
    """Markdown that grows. Blocks that are complete are printed for good; only the last one is drawn anew, so an answer
    longer than the screen scrolls as any other text does."""

    def __init__(self) -> None:
        self._live = Live(console=stdout(), auto_refresh=False, transient=True, vertical_overflow="crop")
        self._text, self._printed = "", 0

    def __enter__(self) -> MarkdownView:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()
        if rest := self._text[self._printed :].strip():
            stdout().print(Markdown(rest))

    def update(self, text: str) -> None:
        self._text = text
        end = _last_block_start(text)
        if end > self._printed:
            self._live.console.print(Markdown(text[self._printed : end]), "")
            self._printed = end
        self._live.update(Markdown(text[self._printed :]), refresh=True)


@contextmanager
def silent_keyboard() -> Iterator[None]:
    """What is typed meanwhile is kept for the next prompt, but not shown: a ``^C`` at the end of a full line would make
    a new one, and the view that is drawn anew would miss the beginning of what it drew before."""
    if sys.platform == "win32" or not sys.stdin.isatty():
        yield
        return
    import termios

    before = termios.tcgetattr(sys.stdin)
    silent = [*before]
    silent[3] &= ~termios.ECHO
    termios.tcsetattr(sys.stdin, termios.TCSADRAIN, silent)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _last_block_start(text: str) -> int:
    """Where the last block begins: after the last blank line that is outside of a code fence."""
    position = start = 0
    fenced = False
    for line in text.splitlines(keepends=True):
        position += len(line)
        if line.lstrip().startswith(("```", "~~~")):
            fenced = not fenced
        elif not line.strip() and not fenced:
            start = position
    return start


def _temperature(text: str) -> float | None:
    try:
        value = float(text) if text else None
    except ValueError:
        value = -1.0
    if value is not None and not 0 <= value <= 2:
        raise BadRequestError(f'"{text}" is no temperature', hint="give a number from 0 to 2")
    return value


def _note(text: str) -> None:
    stdout().print(text, style="dim", markup=False)
