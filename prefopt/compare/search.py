"""A learning rate for each method, chosen on the validation rows, so that none loses by its own.

Trials are ordinary runs with the first seed, measured on the validation rows; that of the chosen
rate is not trained again. Optuna keeps them in ``search.db`` (SQLite): rates on a grid first,
further ones where its TPE sampler expects most, between the lowest and the highest of the grid.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefopt.compare.collect import evaluation_of, is_measured
from prefopt.compare.executors import Executor
from prefopt.compare.methods import Method
from prefopt.compare.options import check_options
from prefopt.compare.plan import Plan, Run
from prefopt.compare.tasks import Task, digest_of, retry

if TYPE_CHECKING:
    from optuna import Study, Trial

__all__ = ["Search", "rates_around"]

_RATE = "learning_rate"
_ON_GRID = 4  # trials before the sampler is asked
_STEP = 3.0  # between neighbours on the grid


def rates_around(rate: float, count: int) -> list[float]:
    """Return rates that a search tries first, ascending: the method's own is one of them.

    Args:
        rate: The method's own learning rate.
        count: How many.

    >>> [f"{rate:.1e}" for rate in rates_around(1e-5, 4)]
    ['3.3e-06', '1.0e-05', '3.0e-05', '9.0e-05']
    """
    return [rate * _STEP ** (place - (count - 1) // 2) for place in range(count)]


@dataclass(frozen=True)
class _Asked:
    """A trial and its run."""

    method: Method
    trial: "Trial"
    run: Run


class Search:
    """Chooses learning rates.

    Args:
        plan: Of the comparison; its rows for validation judge.
        executor: Computes the trials.
        say: Told what is chosen.
        show: Called with the tasks of a round; returns what is to be called while they run.
    """

    def __init__(
        self,
        plan: Plan,
        executor: Executor,
        say: Callable[[str], None],
        show: Callable[[Sequence[Task]], Any],
    ) -> None:
        if plan.data.validation is None:
            raise ValueError("a search needs rows to judge by: give validation a size above 0")
        self._plan, self._executor, self._say, self._show = plan, executor, say, show
        self._seed = plan.spec.seeds[0]

    def choose(self, methods: Sequence[Method]) -> list[Method]:
        """Return the methods with the learning rates that are best on the validation rows."""
        studies = [self._study(method) for method in methods]
        while asked := [
            one
            for its, study in zip(methods, studies, strict=True)
            for one in self._ask(its, study)
        ]:
            tasks = [one.run.task for one in asked]
            for task in tasks:
                retry(task)
            with self._show(tasks) as watch:
                self._executor.run(tasks, watch.update)
            for one in asked:
                self._tell(one, studies[list(methods).index(one.method)])
        return [self._best(its, study) for its, study in zip(methods, studies, strict=True)]

    def _study(self, method: Method) -> "Study":
        """Return the trials of a method; those that were cut off are asked for again."""
        optuna = _optuna()
        path: Path = self._plan.root / "search.db"
        spec = self._plan.spec
        facts = (spec.options, method.options, self._plan.start, self._plan.data.digests)
        study: Study = optuna.create_study(
            study_name=f"{method.name} {digest_of(*facts, self._seed, spec.search_metric)}",
            storage=f"sqlite:///{path}",
            direction="maximize",
            sampler=optuna.samplers.TPESampler(seed=0),
            load_if_exists=True,
        )
        if not study.trials:
            for rate in self._grid(method):
                study.enqueue_trial({_RATE: rate})
        for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
            if trial.params:
                study.enqueue_trial(dict(trial.params), user_attrs={"again": True})
        return study

    def _grid(self, method: Method) -> list[float]:
        spec = self._plan.spec
        if spec.search_rates:
            return sorted(spec.search_rates)
        own = check_options({**spec.options, **method.options}).learning_rate
        return rates_around(own, min(spec.search_trials, _ON_GRID))

    def _ask(self, method: Method, study: "Study") -> list[_Asked]:
        """Return the trials of a method's next round; none when it has had all."""
        states = _optuna().trial.TrialState
        queued = len(study.get_trials(deepcopy=False, states=(states.WAITING,)))
        had = len(study.get_trials(deepcopy=False, states=(states.COMPLETE, states.FAIL)))
        had -= sum(trial.user_attrs.get("again", False) for trial in study.trials)
        left = self._plan.spec.search_trials - had
        grid = self._grid(method)
        asked = []
        for _ in range(max(queued, min(left, 1))):
            trial = study.ask()
            rate = trial.suggest_float(_RATE, min(grid), max(grid), log=True)
            asked.append(_Asked(method, trial, self._run(method, rate)))
        return asked

    def _run(self, method: Method, rate: float) -> Run:
        return self._plan.run(
            _with_rate(method, rate), self._seed, "validation", self._plan.data.validation
        )

    def _tell(self, asked: _Asked, study: "Study") -> None:
        """Record what a trial reached; one that has no number failed."""
        metric = self._plan.spec.search_metric
        found = evaluation_of(asked.run)["metrics"] if is_measured(asked.run) else {}
        if metric in found:
            study.tell(asked.trial, found[metric][0])
            return
        study.tell(asked.trial, state=_optuna().trial.TrialState.FAIL)
        if found:
            raise ValueError(
                f"search_metric {metric!r} was not measured of {asked.method.name}; there are: "
                f"{', '.join(found)}"
            )

    def _best(self, method: Method, study: "Study") -> Method:
        complete = [trial for trial in study.trials if trial.value is not None]
        if not complete:
            self._say(f"{method.name}: no learning rate could be tried; its own is kept")
            return method
        best = max(complete, key=lambda trial: (trial.value, -trial.params[_RATE]))
        rate, tried = best.params[_RATE], [trial.params[_RATE] for trial in complete]
        text = f"{method.name}: learning rate {rate:.2g} of {len(tried)} tried"
        text += f" ({self._plan.spec.search_metric} {best.value:.3f} on the validation rows)"
        if len(tried) > 2 and rate in (min(tried), max(tried)):
            text += "; it is the " + ("highest" if rate == max(tried) else "lowest")
            text += " of them, so a wider search may find a better one"
        self._say(text)
        return _with_rate(method, rate)


def _with_rate(method: Method, rate: float) -> Method:
    return replace(method, options={**method.options, _RATE: rate})


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise ImportError(
            "a search needs optuna: pip install 'prefopt[compare]'", name="optuna"
        ) from error
    optuna.logging.set_verbosity(logging.WARNING)
    return optuna
