"""The processes of a run that share work."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Processes:
    """The processes that share work, as one of them sees them.

    Attributes:
        rank: Number of this process.
        count: How many there are.
        gather: Returns an object of every process, in the order of ranks; needed if there are
            several.
        reduce: Returns the sum of a tensor over the processes; needed where ``sum`` is called.
        meet: Returns when every process has called it, however long that takes; None where nothing
            that takes long is shared.
    """

    rank: int = 0
    count: int = 1
    gather: Callable[[Any], Sequence[Any]] | None = None
    reduce: Callable[[Tensor], Tensor] | None = None
    meet: Callable[[], None] | None = None

    def __post_init__(self) -> None:
        if self.count > 1 and self.gather is None:
            raise ValueError(f"{self.count} processes need a way to gather from each other")

    @property
    def is_main(self) -> bool:
        """Whether this is the process that speaks for all."""
        return self.rank == 0

    def all(self, value: Any) -> list[Any]:
        """Return an object of every process, in the order of ranks.

        Every process must call this, in the same order.
        """
        return [value] if self.gather is None else list(self.gather(value))

    def wait(self) -> None:
        """Return when every process has called this: before ``all`` where one may take long."""
        if self.meet is not None:
            self.meet()

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of a tensor, of one shape in all, over all processes.

        Every process must call this.
        """
        return tensor if self.reduce is None else self.reduce(tensor)
