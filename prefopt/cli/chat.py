"""``prefopt chat``: talk to a model, beside another model."""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from prefopt.cli.errors import UserError, user_errors
from prefopt.cli.inference import (
    add_model_options,
    add_sampling_options,
    check_number,
    model_options,
)

_EPILOG = """\
  prefopt chat aligned
  prefopt chat aligned --compare start --prompt "Why is the sky blue?"

Type /new for another conversation, /exit to leave; Ctrl-C stops an answer. Where the input is no
terminal, each of its lines is what the user says next.
"""
_SETTINGS = ("temperature", "top_p", "top_k", "max_new_tokens", "seed")


@dataclass
class Speaker:
    """A model, and the conversation as it has it.

    Attributes:
        name: Its folder or id.
        model: The model.
        tokenizer: Its tokenizer.
        system: What a system message says before each conversation; None for no such message.
        turns: The messages so far.
    """

    name: str
    model: Any
    tokenizer: Any
    system: str | None = None
    turns: list[dict[str, str]] = field(default_factory=list)

    @property
    def chats(self) -> bool:
        """Whether its tokenizer has a chat template."""
        return bool(getattr(self.tokenizer, "chat_template", None))

    def begin(self) -> None:
        """Forget the conversation."""
        self.turns = [{"role": "system", "content": self.system}] if self.system else []

    def answer(self, said: str, number: int, tell: Callable[[str], None], **settings: Any) -> Any:
        """Return the answer (a ``Generation``) to what a user says, told while it is written.

        A model without a chat template goes on with the text, whatever was said before. An answer
        that fails or is stopped leaves the conversation as it was.
        """
        from prefopt.evaluation.generation import stream

        turns = [*self.turns, {"role": "user", "content": said}]
        prompt = turns if self.chats else said
        made = stream(self.model, self.tokenizer, prompt, tell, number=number, **settings)
        if self.chats:
            self.turns = [*turns, {"role": "assistant", "content": made.text}]
        return made


def main(argv: Sequence[str]) -> int:
    """Load one model or two, and answer until there is nothing more to answer; return 0."""
    options = make_parser().parse_args(list(argv))
    check_number(options, 1, "max_new_tokens")
    check_number(options, 0, "seed", "top_k")
    if options.compare == options.model:
        raise UserError("--compare names the same model; name another, such as the start")
    with user_errors():
        names = filter(None, (options.model, options.compare))
        speakers = [_load(name, options) for name in names]
        _converse(speakers, options)
    return 0


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    parser = argparse.ArgumentParser(
        prog="prefopt chat",
        description="Talk to a model or an adapter, beside another model if one is named. What is "
        "said is rendered by the model's own chat template; answers are drawn from its own "
        "distribution, whatever its generation_config.json asks for.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="folder or Hub id of a model or an adapter")
    parser.add_argument(
        "--compare", metavar="MODEL", help="a second model that answers too, such as the start"
    )
    parser.add_argument("--prompt", metavar="TEXT", help="ask this alone, print the answer, end")
    parser.add_argument("--system", metavar="TEXT", help="what a system message says")
    add_sampling_options(parser, max_new_tokens=512)
    add_model_options(parser)
    return parser


def _load(name: str, options: argparse.Namespace) -> Speaker:
    """Return a model that is ready to talk.

    Raises:
        UserError: If a system message is asked for, and it has no chat template.
    """
    from prefopt.evaluation.loading import load_for_inference

    speaker = Speaker(name, *load_for_inference(name, model_options(options)), options.system)
    if options.system and not speaker.chats:
        raise UserError(f"--system: the tokenizer of {name} has no chat template")
    if not speaker.chats:
        print(f"prefopt: {name} has no chat template: it goes on with your text", file=sys.stderr)
    speaker.begin()
    return speaker


def _converse(speakers: Sequence[Speaker], options: argparse.Namespace) -> None:
    """Have all answer each thing that is said; what some could not answer is forgotten."""
    settings = {name: getattr(options, name) for name in _SETTINGS}
    beside = len(speakers) > 1 and sys.stdout.isatty()
    show = _side_by_side if beside else _one_by_one
    alone = options.prompt is not None or not sys.stdin.isatty()
    for number, said in enumerate(_sayings(speakers, options.prompt)):
        before = [speaker.turns for speaker in speakers]
        try:
            show(speakers, said, number, settings)
        except (KeyboardInterrupt, ValueError) as stopped:
            if alone:
                raise
            for speaker, turns in zip(speakers, before, strict=True):
                speaker.turns = turns
            why = str(stopped) or "stopped"
            print(f"\n({why}; the question is forgotten, /new begins another conversation)")


def _sayings(speakers: Sequence[Speaker], prompt: str | None) -> Iterator[str]:
    """Yield what the user says: one prompt, lines of a file, or what is typed."""
    if prompt is not None:
        yield prompt
        return
    typed = sys.stdin.isatty()
    if typed:
        _remember_lines()
        print("/new begins another conversation, /exit leaves; Ctrl-C stops an answer.")
    while True:
        try:
            said = input("\n> " if typed else "").strip()
        except (EOFError, KeyboardInterrupt):
            return
        if said in ("/exit", "/quit"):
            return
        if said == "/new":
            for speaker in speakers:
                speaker.begin()
        elif said:
            if not typed:
                print(f"> {said}")
            yield said


def _remember_lines() -> None:
    """Let the arrow keys bring back what was typed before, where Python can."""
    try:
        import readline  # noqa: F401 # importing it is all that it takes
    except ImportError:
        return


def _one_by_one(
    speakers: Sequence[Speaker], said: str, number: int, settings: dict[str, Any]
) -> None:
    """Print answers one below the other, word by word."""
    for speaker in speakers:
        if len(speakers) > 1:
            print(f"--- {speaker.name} ---")
        made = speaker.answer(said, number, _print_piece, **settings)
        print(f"\n[cut after {made.tokens} tokens]" if made.truncated else "", flush=True)


def _print_piece(text: str) -> None:
    print(text, end="", flush=True)


def _side_by_side(
    speakers: Sequence[Speaker], said: str, number: int, settings: dict[str, Any]
) -> None:
    """Show answers in columns that grow word by word, the left one first."""
    texts = {speaker.name: "" for speaker in speakers}
    with _columns(texts) as refresh:
        for speaker in speakers:

            def tell(text: str, name: str = speaker.name) -> None:
                texts[name] += text
                refresh()

            made = speaker.answer(said, number, tell, **settings)
            if made.truncated:
                tell(f"\n[cut after {made.tokens} tokens]")


@contextmanager
def _columns(texts: dict[str, str]) -> Iterator[Callable[[], None]]:
    """Show texts in columns under their names; what is yielded shows how they are now."""
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    def table() -> Table:
        shown = Table(*texts, expand=True)
        shown.add_row(*(Text(text) for text in texts.values()))
        return shown

    console = Console(highlight=False, markup=False, emoji=False)
    with Live(table(), console=console, refresh_per_second=8, vertical_overflow="visible") as live:
        yield lambda: live.update(table())
