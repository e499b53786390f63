"""What keeps a run from losing what it has is part of every trainer."""

from pathlib import Path

from prefopt.training.checkpoints import problem_of
from tests.models import tiny_rows
from tests.runs import trainer


def test_checkpoints_are_uploaded_when_they_are_whole(tmp_path):
    """Transformers uploads before all is written."""
    run = trainer(tmp_path, tiny_rows(8), save_strategy="steps", save_steps=1, max_steps=2)
    run.args.push_to_hub = True
    problems = []
    run._push_from_checkpoint = lambda folder: problems.append(problem_of(Path(folder)))
    run.train()
    assert problems == [None, None]
    assert run.args.push_to_hub


def test_collaborators_are_told_of_every_step(tmp_path):
    run = trainer(tmp_path, tiny_rows(8))
    callbacks = run.callback_handler.callbacks
    for one in (run._safety.guard, run._safety.progress, run._safety.interrupt):
        assert one in callbacks
