"""The engine: examples in, log-probs of every completion out, each token computed once."""

from prefopt.engine.layout import Example, Layout, build_layout
from prefopt.engine.logprobs import LMHead, chunked_logps
from prefopt.engine.score import Scorer, Scores

__all__ = ["Example", "LMHead", "Layout", "Scorer", "Scores", "build_layout", "chunked_logps"]
