"""What decides which answer is better: a function, a classifier, a language model, an endpoint."""

from prefopt.evaluation.judges.base import (
    Judge,
    Judgements,
    PairJudge,
    PointJudge,
    RememberingJudge,
    judged,
)
from prefopt.evaluation.judges.classifier import ClassifierJudge
from prefopt.evaluation.judges.endpoint import EndpointJudge
from prefopt.evaluation.judges.function import (
    FunctionJudge,
    PairFunctionJudge,
    function_judge,
    load_function,
)
from prefopt.evaluation.judges.logprob import LogProbJudge
from prefopt.evaluation.judges.spec import SPECS, make_judge

__all__ = [
    "SPECS",
    "ClassifierJudge",
    "EndpointJudge",
    "FunctionJudge",
    "Judge",
    "Judgements",
    "LogProbJudge",
    "PairFunctionJudge",
    "PairJudge",
    "PointJudge",
    "RememberingJudge",
    "function_judge",
    "judged",
    "load_function",
    "make_judge",
]
