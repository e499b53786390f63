r"""ORPO: likelihood of the chosen completion, and its odds against the rejected one; no reference.

Source: Hong et al. 2024, arXiv:2403.07691, Eq. 6 and 7. Departures from it: the likelihood term is
the mean over the completion's tokens of each sequence, as in LLaMA-Factory; the authors' code and
TRL also take the tokens of the prompt into it, and weigh by token over the batch.
Use it when: you want to fine-tune and align a base model in one run.
Not when: the policy is already fine-tuned: the likelihood term keeps imitating the data.
Differs from: TRL's likelihood term averages over the tokens of the prompt too, the authors' code
optionally; LLaMA-Factory takes the completion of each sequence, as here.
Differs from: the authors' code averages over one token too many, the first of the padding, and
takes ``log(sigmoid(x))``.
Differs from: near a log-prob of 0 the gradient is NaN in TRL (below 6e-8), and loss or digits are
lost in the authors' code, Liger and LLaMA-Factory; here it is compared with 60 digits.

.. math::
    \ell = -\log p_c - \lambda \log \sigma\Bigl(\log \frac{p_c}{1 - p_c}
        - \log \frac{p_r}{1 - p_r}\Bigr),
    \quad p_y = \pi(y \mid x)^{1 / |y|}

TRL's ``beta`` is ``lambda_`` here: nothing is multiplied inside the sigmoid. The paper has 0.1 for
Mistral, 0.2 and 0.25 for other models, and compares 0.1, 0.5 and 1; a script of the authors' has
0.05.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from prefopt.losses.common import average_logps, check_not_negative
from prefopt.losses.registry import LossOutput, register_loss


def log_odds_ratio(chosen_mean_logps: Tensor, rejected_mean_logps: Tensor) -> Tensor:
    """Return log(odds of chosen / odds of rejected), odds being p / (1 - p).

    Exact, with its gradient, up to the smallest log-prob below 0 that the dtype holds. At 0, where
    the odds are infinite, that smallest log-prob stands in, and no gradient flows. Mean log-probs
    are (B,), in nats per token.
    """
    return _log_odds(chosen_mean_logps) - _log_odds(rejected_mean_logps)


def _log_odds(logps: Tensor) -> Tensor:
    logps = logps.clamp(max=-torch.finfo(logps.dtype).tiny)
    # log(1 - p). log1p(-exp(.)), the usual form, loses all digits near 0. This one is off by one
    # rounding of 1 far below, which the sum with logps has anyway, so no branch is needed.
    return logps - torch.log(-torch.expm1(logps))


@register_loss("orpo", family="no_reference", published={"lambda_": (0.05, 1.0)})
def orpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    *,
    lambda_: float = 0.1,
) -> LossOutput:
    """Return the ORPO loss of each pair, unreduced.

    Args:
        chosen_logps: Policy log-prob of the chosen completion, summed over tokens; (B,), nats.
        rejected_logps: The same of the rejected completion; (B,), nats.
        chosen_lengths: Length of the chosen completion; (B,), tokens.
        rejected_lengths: Length of the rejected completion; (B,), tokens.
        lambda_: Weight of the odds-ratio term; at least 0.

    Returns:
        Losses, and as detached rewards ``lambda_`` times the mean log-probs, which is what TRL
        logs; each (B,).

    Raises:
        ValueError: If ``lambda_`` is negative.
    """
    check_not_negative(lambda_=lambda_)
    chosen_mean_logps = average_logps(chosen_logps, chosen_lengths)
    rejected_mean_logps = average_logps(rejected_logps, rejected_lengths)
    log_odds_ratios = log_odds_ratio(chosen_mean_logps, rejected_mean_logps)
    losses = -chosen_mean_logps - lambda_ * logsigmoid(log_odds_ratios)
    return LossOutput(
        losses, lambda_ * chosen_mean_logps.detach(), lambda_ * rejected_mean_logps.detach()
    )
