"""The terminal of the command `chat`: reads messages and commands, shows answers as they come."""

import contextlib
import sys
import time
from collections.abc import Callable, Generator
from typing import NamedTuple, TypeAlias

from rich.console import Console
from rich.live import Live
from rich.markdown import Markdown
from rich.table import Table
from rich.text import Text

from llama_jax.core.errors import UserError, nearest
from llama_jax.core.processes.signals import Interruptions
from llama_jax.inference.conversation import Conversation, Turn

try:
    import readline
    import termios
except ImportError:  # of Windows
    readline = termios = None

_SECONDS_A_FRAME = 0.1
Answer: TypeAlias = Generator[str, None, None]
Show: TypeAlias = Callable[[Table | str], None]
# A model may write what would move the cursor or change the terminal.
_NOT_PRINTED = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def talk(conversation: Conversation, *, markdown: bool) -> None:
    """Answer what is said at the terminal, or each line of the standard input, until it ends.

    Raises:
        UserError: a line of an input that is not a terminal cannot be answered.
    """
    if sys.stdin is None:  # closed by who started this
        return
    sys.stdin.reconfigure(errors="replace")  # pyright: ignore[reportAttributeAccessIssue]
    if sys.stdin.isatty() and sys.stdout.isatty():
        _Terminal(conversation, markdown).talk()
        return
    for line in filter(None, map(str.strip, sys.stdin)):
        try:
            answer = _answer(conversation, line, Console(stderr=True, highlight=False, markup=False).print)
        except EOFError:
            return
        if answer is not None:
            for piece in answer:
                print(piece, end="", flush=True)
            print(flush=True)


class _Command(NamedTuple):
    usage: str
    about: str
    follow: Callable[[Conversation, str, Show], Answer | None]
    """Does what is asked for, and gives the answer if that is one."""


def _help(_: Conversation, __: str, show: Show) -> None:
    table = Table.grid(padding=(0, 3))
    for name, command in _COMMANDS.items():
        table.add_row(f"/{name} {command.usage}".rstrip(), command.about)
    table.add_row('"""', "begins a message of several lines, and ends it; so does a \\ at the end of a line")
    show(table)


def _clear(conversation: Conversation, _: str, show: Show) -> None:
    conversation.turns.clear()
    show("A new conversation.")


def _system(conversation: Conversation, text: str, show: Show) -> None:
    if text:
        conversation.system = None if text == "none" else text
    show(f"System prompt: {conversation.system or 'none'}")


def _regenerate(conversation: Conversation, _: str, __: Show) -> Answer:
    return conversation.regenerate()


def _settings(conversation: Conversation, text: str, show: Show) -> None:
    name, _, value = text.partition(" ")
    if name:
        conversation.change(name, value.strip())
    table = Table.grid(padding=(0, 3))
    for setting, now in conversation.settings.items():
        if setting == name or not name:
            table.add_row(setting, str(now))
    show(table)


def _adapter(conversation: Conversation, name: str, show: Show) -> None:
    if name:
        conversation.choose_adapter(name)
    table = Table.grid(padding=(0, 2))
    for number, known in enumerate(conversation.adapters):
        is_chosen = number == conversation.adapter or len(conversation.adapters) == 1
        table.add_row("●" if is_chosen else " ", str(number + 1), known)
    if len(conversation.adapters) > 1:
        table.add_row("●" if conversation.adapter is None else " ", "none", "the base alone")
    show(table if conversation.adapters else "There is no adapter.")


def _exit(_: Conversation, __: str, ___: Show) -> None:
    raise EOFError


_COMMANDS = {
    "help": _Command("", "this list", _help),
    "regenerate": _Command("", "another answer to the last message", _regenerate),
    "clear": _Command("", "begin a new conversation", _clear),
    "system": _Command("[TEXT | none]", "what the model is told before the conversation", _system),
    "settings": _Command("[NAME VALUE]", "how tokens are chosen", _settings),
    "adapter": _Command("[NUMBER | NAME | none]", "which adapter answers", _adapter),
    "exit": _Command("", "end; so does Ctrl-D", _exit),
}


def _answer(conversation: Conversation, line: str, show: Show) -> Answer | None:
    """The answer to a line; None: it was a command that has none.

    Raises:
        UserError: there is no such command, or it cannot be followed.
        EOFError: the line asks for the end.
    """
    if not line.startswith("/"):
        return conversation.ask(line)
    name, _, rest = line[1:].partition(" ")
    if name not in _COMMANDS:
        there_are = f"there are {', '.join(f'/{known}' for known in _COMMANDS)}{nearest(name, _COMMANDS)}"
        raise UserError(f"/{name}: unknown command; {there_are}")
    return _COMMANDS[name].follow(conversation, rest.strip(), show)


class _Terminal:
    """A conversation at a terminal."""

    def __init__(self, conversation: Conversation, markdown: bool) -> None:
        self._conversation, self._markdown = conversation, markdown
        self._console = Console(highlight=False, markup=False, emoji=False)
        self._interruptions = Interruptions(tidy_up=_echo)
        if readline is not None:  # what is pasted is one message, however many lines it has
            readline.parse_and_bind("set enable-bracketed-paste on")

    def talk(self) -> None:
        """Until the input ends."""
        self._greet()
        with self._interruptions:
            while True:
                try:
                    line = self._read()
                    if line and (answer := _answer(self._conversation, line, self._console.print)) is not None:
                        self._show_answer(answer)
                except KeyboardInterrupt:
                    self._note("\nCtrl-D or /exit ends")
                except EOFError:
                    self._console.print()
                    return
                except UserError as error:
                    self._console.print(str(error), style="red")

    def _greet(self) -> None:
        if not self._conversation.is_chat:
            self._note("the model has no chat template: it continues each text, and remembers none")
        self._note("/help lists commands, Ctrl-C stops an answer, Ctrl-D ends")

    def _read(self) -> str:
        color = not self._console.no_color
        # Readline must know what of a prompt takes no room.
        begin = "\001\033[1;36m\002>\001\033[0m\002 " if color else "> "
        lines = [input(begin)]
        if lines[0].lstrip().startswith('"""'):
            lines[0] = lines[0].lstrip()[3:]
            while not lines[-1].rstrip().endswith('"""'):
                lines.append(input(". "))
            lines[-1] = lines[-1].rstrip()[:-3]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            lines.append(input(". "))
        return "\n".join(lines).strip()

    def _note(self, text: str) -> None:
        self._console.print(text, style="dim")

    def _show_answer(self, answer: Answer) -> None:
        with self._interruptions.noted() as noted:
            _echo(False)  # what is typed meanwhile is read afterwards, and would now be printed into the answer
            try:
                with contextlib.closing(answer), _Shown(self._console, self._markdown) as shown:
                    for piece in answer:
                        shown.add(piece)
                        if noted.is_set():
                            break
            finally:
                _echo()
            self._note(_figures(self._conversation.turns[-1], noted.is_set()))


def _echo(is_on: bool = True) -> None:
    """Whether the terminal shows what is typed."""
    if termios is not None:
        modes = termios.tcgetattr(sys.stdin)
        modes[3] = modes[3] | termios.ECHO if is_on else modes[3] & ~termios.ECHO
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, modes)


def _figures(turn: Turn, stopped: bool) -> str:
    speed = "" if turn.tokens_per_second is None else f" · {turn.tokens_per_second:.1f} tokens/s"
    return f"{'stopped · ' * stopped}{turn.tokens} token{'s' * (turn.tokens != 1)}{speed}\n"


class _Shown(contextlib.ExitStack):
    """An answer in the terminal: blocks of Markdown are printed for good when they are whole, the one that grows is
    drawn again and again below them."""

    def __init__(self, console: Console, markdown: bool) -> None:
        super().__init__()
        self._console, self._markdown = console, markdown
        self._growing, self._drawn = "", 0.0
        self._live = Live(Text("…"), console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> "_Shown":
        if self._markdown:
            self.enter_context(self._live)
        self.callback(self._finish)
        return self

    def add(self, piece: str) -> None:
        """Show what has come."""
        piece = piece.translate(_NOT_PRINTED)
        if not self._markdown:
            self._console.out(piece, end="", highlight=False)
            return
        self._growing += piece
        whole, self._growing = _whole_blocks(self._growing)
        if whole:
            self._live.update("")
            self._console.print(_Markdown(whole))
            self._console.print()
        if whole or time.monotonic() - self._drawn > _SECONDS_A_FRAME:
            self._live.update(self._end_of(self._growing), refresh=True)
            self._drawn = time.monotonic()

    def _end_of(self, text: str) -> Markdown | Text:
        """As much as the terminal has room for."""
        room = self._console.height - 2
        lines = self._console.render_lines(drawn := _Markdown(text), pad=False)
        if len(lines) <= room:
            return drawn
        return Text("\n".join("".join(segment.text for segment in line) for line in lines[-room:]))

    def _finish(self) -> None:
        if self._markdown:
            self._live.update("", refresh=True)
            self._console.print(_Markdown(self._growing))
        else:
            self._console.print()


def _whole_blocks(text: str) -> tuple[str, str]:
    """Blocks of Markdown that no text to come can change, and the rest: cut at the last empty line outside of code
    behind which a line begins at the margin."""
    cut, end, fence, was_empty = 0, 0, "", False
    for line in text.splitlines(keepends=True):
        mark = line.lstrip()[:3]
        if was_empty and not fence and line[:1].strip():
            cut = end
        if fence and line.strip().strip(fence[0]) == "" and mark == fence:
            fence = ""
        elif not fence and mark in ("```", "~~~"):
            fence = mark
        was_empty, end = not line.strip(), end + len(line)
    return text[:cut], text[cut:]


class _Markdown(Markdown):
    """Of a model: markup and pictures, which rich leaves out or changes, are shown as they are written."""

    def __init__(self, text: str) -> None:
        super().__init__(text, hyperlinks=False, code_theme="ansi_dark")
        for token in (each for block in self.parsed for each in (block, *(block.children or ()))):
            if token.type == "html_block":
                token.type, token.info = "fence", "html"
            elif token.type == "html_inline":
                token.type = "text"
            elif token.type == "image":
                token.type, token.content = "text", f"![{token.content}]({token.attrs.get('src', '')})"
