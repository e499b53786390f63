"""Useful floating-point operations of an optimiser step: each distinct token once, nothing twice.

Within an example (a prompt and everything scored after it) the texts are put into one tree, so that
what they have in common stands there once. With

- T: the nodes that predict something, i.e. all but the last token of each text,
- S: the keys these nodes see, summed; a node at depth k sees k,
- M: the distinct predictions of completion tokens,

a forward pass takes, 2 operations a multiplication and addition,

    2 * (weights of the linear layers) * T          projections and MLPs, the LM head not among them
    + 4 * layers * (query heads * head width) * S   queries times keys, weights times values
    + 2 * hidden * vocabulary * M                   the LM head, where something is predicted

and a backward pass twice that: together 6, 12 and 6. KTO's mismatched completions need a forward
pass only (2, 4 and 2), and only for nodes that the pair itself does not have: their prompt is
there. Norms, activations, softmax, rotary positions, the embedding lookup, the optimiser, and
whatever is computed twice (a prompt per completion, padding, activations or logits again in the
backward pass) count nothing.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from throughput_models import Shape


class Texts(NamedTuple):
    """A prompt and what is scored after it, as token ids.

    Attributes:
        prompt: Tokens of the prompt.
        completions: Those that are trained on.
        mismatched: Those that are only scored.
    """

    prompt: Sequence[int]
    completions: Sequence[Sequence[int]]
    mismatched: Sequence[Sequence[int]] = ()


class Work(NamedTuple):
    """What forward passes must compute.

    Attributes:
        tokens: T of the module's docstring.
        keys: S.
        predictions: M.
    """

    tokens: int = 0
    keys: int = 0
    predictions: int = 0

    def plus(self, other: "Work") -> "Work":
        """Return the sum of both."""
        return Work(*(a + b for a, b in zip(self, other, strict=True)))


def useful_work(examples: Iterable[Texts]) -> tuple[Work, Work]:
    """Return what is trained on, and what is scored besides without a backward pass."""
    trained, scored = Work(), Work()
    for example in examples:
        tree = _Tree(example.prompt)
        trained = trained.plus(tree.grow(example.completions))
        scored = scored.plus(tree.grow(example.mismatched))
    return trained, scored


class _Tree:
    """The distinct beginnings of texts with one prompt."""

    def __init__(self, prompt: Sequence[int]) -> None:
        self.prompt = prompt
        self.children: dict[tuple[int, int], int] = {}
        self.computed: set[int] = set()
        self.predicted: set[int] = set()

    def grow(self, completions: Iterable[Sequence[int]]) -> Work:
        """Add texts and return what they need that was not there."""
        tokens = keys = predictions = 0
        for completion in completions:
            node = 0
            text = [*self.prompt, *completion]
            for depth, token in enumerate(text, 1):
                node = self.children.setdefault((node, token), len(self.children) + 1)
                if depth < len(text) and node not in self.computed:
                    self.computed.add(node)
                    tokens, keys = tokens + 1, keys + depth
                if depth > max(len(self.prompt), 1) and node not in self.predicted:
                    self.predicted.add(node)
                    predictions += 1
        return Work(tokens, keys, predictions)


def forward_flops(shape: Shape, work: Work) -> int:
    """Return the operations of a forward pass."""
    return (
        2 * shape.linear * work.tokens
        + 4 * shape.layers * shape.attention * work.keys
        + 2 * shape.hidden * shape.vocabulary * work.predictions
    )


def step_flops(shape: Shape, trained: Work, scored: Work) -> int:
    """Return the useful operations of an optimiser step."""
    return 3 * forward_flops(shape, trained) + forward_flops(shape, scored)
