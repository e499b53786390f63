r"""ARPO: CPO that punishes a rejected completion less, the more alike the two are to the policy.

Source: Xu et al. 2024 (X-ALMA), arXiv:2410.03115, as in the authors' code (ALMA, loss type
``sigmoid``). Departures from it: the likelihood of the chosen completion that the code adds is a
term of its own, ``arpo + sft``. Gradient flows through the factor z, as in the code; what the paper
says of that, and of the coefficients, could not be checked.
Use it when: the two completions are alike, such as a good and a better translation.
Not when: rejected completions are bad: a pair of similar completions is made more likely as a
whole.
Differs from: the authors' code adds a likelihood term to the same loss.

.. math::
    \ell = -\log \sigma\Bigl(\beta \bigl(\log \pi(y_c \mid x) - z \log \pi(y_r \mid x)\bigr)\Bigr),
    \quad z = \min\bigl(1,\, \eta_1 e^{\eta_2 d} - 1\bigr),
    \quad d = \Bigl|\frac{\log \pi(y_c \mid x)}{|y_c|} - \frac{\log \pi(y_r \mid x)}{|y_r|}\Bigr|

At z = 1 this is ``cpo``. With the default coefficients z is -0.1 where d is 0, so that completions
which the policy cannot tell apart are both pulled up, and 1 from d = 2 nats per token on.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from prefopt.losses.common import average_logps, check_not_negative, check_positive
from prefopt.losses.registry import LossOutput, register_loss


@register_loss("arpo", family="no_reference")
def arpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    *,
    beta: float = 0.1,
    eta_1: float = 0.9,
    eta_2: float = 0.4,
) -> LossOutput:
    """Return the ARPO loss of each pair, unreduced.

    Args:
        chosen_logps: Policy log-prob of the chosen completion, summed over tokens; (B,), nats.
        rejected_logps: The same of the rejected completion; (B,), nats.
        chosen_lengths: Length of the chosen completion; (B,), tokens.
        rejected_lengths: Length of the rejected completion; (B,), tokens.
        beta: Reward per nat of log-prob; greater than 0.
        eta_1: One more than the factor z of a pair with equal log-probs per token; greater than 0.
        eta_2: Growth of z with the gap, per nat per token; at least 0.

    Returns:
        Losses and detached rewards (beta times log-prob, without z), each (B,).

    Raises:
        ValueError: If a hyper-parameter is out of its range.
    """
    check_positive(beta=beta, eta_1=eta_1)
    check_not_negative(eta_2=eta_2)
    gaps = average_logps(chosen_logps, chosen_lengths) - average_logps(
        rejected_logps, rejected_lengths
    )
    # The minimum is taken of the exponents: exp of a large gap is inf, its gradient 0 * inf.
    exponents = (eta_2 * gaps.abs()).clamp(max=math.log(2 / eta_1))
    factors = eta_1 * torch.exp(exponents) - 1
    losses = -logsigmoid(beta * (chosen_logps - factors * rejected_logps))
    return LossOutput(losses, beta * chosen_logps.detach(), beta * rejected_logps.detach())
