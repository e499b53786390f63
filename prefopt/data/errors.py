"""The error that wrong preference data raises: what is wrong, where, and what would be right."""

__all__ = ["DataError"]

LONGEST = 450  # characters


class DataError(ValueError):
    """Invalid preference data.

    Attributes:
        problem: What is wrong, and what would be right.
        row: Number of the row in the data set, from 0; None if no single row is at fault.
        column: Name of the column; None if no single column is at fault.
        dataset: What the data set is called, as ``train``; None if it is not known.

    Examples:
        >>> print(DataError("is null; it needs text", row=3, column="chosen", dataset="train"))
        train data, row 3, column 'chosen': is null; it needs text
    """

    def __init__(
        self,
        problem: str,
        row: int | None = None,
        column: str | None = None,
        dataset: str | None = None,
    ) -> None:
        # All four are positional arguments of the exception, so that it survives being pickled by
        # the worker process that met it.
        if problem.startswith("Caught DataError in DataLoader worker"):
            # Torch raises it anew with the worker's traceback, which ends in what it said.
            problem = problem.rstrip().rpartition("DataError: ")[2]
        if len(problem) > LONGEST:  # it quotes what it found, which may be a whole answer
            problem = f"{problem[: LONGEST // 2]} [...] {problem[-LONGEST // 2 :]}"
        super().__init__(problem, row, column, dataset)
        self.problem = problem
        self.row = row
        self.column = column
        self.dataset = dataset

    def __str__(self) -> str:
        place = [f"{self.dataset} data"] if self.dataset else []
        place += [f"row {self.row}"] if self.row is not None else []
        place += [f"column {self.column!r}"] if self.column is not None else []
        return f"{', '.join(place)}: {self.problem}" if place else self.problem

    def within(self, dataset: str) -> "DataError":
        """Return the same error, with the name of the data set."""
        return DataError(self.problem, self.row, self.column, self.dataset or dataset)
