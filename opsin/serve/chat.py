"""Chat in the terminal: `/image PATH` shows the model a picture, everything else is said to it."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from mimetypes import guess_type
from pathlib import Path

from rich.console import Console
from rich.text import Text

from opsin.checkpoint.load import load
from opsin.checkpoint.prepare import preparation
from opsin.core.errors import OpsinError
from opsin.core.files import expanded
from opsin.core.terminal import printable
from opsin.core.types import Picture
from opsin.model.generate import Sampling
from opsin.serve.session import Session
from opsin.text.templates import Template
from opsin.vision.picture import open_picture

HELP = """\
/image PATH   show a picture with the next message; give it several times for several pictures (videos are not shown)
/reset        forget the conversation and begin anew
/history      show what was said so far
/help         this list
/quit         leave (or press Ctrl-D); Ctrl-C stops an answer"""


def run_chat(
    checkpoint: Path,
    console: Console,
    input_fn: Callable[[str], str] = input,
    sampling: Sampling | None = None,
    template: Template | None = None,
) -> None:
    """Load a checkpoint (or a run's newest) and chat until the user leaves.

    `input_fn` shows a prompt and returns a line; it raises EOFError at the end (Ctrl-D), KeyboardInterrupt on Ctrl-C.

    Raises:
        OpsinError: the checkpoint cannot be used. Errors of single messages are shown, and the chat goes on.
    """
    loaded = load(checkpoint, template=template)
    prepare = preparation(loaded.model.config, loaded.tokenizer)
    Chat(Session(loaded.model, prepare, sampling or Sampling()), console).run(input_fn)


def typed_path(argument: str) -> Path:
    """A path as typed: bare, with spaces, in quotes, or with the backslashes that a terminal adds to a dropped file.

    Raises:
        OpsinError: it starts with the `~user` of nobody.
    """
    bare = expanded(Path(argument))
    if bare.exists():
        return bare
    try:
        words = shlex.split(argument)
    except ValueError:  # an apostrophe that opens no quotation
        return bare
    return expanded(Path(words[0])) if len(words) == 1 else bare


@dataclass
class Chat:
    """The terminal's side of a session: commands, and the pictures that wait for the next message."""

    session: Session
    console: Console
    waiting: list[Picture] = field(default_factory=list)

    def run(self, input_fn: Callable[[str], str]) -> None:
        """Read and answer lines until the user leaves."""
        self._say("Type a message; /image PATH adds a picture, /help lists all commands.", "dim")
        while True:
            try:
                line = input_fn(self._prompt()).rstrip()
            except EOFError:
                self.console.print()
                return
            except KeyboardInterrupt:
                self.console.print()
                self._say("to leave press Ctrl-D or type /quit", "dim")
                continue
            if line == "/quit":
                return
            self._line(line)

    def _prompt(self) -> str:
        count = len(self.waiting)
        return f"[{count} picture{'s' if count > 1 else ''}] you> " if count else "you> "

    def _line(self, line: str) -> None:
        command, _, argument = line.partition(" ")
        try:
            match command:
                case "/help":
                    self._say(HELP)
                case "/reset":
                    self.session.turns.clear()
                    self.waiting.clear()
                    self._say("The conversation is forgotten.", "dim")
                case "/history":
                    self._history()
                case "/image":
                    self._add_picture(argument.strip())
                case _ if line.startswith("/"):
                    self._say(f"{command} is no command; /help lists them, and a space before the / says it", "red")
                case _ if line:
                    self._answer(line.strip())
        except (OpsinError, OSError) as error:
            self._say(f"error: {error}", "red")

    def _add_picture(self, argument: str) -> None:
        if not argument:
            self._say("which picture? /image PATH", "red")
            return
        path = typed_path(argument)
        if (guess_type(path.name)[0] or "").startswith("video/"):
            self._say(f"{path}: chat shows pictures only, no videos", "red")
            return
        picture = Picture(path=path)
        image = open_picture(picture)  # decoded now, so that a bad picture is refused before the question is typed
        self.waiting.append(picture)
        self._say(f"{picture.name} ({image.width}x{image.height}) goes with your next message.", "dim")

    def _answer(self, text: str) -> None:
        """Stream an answer; pictures wait on if nothing came of the question."""
        before = len(self.session.turns)
        said = False
        try:
            with closing(self.session.ask(text, tuple(self.waiting))) as pieces:
                for piece in pieces:
                    said = True
                    self.console.out(printable(piece), end="", highlight=False)
            self.console.print() if said else self._say("(the model answered nothing)", "dim")
        except KeyboardInterrupt:
            self.console.print()
            self._say("(stopped)", "dim")
        finally:
            if len(self.session.turns) > before:
                self.waiting.clear()

    def _history(self) -> None:
        if not self.session.turns:
            self._say("Nothing was said yet.", "dim")
        for turn in self.session.turns:
            parts = (part.strip("\n") if isinstance(part, str) else f"[{part.name}]" for part in turn.parts)
            self._say(f"{'you' if turn.role == 'user' else 'model'}> {' '.join(filter(None, parts))}")

    def _say(self, text: str, style: str = "") -> None:
        # As Text: brackets in a file name or a message are no markup.
        self.console.print(Text(printable(text), style=style), soft_wrap=True)
