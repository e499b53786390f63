"""Wrong rows of text: columns, cells, labels, ranks, numbers and lengths."""

from collections.abc import Sequence
from typing import Any

from datasets import Dataset, IterableDataset

from prefopt.data import DataError, DataReport, check_kind, prepare_dataset
from tests.bad_input.case import (
    PAIR,
    RANKED,
    UNPAIRED,
    Case,
    all_with,
    byte_tokenizer,
    rows_with,
    without,
)

NAN, INFINITE = float("nan"), float("inf")
Rows = Sequence[dict[str, Any]]
NO_KINDS = "needs True, False, 1 or 0"


def prepare(rows: Rows, **options: Any) -> DataReport:
    report = prepare_dataset(Dataset.from_list(list(rows)), byte_tokenizer(), **options).report
    assert report is not None
    return report


def read_stream(rows: Rows, **options: Any) -> str:
    """Return how many rows come out of a stream, of how many."""
    dataset = IterableDataset.from_generator(lambda: iter(rows))
    prepared = prepare_dataset(dataset, byte_tokenizer(), **options)
    return f"{len(list(prepared.dataset))} of {len(rows)} rows"


def wrong(name: str, rows: Rows, says: str, column: str | None, row: int | None = 0) -> Case:
    """Return the case of rows that are refused."""
    return Case(name, lambda _: prepare(rows), says, DataError, row, column)


def counted(name: str, rows: Rows, says: str, **options: Any) -> Case:
    """Return the case of rows that are used, or set aside, and counted in the report."""
    return Case(name, lambda _: prepare(rows, **options), says, None)


def in_stream(
    name: str,
    rows: Rows,
    says: str,
    column: str | None,
    row: int | None = 0,
    raises: Any = DataError,
    **options: Any,
) -> Case:
    """Return the case of a stream, whose rows need not be what Arrow can hold."""
    return Case(
        f"stream, {name}", lambda _: read_stream(rows, **options), says, raises, row, column
    )


def needs_pairs(kinds: frozenset[str]) -> None:
    check_kind(kinds, {"paired"})


NOT_TEXT: dict[str, Any] = {
    "a number": 5,
    "True": True,
    "NaN": NAN,
    "bytes": b"x",
    "a list of texts": ["x"],
    "an empty list": [],
    "a dictionary without role": {"a": 1},
    "a list of lists": [["x"]],
}

COLUMNS = [
    wrong("no 'prompt'", without(PAIR, "prompt"), "does not show where the prompt ends", "prompt"),
    *(
        wrong(f"no {column!r}", without(PAIR, column), "no such column", column)
        for column in ("chosen", "rejected")
    ),
    wrong("no 'completion'", without(UNPAIRED, "completion"), "do not hold preferences; use", None),
    wrong("no 'label'", without(UNPAIRED, "label"), f"no such column; .*{NO_KINDS}", "label"),
    wrong("no 'completions'", without(RANKED, "completions"), "do not hold preferences; use", None),
    wrong("no 'ranks'", without(RANKED, "ranks"), "no such column; .* 'scores'", "ranks"),
    *(
        wrong(
            f"'chosen' is called {name!r}",
            [{"prompt": "p", name: " a", "rejected": " b"}],
            "no such column; a pair needs",
            "chosen",
        )
        for name in ("Chosen", "choosen", "chosen_response", "accepted", "winner", "output")
    ),
    *(
        wrong(
            f"'rejected' is called {name!r}",
            [{"prompt": "p", "chosen": " a", name: " b"}],
            "no such column; a pair needs",
            "rejected",
        )
        for name in ("Rejected", "rejeted", "loser", "negative")
    ),
    *(
        wrong(
            f"'label' is called {name!r}",
            [{"prompt": "p", "completion": " a", name: True}],
            "no such column; an unpaired row needs",
            "label",
        )
        for name in ("Label", "labels", "desirable_", "thumbs")
    ),
    wrong(
        "all columns in capitals",
        [{"Prompt": "p", "Chosen": " a", "Rejected": " b"}],
        "Chosen, Prompt, Rejected do not hold preferences",
        None,
    ),
    wrong("one column of text", [{"text": "a"}], "the columns text do not hold preferences", None),
    wrong("pairs and unpaired", all_with(PAIR, **UNPAIRED), "paired .* and unpaired", None),
    wrong("pairs and rankings", all_with(PAIR, **RANKED), "paired .* and ranked", None),
    wrong(
        "a name of prepared data",
        all_with(PAIR, kind="good"),
        "rename yours",
        "kind",
        None,
    ),
    wrong("a name used within", all_with(PAIR, _reason="x"), "rename yours", "_reason", None),
    wrong("no rows", [], "has no rows", None, None),
    wrong("system beside plain text", all_with(PAIR, system="Be kind."), "goes with me", "system"),
    wrong(
        "template arguments beside plain text",
        all_with(PAIR, chat_template_kwargs={"a": 1}),
        "needs messages",
        "chat_template_kwargs",
    ),
]

CELLS = [
    *(
        wrong(f"{kind}: {column} null", rows_with(row, **{column: None}), "is null", column, 1)
        for kind, row, columns in (
            ("pairs", PAIR, PAIR),
            ("unpaired", UNPAIRED, UNPAIRED),
            ("rankings", RANKED, ["prompt", "completions"]),
        )
        for column in columns
    ),
    wrong("prompt null everywhere", all_with(PAIR, prompt=None), "is null", "prompt"),
    wrong("chosen null everywhere", all_with(PAIR, chosen=None), "is null", "chosen"),
    *(
        wrong(f"prompt is {name}", all_with(PAIR, prompt=value), "text|role|message", "prompt")
        for name, value in NOT_TEXT.items()
    ),
    *(
        wrong(
            f"completion is {name}",
            all_with(UNPAIRED, completion=value),
            "text|role|message",
            "completion",
        )
        for name, value in NOT_TEXT.items()
    ),
    *(
        wrong(
            f"rejected is {name}",
            all_with(PAIR, rejected=value),
            "needs text or a list of messages|where another completion is text",
            "rejected",
        )
        for name, value in NOT_TEXT.items()
    ),
    *(
        in_stream(
            f"chosen is {name} in one row",
            rows_with(PAIR, chosen=value),
            "needs text|text",
            "chosen",
            1,
        )
        for name, value in NOT_TEXT.items()
    ),
    in_stream("a surrogate", rows_with(PAIR, prompt="x\ud800"), "no valid text", "prompt", 1),
    in_stream(
        "a surrogate in an answer", rows_with(PAIR, chosen="\udfff"), "no valid", "chosen", 1
    ),
    wrong("completions is text", all_with(RANKED, completions=" a"), "needs a list", "completions"),
    wrong("completions empty", all_with(RANKED, completions=[]), "an empty list", "completions"),
    wrong(
        "a null completion",
        all_with(RANKED, completions=[" a", None, " c"]),
        "completion 1 is null",
        "completions",
    ),
    wrong(
        "completions are numbers",
        all_with(RANKED, completions=[1, 2, 3]),
        "needs text",
        "completions",
    ),
    wrong(
        "completions are lists of text",
        all_with(RANKED, completions=[[" a"], [" b"], [" c"]]),
        "message 0 is a str",
        "completions",
    ),
]

LABELS = [
    *(
        wrong(f"label {value!r}", all_with(UNPAIRED, label=value), NO_KINDS, "label")
        for value in ("yes", "True", "1", "chosen", 2, -1, 0.5, NAN, INFINITE, None, [True])
    ),
    in_stream("a label of text", rows_with(UNPAIRED, label="1"), NO_KINDS, "label", 1),
    *(
        wrong(f"ranks {value!r}", all_with(RANKED, ranks=value), says, "ranks")
        for value, says in (
            ([0, 1], "needs a list of 3 numbers.* got 2"),
            ([0, 1, 2, 3], "needs a list of 3 numbers.* got 4"),
            ([], "needs a list of 3 numbers.* got 0"),
            ([0.0, 1.0, NAN], "number 2 is nan"),
            ([INFINITE, 0.0, 1.0], "number 0 is inf"),
            ([0, 1, None], "number 2 is None"),
            (["a", "b", "c"], "number 0 is 'a'"),
            ([True, False, True], "number 0 is True"),
            ([[0], [1], [2]], "number 0 is"),
            (5, "needs a list of 3 numbers.* got int"),
            ("012", "needs a list of 3 numbers.* got str"),
        )
    ),
    *(
        wrong(f"scores {value!r}", all_with(RANKED, ranks=None, scores=value), says, "scores")
        for value, says in (
            ([1.0, 2.0], "needs a list of 3 numbers.* got 2"),
            ([1.0, NAN, 2.0], "number 1 is nan"),
            ([1.0, None, 2.0], "number 1 is None"),
            (["1", "2", "3"], "number 0 is '1'"),
            (4.5, "needs a list of 3 numbers.* got float"),
        )
    ),
]

NUMBERS = [
    *(
        wrong(
            f"{column} {value!r}",
            rows_with(PAIR | {column: 0.5}, **{column: value}),
            says,
            column,
            1,
        )
        for column, values, says in (
            ("weight", (-1.0, NAN, INFINITE, 1e300), "it must be a number of at least 0, finite"),
            ("margin", (NAN, -INFINITE, 1e39), "it must be a number, finite"),
            ("score_chosen", (NAN, 1e308), "it must be a number, finite"),
            ("preference_probability", (-0.1, 1.5, 50.0, NAN), "a number between 0 and 1"),
        )
        for value in values
    ),
    *(
        wrong(
            f"{column} of the type of {value!r}",
            all_with(PAIR, **{column: value}),
            "must be a number",
            column,
        )
        for column in ("weight", "margin", "preference_probability")
        for value in ("1", True, [1.0])
    ),
    wrong(
        "a win rate of one side",
        all_with(PAIR, win_rate_chosen=0.5),
        "come in pairs",
        "win_rate_chosen",
        None,
    ),
    wrong("every weight 0", all_with(PAIR, weight=0.0), "every weight is 0", "weight", None),
    *(
        in_stream(
            f"{column} {value!r}",
            rows_with(PAIR | {column: 0.5}, **{column: value}),
            says,
            column,
            1,
        )
        for column, value, says in (
            ("weight", NAN, "at least 0"),
            ("weight", "1", "at least 0"),
            ("margin", -INFINITE, "it must be a number"),
            ("preference_probability", 7, "between 0 and 1"),
        )
    ),
    counted(
        "scores against the preference",
        rows_with(PAIR | {"score_chosen": 3.0, "score_rejected": 2.0}, score_chosen=1.0),
        "1 row: the rejected completion has the higher score: 1.0 and 2.0 .row 1",
    ),
    counted(
        "win rates against the preference",
        all_with(PAIR, win_rate_chosen=0.1, win_rate_rejected=0.9),
        "3 rows: the rejected completion has the higher win_rate",
    ),
    counted(
        "a negative margin",
        rows_with(PAIR | {"margin": 1.0}, margin=-2.0),
        "1 row: the margin is negative: -2.0 .row 1",
    ),
    counted(
        "scores against ranks",
        all_with(RANKED, scores=[1.0, 2.0, 3.0]),
        "3 rows: scores and ranks contradict each other",
    ),
    in_stream(
        "a weight of -1 behind the first rows",
        [PAIR] * 150 + all_with(PAIR, weight=-1.0),
        "is -1.0; it must be",
        "weight",
        150,
    ),
]

LENGTHS = [
    counted(
        "a prompt too long",
        rows_with(PAIR, prompt="p" * 90),
        "set aside +1: .*room .*row 1",
        max_length=20,
    ),
    counted(
        "a prompt of just max_length",
        rows_with(PAIR, prompt="p" * 20),
        "set aside +1: .*room .*row 1",
        max_length=20,
    ),
    counted(
        "a long completion",
        rows_with(PAIR, chosen="a" * 90),
        "cut  .*1 completion of 1 row",
        max_length=20,
    ),
    counted(
        "completions alike when cut",
        rows_with(PAIR, chosen="a" * 90 + "x", rejected="a" * 90 + "y"),
        "1 after the cut with two comp",
        max_length=20,
    ),
    counted("chosen equal to rejected", rows_with(PAIR, rejected=" Yes."), "identical  .*1 row"),
    counted("chosen equal to rejected everywhere", all_with(PAIR, rejected=" Yes."), "3 rows with"),
    counted("an empty chosen", rows_with(PAIR, chosen=""), "empty +1 row with a comp"),
    counted("an empty rejected", rows_with(PAIR, rejected=""), "empty +1 row with a comp"),
    counted("an empty completion", rows_with(UNPAIRED, completion=""), "empty +1 row with a comp"),
    counted(
        "an empty completion of many",
        all_with(RANKED, completions=[" a", "", " c"]),
        "empty +3 rows with a comp",
    ),
    counted(
        "a blank completion", rows_with(UNPAIRED, completion=" \n"), "empty +1 row with a comp"
    ),
    counted(
        "two equal completions of many",
        all_with(RANKED, completions=[" a", " a", " c"]),
        "identical  .*3 rows",
    ),
    counted("all of one rank", [RANKED | {"ranks": [0, 0, 0]}, RANKED], "1: .* share one rank"),
    counted(
        "one completion",
        [RANKED, RANKED | {"completions": [" a"], "ranks": [0]}],
        "set aside +1: one completion is no ranking .row 1",
    ),
    counted("labels of one kind", [UNPAIRED] * 4, "labels  .*4 desirable, 0 undesirable"),
    counted(
        "labels out of balance",
        [UNPAIRED] * 4 + [UNPAIRED | {"label": False}],
        "for kto, undesirable_weight .* would balance",
    ),
    Case("no row with room", lambda _: prepare([PAIR] * 3, max_length=2), "no row is left .3 rows"),
    Case(
        "no ranking with two ranks",
        lambda _: prepare(all_with(RANKED, ranks=[1, 1, 1])),
        "no row is left .3 rows: all completions share one rank",
    ),
    in_stream(
        "a prompt too long",
        rows_with(PAIR, prompt="p" * 90),
        r"(?s)row 1 is set aside: .*2 of 3 rows",
        None,
        None,
        None,
        max_length=20,
    ),
    in_stream(
        "another kind later",
        [PAIR] * 20 + [UNPAIRED],
        "some of the data is unpaired, but the loss needs",
        None,
        20,
        check_kinds=needs_pairs,
    ),
]

OPTIONS = [
    Case(
        f"{name}={value!r}",
        lambda _, name=name, value=value: prepare([PAIR], **{name: value}),
        f"{name} must be a whole number of at least",
        ValueError,
    )
    for name, values in {
        "max_length": (0, -1, NAN, "20", 2.5, True),
        "batch_size": (0, "8", 1.5),
        "num_proc": (-1, "2", 0.5),
    }.items()
    for value in values
]

CASES = [*COLUMNS, *CELLS, *LABELS, *NUMBERS, *LENGTHS, *OPTIONS]
