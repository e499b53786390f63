"""Records of tensors that move between devices as one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

Record = TypeVar("Record", bound="TensorRecord")


@dataclass(frozen=True)
class TensorRecord:
    """Base of frozen dataclasses whose fields are tensors, records, and plain values.

    Torch's data loader pins such a record and accelerate moves it, since both look for these
    methods.

    Examples:
        >>> @dataclass(frozen=True)
        ... class Point(TensorRecord):
        ...     place: Tensor
        ...     name: str
        >>> Point(torch.ones(2), "a").to("meta").place.device.type
        'meta'
    """

    def to(self: Record, device: torch.device | str | int, non_blocking: bool = False) -> Record:
        """Return the same record with all its tensors on a device.

        Args:
            device: Where to.
            non_blocking: Whether copies from pinned memory need not be waited for.
        """
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self: Record) -> Record:
        """Return the same record with its tensors in pinned memory."""
        return self.map(lambda tensor: tensor.pin_memory())

    def map(self: Record, change: Callable[[Tensor], Tensor]) -> Record:
        """Return the record with each of its tensors changed, those of records in it too.

        Args:
            change: Applied to each tensor.
        """
        changed = {item.name: _changed(getattr(self, item.name), change) for item in fields(self)}
        return replace(self, **changed)


def _changed(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, TensorRecord):
        return value.map(change)
    if isinstance(value, Mapping):
        return {name: _changed(item, change) for name, item in value.items()}
    # A tuple holds one kind of things; thousands of plain ones need not be looked at one by one.
    if type(value) is tuple and value and isinstance(value[0], Tensor | TensorRecord | Mapping):
        return tuple(_changed(item, change) for item in value)
    return value
