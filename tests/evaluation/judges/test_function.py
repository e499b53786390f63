"""Functions as judges: found by file or module, called as they are written."""

import pytest

from prefopt.evaluation.judges import (
    FunctionJudge,
    PairFunctionJudge,
    function_judge,
    judged,
    load_function,
)

USER = [{"role": "user", "content": "Hi"}]
FUNCTIONS = """
from dataclasses import dataclass


@dataclass
class Settings:
    scale: int = 2


def lists(prompts, completions, **others):
    return [Settings().scale * len(c) + len(p) for p, c in zip(prompts, completions)]


def of_completions(completions, **others):
    return [len(c) for c in completions]


def singly(prompt, completion):
    return len(completion) + len(prompt)


def unnamed(a, b):
    return [len(y) for x, y in zip(a, b)]


def anything(**given):
    return [len(c) for c in given["completions"]]


def prefer(prompts, first, second):
    return [float(len(a) > len(b)) for a, b in zip(first, second)]


def prefer_one(prompt, first, second):
    return None if first == second else float(len(first) > len(second))


def wrong(prompts, completions):
    return [float("nan") for _ in completions]


def short(prompts, completions):
    return [1.0]


value = 3
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("functions") / "my_functions.py"
    path.write_text(FUNCTIONS)
    return path


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lists", [4 + 2, 2 + 8]),
        ("of_completions", [2, 1]),
        ("singly", [4, 9]),
        ("unnamed", [2, 1]),
        ("anything", [2, 1]),
    ],
)
def test_scores_however_the_function_takes_them(file, name, expected):
    judge = function_judge(f"{file}:{name}")
    assert isinstance(judge, FunctionJudge)
    assert judge.name == f"{file}:{name}"
    # A conversation is handed on as its lines: "user: Hi".
    assert judge.scores(["ab", USER], ["xx", "y"]) == expected


def test_functions_that_compare(file):
    for name, tie in (("prefer", 0.0), ("prefer_one", None)):
        judge = function_judge(f"{file}:{name}")
        assert isinstance(judge, PairFunctionJudge)
        assert judge.preferences(["p"] * 3, ["aa", "b", "c"], ["a", "bb", "c"]) == [1.0, 0.0, tie]
    found = judged(judge, ["p"] * 2, ["aa", "b"], ["a", "b"])
    assert (found.preferences, found.without_verdict) == ((1.0, None), 1)


def test_functions_of_modules_and_of_c():
    judge = function_judge("tests.evaluation.judges.test_function:for_tests")
    assert judge.scores(["a"], ["bc"]) == [2.0]
    assert load_function("math:hypot")(3, 4) == 5


def for_tests(prompts, completions):
    return [len(text) for text in completions]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_functions.py", "names no function"),
        ("nowhere.py:f", "there is no file nowhere.py"),
        ("no.such.module:f", "there is no module no.such.module"),
        ("FILE:missing", "no function 'missing'; it has .*singly"),
        ("FILE:value", "no function 'value'"),
    ],
)
def test_what_is_not_there_is_an_error(file, name, message):
    with pytest.raises(ValueError, match=message):
        function_judge(name.replace("FILE", str(file)))


def test_a_file_that_cannot_be_run_is_an_error(tmp_path):
    (tmp_path / "broken_file.py").write_text("import no_such_package")
    with pytest.raises(ValueError, match="cannot be run: ModuleNotFoundError"):
        load_function(f"{tmp_path}/broken_file.py:f")


def test_scores_must_be_finite_and_complete(file):
    with pytest.raises(ValueError, match="returned nan for the completion 'b'"):
        function_judge(f"{file}:wrong").scores(["a"], ["b"])
    with pytest.raises(ValueError, match="returned 1 scores for 2"):
        function_judge(f"{file}:short").scores(["a", "a"], ["b", "c"])
