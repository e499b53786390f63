"""A model's own forward pass, replaced for a while: what wraps it runs around something else.

Parallel wrappers, FSDP2's hooks and peft's wrapper call ``model.forward``.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def forward_replaced(model: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Inside, ``forward`` is a model's forward pass; afterwards its own is again."""
    own = vars(model).get("forward")  # accelerate patches forward on the instance
    model.forward = forward
    try:
        yield
    finally:
        _set_back(model, own)


@contextmanager
def forward_once(model: nn.Module, compute: Callable[[], Any]) -> Iterator[None]:
    """Inside, a model's next forward pass is ``compute``, whatever it is given.

    ``compute`` may call the model: its own forward pass is back by then.
    """
    own = vars(model).get("forward")

    def forward(*args: Any, **kwargs: Any) -> Any:
        _set_back(model, own)
        return compute()

    with forward_replaced(model, forward):
        yield


def _set_back(model: nn.Module, own: Callable[..., Any] | None) -> None:
    vars(model).pop("forward", None)
    if own is not None:
        model.forward = own
