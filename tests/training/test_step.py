"""What a step is made of, on plain values: no model, no trainer."""

from types import SimpleNamespace

import pytest
import torch

from prefopt.batch import Batch, Texts
from prefopt.data.collate import PreferenceCollator
from prefopt.engine import Scorer, Scores
from prefopt.objective import parse_objective
from prefopt.reference.processes import Processes
from prefopt.training.step import (
    RUNNING_FILE,
    BatchScorer,
    Scored,
    StepStatistics,
    mismatched_sums,
)
from tests.indices import make_index
from tests.models import tiny_model

LENGTHS = torch.tensor([2, 4, 1, 3])
REF_LOGPS = torch.tensor([-2.0, -2.0, -3.0, -1.0])


def scores(logps, lengths=LENGTHS):
    return Scores(torch.zeros(0), torch.tensor(logps, requires_grad=True), lengths)


def batch(pairs=2, lengths=LENGTHS, continues=False):
    """Return a batch of pairs, chosen first, of which only the index and the lengths are real."""
    numbers = list(range(2 * pairs))
    index = make_index(
        chosen=numbers[::2],
        rejected=numbers[1::2],
        unpaired=numbers,
        labels=[number % 2 == 0 for number in numbers],
        preferred=numbers[::2],
    )
    continuation = object() if continues else None
    tokens = SimpleNamespace(lengths=lengths[: 2 * pairs], continuation=continuation)
    example = SimpleNamespace(completion_ids=("chosen", "rejected"))
    return Batch(Texts(tokens, (example,) * pairs), index)


class FakeScorer:
    """Gives batches the scores that were set down for them, in order."""

    load_balancing_loss, token_metrics, device = None, (), "cpu"

    def __init__(self, *logps, mismatched=None):
        self._logps = list(logps)
        self._mismatched = mismatched
        self.passes = 0

    def __call__(self, batch, wrapped=None, with_mismatched=True, training=False):
        part = self.passes % len(self._logps)
        self.passes += 1
        start = sum(map(len, self._logps[:part]))
        its = slice(start, start + len(self._logps[part]))
        return Scored(scores(self._logps[part], LENGTHS[its]), REF_LOGPS[its], self._mismatched)

    def mismatched(self, batch):
        return self._mismatched


def statistics(loss, score, processes=None, options=None):
    objective = parse_objective(loss, options=options)
    return StepStatistics(objective, score, processes or Processes())


LOGPS = [-1.0, -4.0, -3.0, -2.0]  # log-ratios 1, -2, 0, -1


def test_means_are_taken_over_the_pairs_of_the_whole_step():
    step = statistics("dpo", FakeScorer(LOGPS[:2], LOGPS[2:]), options={"beta": 0.5})
    batches = [batch(1), batch(1)]
    contexts = step.contexts(batches)
    assert [context.counts.tolist() for context in contexts] == [[1.0], [1.0]]
    assert contexts[0].denominators.tolist() == [2.0]
    shares = [
        step.loss(one, context, None, True)[0]
        for one, context in zip(batches, contexts, strict=True)
    ]
    # -log sigmoid(0.5 * 3) and -log sigmoid(0.5 * 1).
    assert sum(shares).item() == pytest.approx((0.2014133 + 0.4740770) / 2, rel=1e-6)
    assert step.metrics.means()["rewards/margins"] == pytest.approx((1.5 + 0.5) / 2)


def test_denominators_are_those_of_all_processes():
    others = Processes(0, 2, lambda value: [value, value], lambda tensor: tensor + 3)
    (context,) = statistics("dpo", FakeScorer(LOGPS), others).contexts([batch()])
    assert (context.counts.item(), context.denominators.item()) == (2.0, 5.0)


def test_processes_need_not_have_seen_the_same_metrics():
    known = []
    others = Processes(
        0, 2, lambda names: [names, ["b"]], lambda table: known.append(table) or table
    )
    step = statistics("dpo", FakeScorer(LOGPS), others)
    step.metrics.add("a", torch.tensor(3.0), 1.0)
    assert step.means_of(step.metrics) == {"a": 3.0}
    assert known[0].tolist() == [[3.0, 1.0], [0.0, 0.0]]


def test_batches_alone_are_a_step_of_their_own():
    others = Processes(0, 2, lambda value: [value, value], lambda tensor: tensor + 3)
    step = statistics("dpo", FakeScorer(LOGPS[:2]), others)
    contexts = step.contexts_alone([batch(1), batch(1)])
    assert [context.denominators.item() for context in contexts] == [2.0, 2.0]


def test_the_kl_estimate_is_the_mean_log_ratio_and_never_negative():
    sums = torch.tensor([6.0, 1.5, 3.0], dtype=torch.float64)
    step = statistics("kto", FakeScorer(LOGPS))
    assert {name: float(kl) for name, kl in step.kl_estimate([sums, sums]).items()} == {"kl": 2.0}
    assert float(step.kl_estimate([-sums])["kl"]) == 0.0
    assert float(step.kl_estimate([])["kl"]) == 0.0  # a process without rows takes part


def test_mismatched_completions_that_stand_alone_are_scored_before_the_step():
    sums = torch.tensor([6.0, 1.5, 3.0], dtype=torch.float64)
    step = statistics("kto", FakeScorer(LOGPS, mismatched=sums))
    (context,) = step.contexts([batch()])
    assert float(context.kl["kl"]) == 2.0
    (continued,) = step.contexts([batch(continues=True)])
    assert continued.kl is None
    step.loss(batch(), continued, None, True)
    assert step.metrics.means()["kl"] == 2.0  # of both ways


def test_mismatched_sums_are_of_log_ratios_whole_and_per_token():
    found = mismatched_sums(scores(LOGPS), REF_LOGPS)
    assert found.tolist() == pytest.approx([1 - 2 + 0 - 1, 0.5 - 0.5 + 0 - 1 / 3, 4])


def test_losses_on_all_examples_are_looked_ahead_for_where_there_are_several_batches():
    whole = FakeScorer(LOGPS)
    step = statistics("aot", whole)
    (context,) = step.contexts([batch()])
    assert whole.passes == 0
    one = step.loss(batch(), context, None, True)[0].item()
    parts = FakeScorer(LOGPS[:2], LOGPS[2:])
    step = statistics("aot", parts)
    halves = [batch(1), batch(1)]
    contexts = step.contexts(halves)
    assert parts.passes == 2
    shares = [step.loss(*pair, None, True)[0] for pair in zip(halves, contexts, strict=True)]
    assert sum(shares).item() == pytest.approx(one, rel=1e-6)


def test_running_means_move_in_training_only_and_once_a_step():
    step = statistics("bco", FakeScorer(LOGPS))
    (context,) = step.contexts([batch()])
    step.loss(batch(), context, None, False)
    assert float(step._running.means()[0]["mean_log_ratio"]) == 0.0
    step.loss(batch(), context, None, True)
    assert float(step._running.means()[0]["mean_log_ratio"]) == pytest.approx(-0.5)


def test_means_over_training_are_saved_and_a_checkpoint_without_them_is_an_error(tmp_path):
    step = statistics("bco", FakeScorer(LOGPS))
    step.loss(batch(), step.contexts([batch()])[0], None, True)
    step.save(tmp_path)
    again = statistics("bco", FakeScorer(LOGPS))
    again.resume(tmp_path)
    assert again._running.means() == step._running.means()
    again.resume(None)
    assert float(again._running.means()[0]["mean_log_ratio"]) == 0.0
    (tmp_path / RUNNING_FILE).unlink()
    with pytest.raises(ValueError, match=f"has no {RUNNING_FILE}, which the loss 'bco' needs"):
        again.resume(tmp_path)
    statistics("dpo", FakeScorer(LOGPS)).resume(tmp_path)  # needs none


def test_what_is_as_long_as_the_texts_is_dropped_on_request():
    scored = Scored(Scores(torch.ones(10), torch.ones(4), LENGTHS), REF_LOGPS, None, torch.ones(10))
    short = scored.summed()
    assert (len(short.scores.per_token_logps), short.ref_per_token_logps) == (0, None)
    assert short.completions({}).ref_logps is REF_LOGPS


class FakeReferences:
    """Serves zeros."""

    def logps(self, texts, with_predictions=False):
        count = len(texts.tokens.lengths)
        return SimpleNamespace(
            logps=torch.zeros(count), per_token_logps=None, continuation=None, predictions=None
        )


@pytest.mark.parametrize("how", ["separate", "continued"])
def test_mismatched_completions_score_alike_in_either_row(how):
    row = {
        "prompt_ids": [3, 4, 5],
        "completion_ids": [[6, 7], [8]],
        "ranks": [0, 1],
        "desirable": [True, False],
        "kl_completion_ids": [[8, 9], [10]],
    }
    (real,) = PreferenceCollator(mismatched=how).batches([row, row | {"prompt_ids": [11]}])
    scorer = Scorer(tiny_model("llama"))
    score = BatchScorer(scorer, FakeReferences(), parse_objective("kto"))
    with torch.no_grad():
        found = score(real).mismatched
    (alone,) = PreferenceCollator(mismatched="separate").batches([row, row | {"prompt_ids": [11]}])
    torch.testing.assert_close(found, score.mismatched(alone), rtol=1e-5, atol=1e-5)
    assert score(alone, with_mismatched=False).mismatched is None


@pytest.mark.parametrize(
    ("how", "layout"),
    [("separate", "shared_prefix"), ("continued", "shared_prefix"), ("separate", "padded")],
)
def test_completions_without_a_mismatched_one_have_no_part_in_the_kl_estimate(how, layout):
    row = {"prompt_ids": [3, 4, 5], "completion_ids": [[6, 7]], "desirable": [True], "ranks": []}
    score = BatchScorer(
        Scorer(tiny_model("llama"), layout), FakeReferences(), parse_objective("kto")
    )
    collator = PreferenceCollator(layout, mismatched=how)

    def sums(*mismatched):
        (made,) = collator.batches([row | {"kl_completion_ids": [ids]} for ids in mismatched])
        with torch.no_grad():
            return score(made).mismatched

    torch.testing.assert_close(sums([8, 9], []), sums([8, 9]), rtol=1e-6, atol=1e-6)
    assert sums([8, 9], [])[2] == 1
    assert sums([], []).tolist() == [0, 0, 0]
    assert statistics("kto", score).kl_estimate([sums([])])["kl"] == 0
