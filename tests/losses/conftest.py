"""Two pairs and four completions with log-ratios 1, -0.5, -0.75 and 1.25, in float64."""

import pytest
import torch
from torch import Tensor

from prefopt.losses import common

CHOSEN = [-10.0, -20.5]
REJECTED = [-12.25, -18.0]
REF_CHOSEN = [-11.0, -20.0]
REF_REJECTED = [-11.5, -19.25]
CHOSEN_LENGTHS = [4, 7]
REJECTED_LENGTHS = [5, 3]


def leaf(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


@pytest.fixture
def pairs() -> dict[str, Tensor]:
    """Inputs of a paired loss with a reference; the margins of log-ratios are 1.75 and -1.75."""
    return {
        "chosen_logps": leaf(CHOSEN),
        "rejected_logps": leaf(REJECTED),
        "ref_chosen_logps": torch.tensor(REF_CHOSEN, dtype=torch.float64),
        "ref_rejected_logps": torch.tensor(REF_REJECTED, dtype=torch.float64),
    }


@pytest.fixture
def equal_pairs(pairs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The log-probs of ``pairs`` under a reference that is the policy."""
    return {
        **pairs,
        "ref_chosen_logps": pairs["chosen_logps"].detach(),
        "ref_rejected_logps": pairs["rejected_logps"].detach(),
    }


@pytest.fixture
def lengths() -> dict[str, Tensor]:
    """Lengths of the completions of ``pairs``."""
    return {
        "chosen_lengths": torch.tensor(CHOSEN_LENGTHS),
        "rejected_lengths": torch.tensor(REJECTED_LENGTHS),
    }


@pytest.fixture
def unpaired(pairs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Four completions with log-ratios 1, -0.5, -0.75, 1.25; the first and last are desirable."""
    logps = torch.cat([pairs["chosen_logps"], pairs["rejected_logps"]]).detach().requires_grad_()
    return {
        "logps": logps,
        "ref_logps": torch.cat([pairs["ref_chosen_logps"], pairs["ref_rejected_logps"]]),
        "desirable": torch.tensor([True, False, False, True]),
    }


@pytest.fixture
def rankings() -> dict[str, Tensor]:
    """Inputs of a ranked loss: log-ratios 1, -0.5, 0.25 and -0.75, 1.25, 0.5; the last two tie."""
    return {
        "ranked_logps": torch.tensor(
            [[-4.0, -9.0, -6.25], [-8.0, -7.5, -7.0]], dtype=torch.float64, requires_grad=True
        ),
        "ref_ranked_logps": torch.tensor(
            [[-5.0, -8.5, -6.5], [-7.25, -8.75, -7.5]], dtype=torch.float64
        ),
        "ranked_lengths": torch.tensor([[2, 3, 5], [4, 5, 7]]),
        "ranked_scores": torch.tensor([[2.0, 1.0, 0.0], [3.5, 1.5, 1.5]], dtype=torch.float64),
    }


@pytest.fixture
def warned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What checks of hyper-parameters warn of from now on, whatever the level of the logger."""
    messages: list[str] = []
    monkeypatch.setattr(common, "_warned", set())
    monkeypatch.setattr(
        common.logger, "warning", lambda text, *values: messages.append(text % values)
    )
    return messages


def assert_exact(actual: Tensor, expected: list[float]) -> None:
    """Assert equality up to the rounding of float64."""
    wanted = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(actual.detach(), wanted, rtol=1e-12, atol=1e-14)


@pytest.fixture
def exact():
    """Return the comparison every formula test uses."""
    return assert_exact
