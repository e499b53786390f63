"""A moving reference moves as TRL's does (trl 1.16, SyncRefModelCallback)."""

import pytest
import torch

from prefopt.engine import Scorer
from prefopt.reference.live import MovingCopy
from tests.models import tiny_model

callbacks = pytest.importorskip("trl.trainer.callbacks")


def test_two_moves_are_those_of_trl():
    policy, theirs = tiny_model("llama"), tiny_model("llama", seed=2)
    mine = MovingCopy(Scorer(policy), dict(theirs.named_parameters()))
    for seed, alpha in ((3, 0.6), (4, 0.25)):
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.add_(torch.randn_like(parameter))
        mine.follow(alpha)
        callbacks.SyncRefModelCallback._sync_target_model(policy, theirs, alpha)
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(mine.weights()[name], parameter.data, rtol=1e-6, atol=1e-7)
