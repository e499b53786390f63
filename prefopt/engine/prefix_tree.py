"""A prefix tree of texts: what texts have in common, from their start, is one node.

Nodes hold runs of tokens, not single ones, so building a tree costs a few array operations per
text. A run that is shared but short does not become a node: see ``LEAST_SHARED``.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

# Texts of different examples, and some of an example's completions, share what they have in common
# from this many tokens on. One more segment costs as much time as about two tokens of the 17M
# benchmark model.
LEAST_SHARED = 8


@dataclass(eq=False, repr=False, slots=True)
class Node:
    """A run of tokens that follows its parent's.

    Attributes:
        tokens: The run; (n,).
        depth: Tokens before it, from the root on.
        parent: None for the root.
        children: The runs that follow it, in the order in which they were added.
        start: Place of its first token in the row, once it has been placed.
        index: Its number among the segments, once it has been placed.
    """

    tokens: Ints
    depth: int
    parent: "Node | None"
    children: list["Node"] = field(default_factory=list, init=False)
    start: int = field(default=-1, init=False)
    index: int = field(default=-1, init=False)
    _by_start: dict[bytes, "Node"] = field(default_factory=dict, init=False)

    @property
    def end(self) -> int:
        """Tokens from the root to the end of the run."""
        return self.depth + len(self.tokens)

    def path(self) -> list["Node"]:
        """Return the nodes from below the root to this one."""
        nodes: list[Node] = []
        node: Node | None = self
        while node is not None and node.parent is not None:
            nodes.append(node)
            node = node.parent
        return nodes[::-1]

    def walk(self) -> Iterator["Node"]:
        """Yield this node and all below it, each before its children."""
        yield self
        for child in self.children:
            yield from child.walk()

    def add(self, tokens: Ints, least_shared: int = LEAST_SHARED) -> "Node":
        """Add a text (n,) that follows this node; return the node with which it ends.

        Runs that existing nodes hold are shared, if they have at least ``least_shared`` tokens.
        """
        node = self
        while len(tokens):
            child = node._by_start.get(tokens[:least_shared].tobytes())
            if child is None:
                return node._append(tokens, least_shared)
            shared = common_length(child.tokens, tokens)
            node = child if shared == len(child.tokens) else child.split(shared, least_shared)
            tokens = tokens[shared:]
        return node

    def split(self, length: int, least_shared: int = LEAST_SHARED) -> "Node":
        """Cut this node in two and return the new one, which holds its first ``length`` tokens."""
        assert self.parent is not None
        upper = Node(self.tokens[:length], self.depth, self.parent)
        siblings = self.parent.children
        siblings[siblings.index(self)] = upper
        key = self.tokens[:least_shared].tobytes()
        if self.parent._by_start.get(key) is self:
            del self.parent._by_start[key]
            self.parent._register(upper, least_shared)
        self.tokens, self.depth, self.parent = self.tokens[length:], self.depth + length, upper
        upper.children.append(self)
        upper._register(self, least_shared)
        return upper

    def _append(self, tokens: Ints, least_shared: int) -> "Node":
        child = Node(tokens, self.end, self)
        self.children.append(child)
        self._register(child, least_shared)
        return child

    def _register(self, child: "Node", least_shared: int) -> None:
        if len(child.tokens) >= least_shared:
            self._by_start.setdefault(child.tokens[:least_shared].tobytes(), child)


def root() -> Node:
    """Return a tree without texts."""
    return Node(np.zeros(0, dtype=np.int64), 0, None)


def common_length(one: Ints, other: Ints) -> int:
    """Return how many leading tokens two texts have in common.

    >>> common_length(np.array([1, 2, 3]), np.array([1, 2, 4, 5]))
    2
    """
    shared = min(len(one), len(other))
    differs = np.flatnonzero(one[:shared] != other[:shared])
    return int(differs[0]) if differs.size else shared


def common_prefix_length(texts: Sequence[Ints]) -> int:
    """Return how many leading tokens all texts have in common.

    >>> common_prefix_length([np.array([1, 2, 3]), np.array([1, 2]), np.array([1, 2, 4])])
    2
    """
    return min(common_length(texts[0], text) for text in texts)
