"""Wrong rows of token ids and of messages."""

from typing import Any

from tests.bad_input.case import IDS, TALK, UNPAIRED, Case, all_with, rows_with, without
from tests.bad_input.rows import counted, in_stream, prepare, wrong

NAN = float("nan")


def of_list(**cells: Any) -> list[dict[str, Any]]:
    """Return rows of token ids with completions in one column."""
    return [{"prompt_ids": [5], "completion_ids": [[6], [7]], **cells}] * 3


def of_one(**cells: Any) -> list[dict[str, Any]]:
    """Return rows of token ids with one completion."""
    return [{"prompt_ids": [5], "completion_ids": [[6, 7]], "kind": "unpaired", **cells}] * 3


IDS_CASES = [
    *(
        wrong(
            f"{column} {ids!r}",
            rows_with(IDS, **{column: ids}),
            "it needs a whole number from 0",
            column,
            1,
        )
        for column in ("prompt_ids", "rejected_ids")
        for ids in ([2, None], [2, -1], [2, 2**31], [2, 2**40])
    ),
    *(
        wrong(f"{column} of the type of {ids!r}", all_with(IDS, **{column: ids}), says, column)
        for column in ("prompt_ids", "chosen_ids")
        for ids, says in (
            ([2.5], "token 0 is 2.5"),
            ([NAN], "token 0 is nan"),
            ([True], "token 0 is True"),
            (["a"], "token 0 is 'a'"),
            ([[1]], r"token 0 is \[1\]"),
            ("23", "needs a list of token ids, got str"),
            (7, "needs a list of token ids, got int"),
            (None, "is null"),
        )
    ),
    *(
        Case(
            f"{column} beyond the vocabulary",
            lambda _, column=column: prepare(rows_with(IDS, **{column: [5, 300]}), vocabulary=300),
            "token 1 is 300; it needs a whole number from 0 to 299",
            row=1,
            column=column,
        )
        for column in ("prompt_ids", "chosen_ids")
    ),
    in_stream(
        "ids beyond the vocabulary",
        [IDS] * 12 + [IDS | {"chosen_ids": [300]}],
        "token 0 is 300",
        "chosen_ids",
        12,
        vocabulary=300,
    ),
    in_stream(
        "ids of several types",
        rows_with(IDS, chosen_ids=[2, "a"]),
        "token 1 is 'a'",
        "chosen_ids",
        1,
    ),
    in_stream(
        "ids of several lengths",
        rows_with(IDS, chosen_ids=[2, [3, 4]]),
        "token 1 is",
        "chosen_ids",
        1,
    ),
    wrong("no prompt_ids", without(IDS, "prompt_ids"), "no such column", "prompt_ids"),
    wrong("no rejected_ids", without(IDS, "rejected_ids"), "no such column", "rejected_ids"),
    wrong("no tokens", rows_with(IDS, chosen_ids=[]), "is empty", "chosen_ids", 1),
    wrong(
        "a short mask",
        all_with(IDS, chosen_mask=[1], rejected_mask=[1]),
        "needs 2 values",
        "chosen_mask",
    ),
    wrong("one mask", all_with(IDS, chosen_mask=[1, 1]), "both completions", "rejected_mask"),
    wrong(
        "a mask with 2",
        all_with(IDS, chosen_mask=[1, 2], rejected_mask=[1]),
        "value 1 is 2",
        "chosen_mask",
    ),
    wrong(
        "a mask with null",
        all_with(IDS, chosen_mask=[1, None], rejected_mask=[1]),
        "value 1 is None",
        "chosen_mask",
    ),
    wrong(
        "a mask of text",
        all_with(IDS, chosen_mask="11", rejected_mask="1"),
        "needs 2 values",
        "chosen_mask",
    ),
    counted(
        "a mask of nothing",
        rows_with(IDS | {"chosen_mask": [1, 1], "rejected_mask": [1]}, chosen_mask=[0, 0]),
        "set aside +1: a completion has no token that counts .row 1",
    ),
    wrong("which is better is not said", of_list(), "does not say which", "completion_ids"),
    wrong("an unknown kind", of_list(kind="pair"), "needs 'paired', 'unpaired'", "kind"),
    wrong(
        "a pair of three",
        of_list(kind="paired", completion_ids=[[6], [7], [8]]),
        "a pair has 2 completions, got 3",
        "completion_ids",
    ),
    wrong(
        "a pair, the second preferred",
        of_list(kind="paired", desirable=[False, True]),
        "a pair's is .True, False.",
        "desirable",
    ),
    wrong(
        "a pair with ranks turned round",
        of_list(kind="paired", ranks=[1, 0]),
        "a pair's is .0, 1.",
        "ranks",
    ),
    wrong(
        "one completion of two lists",
        of_list(kind="unpaired"),
        "has 1 completion, got 2",
        "completion_ids",
    ),
    wrong("no label of ids", of_one(), "no such column", "label"),
    wrong("a label of text beside ids", of_one(label="good"), "needs True", "label"),
    *(
        wrong(
            f"desirable [{value!r}]", of_one(desirable=[value]), "needs True or False", "desirable"
        )
        for value in ("x", None, 2)
    ),
    wrong(
        "too few mismatched",
        of_list(kind="paired", kl_completion_ids=[[5]]),
        "needs 2 lists",
        "kl_completion_ids",
    ),
    wrong("short ranks of ids", of_list(kind="ranked", ranks=[0]), "2 numbers", "ranks"),
    wrong(
        "an empty completion of ids",
        of_list(ranks=[0, 1], completion_ids=[[6], []]),
        "is empty",
        "completion_ids",
    ),
]

WRONG_MESSAGES: dict[str, tuple[Any, str]] = {
    "without role": ([{"content": "x"}], "message 0 has no role"),
    "with role null": ([{"role": None, "content": "x"}], "message 0 has no role"),
    "with a number for a role": ([{"role": 5, "content": "x"}], "role"),
    "without content": ([{"role": "user"}], "message 0 has content of type null"),
    "with content null": (
        [{"role": "user", "content": None}],
        "message 0 has content of type null",
    ),
    "with a number for content": ([{"role": "user", "content": 5}], "content of type int"),
    "with a list of text": ([{"role": "user", "content": ["x"]}], "content of type list"),
    "with an image": (
        [{"role": "user", "content": [{"type": "image", "url": "x"}]}],
        "images|image",
    ),
    "with a part without text": ([{"role": "user", "content": [{"type": "text"}]}], "content"),
    "with a part whose text is null": (
        [{"role": "user", "content": [{"type": "text", "text": None}]}],
        "content",
    ),
    "from nobody known": ([{"from": "narrator", "value": "x"}], "'narrator'"),
    "from someone without value": ([{"from": "human"}], "content of type null"),
    "under other keys": ([{"speaker": "user", "text": "x"}], "message 0 has no role"),
    "of text": (["hello"], "message 0 is a str"),
    "of null": ([None], "message 0 is a NoneType"),
    "of lists": ([[{"role": "user", "content": "x"}]], "message 0 is a list"),
    "none at all": ([], "holds no messages"),
}

TALK_CASES = [
    *(
        wrong(f"messages {name} in {column}", all_with(TALK, **{column: value}), says, column)
        for column in ("prompt", "chosen")
        for name, (value, says) in WRONG_MESSAGES.items()
    ),
    *(
        in_stream(
            f"messages {name} in one row", rows_with(TALK, rejected=value), says, "rejected", 1
        )
        for name, (value, says) in WRONG_MESSAGES.items()
    ),
    wrong(
        "text beside messages", all_with(TALK, chosen="x"), "another completion is text", "rejected"
    ),
    counted(
        "messages with an empty answer",
        rows_with(TALK, chosen=[{"role": "assistant", "content": ""}]),
        "empty +1 row with a comp",
    ),
    counted(
        "messages that are equal", rows_with(TALK, rejected=TALK["chosen"]), "identical .*1 row"
    ),
    wrong("tools of broken JSON", all_with(TALK, tools="{"), "no valid JSON", "tools"),
    wrong("tools that are a number", all_with(TALK, tools=5), "needs a list of tool", "tools"),
    wrong("tools that are a dictionary", all_with(TALK, tools={"a": 1}), "needs a list", "tools"),
    wrong(
        "template arguments of broken JSON",
        all_with(TALK, chat_template_kwargs="[1"),
        "no valid JSON",
        "chat_template_kwargs",
    ),
    wrong(
        "template arguments in a list",
        all_with(TALK, chat_template_kwargs=[1]),
        "needs a dictionary",
        "chat_template_kwargs",
    ),
    *(
        wrong(
            f"template argument {name!r}",
            all_with(TALK, chat_template_kwargs={name: value}),
            f"'{name}' is set here",
            "chat_template_kwargs",
        )
        for name, value in (
            ("tokenize", True),
            ("add_generation_prompt", False),
            ("return_tensors", "pt"),
            ("truncation", True),
            ("max_length", 5),
            ("padding", True),
            ("conversation", "x"),
        )
    ),
    wrong("system that is a number", all_with(TALK, system=5), "needs text", "system"),
    wrong(
        "a label without messages",
        [{"prompt": "p", "label": True}],
        "do not hold preferences",
        None,
    ),
    wrong(
        "a conversation that ends with the user",
        [
            {
                "messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
                "label": True,
            }
        ],
        "does not end with what the assistant says",
        "messages",
    ),
    wrong(
        "a completion of messages without prompt",
        [{"completion": TALK["chosen"], "label": True}],
        "is missing",
        "prompt",
    ),
    wrong(
        "an unpaired null in messages",
        [UNPAIRED, {"prompt": "p", "completion": None, "label": True}],
        "is null",
        "completion",
        1,
    ),
]

CASES = [*IDS_CASES, *TALK_CASES]
