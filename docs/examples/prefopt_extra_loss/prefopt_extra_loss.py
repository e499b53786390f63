r"""Cauchy: draws the reward margin to 1, and lets go of pairs that are far from it.

Source: an example of prefopt's documentation: the square of IPO (arXiv:2310.12036) inside a Cauchy
loss. Departures from it: none.
Use it when: most pairs should reach the same margin, and a few can never reach it.
Not when: the pairs far from the target are the ones to learn from.

.. math::
    \ell = \log\Bigl(1 + \bigl(\beta (\rho_c - \rho_r) - 1\bigr)^2\Bigr),
    \quad \rho_y = \log \frac{\pi(y \mid x)}{\pi_{\mathrm{ref}}(y \mid x)}
"""

from prefopt.losses import LossOutput, register_loss


@register_loss("cauchy", family="margin")
def cauchy_loss(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, *, beta=0.1):
    """Return the Cauchy loss of each pair, unreduced.

    Args:
        chosen_logps: Policy log-prob of the chosen completion, summed over tokens; (B,), nats.
        rejected_logps: The same of the rejected completion; (B,), nats.
        ref_chosen_logps: Reference counterpart of ``chosen_logps``; (B,), nats.
        ref_rejected_logps: Reference counterpart of ``rejected_logps``; (B,), nats.
        beta: Reward per nat of log-ratio; greater than 0.

    Returns:
        Losses and detached rewards (beta times log-ratio), each (B,).

    Raises:
        ValueError: If ``beta`` is not greater than 0.
    """
    if not beta > 0:
        raise ValueError(f"beta must be greater than 0, got {beta}")
    chosen_rewards = beta * (chosen_logps - ref_chosen_logps)
    rejected_rewards = beta * (rejected_logps - ref_rejected_logps)
    losses = (chosen_rewards - rejected_rewards - 1).square().log1p()
    return LossOutput(losses, chosen_rewards.detach(), rejected_rewards.detach())
