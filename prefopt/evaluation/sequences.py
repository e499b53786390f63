"""Samples of a model, log-probs of token sequences, and the KL between two models.

Plain padded forwards on any causal language model of transformers. Training has its own engine.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "TokenBatch",
    "completion_logps",
    "pad_sequences",
    "per_token_logps",
    "sample_completions",
    "sequence_kl",
    "token_logps",
]

Ids = Sequence[int]


class TokenBatch(NamedTuple):
    """Prompts and completions, one after the other, padded at the end.

    Attributes:
        input_ids: (B, T) token ids.
        attention_mask: (B, T) bool, False on padding.
        completion_mask: (B, T) bool, True on the completion's tokens.
    """

    input_ids: Tensor
    attention_mask: Tensor
    completion_mask: Tensor


def pad_sequences(
    prompts: Sequence[Ids],
    completions: Sequence[Ids],
    *,
    pad_token_id: int = 0,
    device: torch.device | str | None = None,
) -> TokenBatch:
    """Return one padded batch of prompts and their completions.

    Args:
        prompts: Token ids of each prompt, at least one token.
        completions: Token ids of each completion.
        pad_token_id: Fills the end of the shorter rows.
        device: Where the batch lies.

    Raises:
        ValueError: If the numbers differ, there are none, or a prompt is empty (its first
            completion token would be predicted by nothing).
    """
    if len(prompts) != len(completions) or not prompts:
        raise ValueError(f"got {len(prompts)} prompts and {len(completions)} completions")
    if not all(prompts):
        raise ValueError("a prompt is empty: start it with a begin-of-text token")
    rows = [[*p, *c] for p, c in zip(prompts, completions, strict=True)]
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[pad_token_id] * (width - len(row))] for row in rows])
    positions = torch.arange(width)
    attention_mask = positions < torch.tensor([len(row) for row in rows])[:, None]
    starts = torch.tensor([len(prompt) for prompt in prompts])[:, None]
    completion_mask = attention_mask & (positions >= starts)
    return TokenBatch(ids.to(device), attention_mask.to(device), completion_mask.to(device))


def per_token_logps(model: "PreTrainedModel", batch: TokenBatch) -> Tensor:
    """Return the log-prob of each completion token; 0 elsewhere.

    Args:
        model: A causal language model of transformers.
        batch: From :func:`pad_sequences`.

    Returns:
        (B, T), nats, float32; position t holds the log-prob of token t given those before it.
    """
    logps = _next_token_logps(model, batch)
    targets = batch.input_ids[:, 1:, None]
    picked = logps[:, :-1].gather(2, targets).squeeze(2) * batch.completion_mask[:, 1:]
    return torch.nn.functional.pad(picked, (1, 0))


@torch.no_grad()
def completion_logps(
    model: "PreTrainedModel",
    prompts: Sequence[Ids],
    completions: Sequence[Ids],
    *,
    pad_token_id: int = 0,
    batch_size: int = 256,
) -> Tensor:
    """Return the summed log-prob of each completion given its prompt.

    Args:
        model: A causal language model of transformers.
        prompts: Token ids of each prompt.
        completions: Token ids of each completion, its end-of-text token included.
        pad_token_id: Any valid token.
        batch_size: Rows per forward.

    Returns:
        (B,), nats, float32, on the CPU.
    """
    tokens = token_logps(
        model, prompts, completions, pad_token_id=pad_token_id, batch_size=batch_size
    )
    return torch.stack([logps.sum() for logps in tokens])


@torch.no_grad()
def token_logps(
    model: "PreTrainedModel",
    prompts: Sequence[Ids],
    completions: Sequence[Ids],
    *,
    pad_token_id: int = 0,
    batch_size: int = 256,
) -> list[Tensor]:
    """Return the log-probs of the tokens of each completion given its prompt.

    Args:
        model: A causal language model of transformers.
        prompts: Token ids of each prompt.
        completions: Token ids of each completion, its end-of-text token included.
        pad_token_id: Any valid token.
        batch_size: Rows per forward.

    Returns:
        (n,) for each completion of n tokens, nats, float32, on the CPU.
    """
    logps: list[Tensor] = []
    for start in range(0, len(prompts), batch_size):
        part = slice(start, start + batch_size)
        batch = pad_sequences(
            prompts[part], completions[part], pad_token_id=pad_token_id, device=model.device
        )
        rows = per_token_logps(model, batch).cpu()
        masks = batch.completion_mask.cpu()
        logps += [row[mask] for row, mask in zip(rows, masks, strict=True)]
    return logps


@torch.no_grad()
def sequence_kl(
    policy: "PreTrainedModel",
    reference: "PreTrainedModel",
    prompts: Sequence[Ids],
    completions: Sequence[Ids],
    *,
    pad_token_id: int = 0,
    batch_size: int = 256,
) -> Tensor:
    """Estimate KL(policy || reference) over whole completions, from the policy's own samples.

    By the chain rule, the KL between two distributions of sequences is the expectation, over
    completions of the policy, of the sum over its tokens of the KL between both next-token
    distributions. That sum is computed exactly for each completion, so the mean of the result
    is an unbiased estimate, with less noise than the mean of ``log policy - log reference``.

    Args:
        policy: A causal language model of transformers.
        reference: Another with the same vocabulary.
        prompts: Token ids of each prompt.
        completions: Token ids of a completion of each prompt, sampled from the policy at
            temperature 1, its end-of-text token included. For completions cut at a length, it
            is the KL of the policies that stop there.
        pad_token_id: Any valid token.
        batch_size: Rows per forward.

    Returns:
        One estimate per completion; (B,), nats, at least 0, float32, on the CPU.
    """
    kls = []
    for start in range(0, len(prompts), batch_size):
        part = slice(start, start + batch_size)
        batch = pad_sequences(
            prompts[part], completions[part], pad_token_id=pad_token_id, device=policy.device
        )
        logps = _next_token_logps(policy, batch)
        other = _next_token_logps(reference, batch).to(logps.device)
        per_token_kl = (logps.exp() * (logps - other)).sum(dim=2)
        kls.append((per_token_kl[:, :-1] * batch.completion_mask[:, 1:]).sum(dim=1).cpu())
    return torch.cat(kls)


@torch.no_grad()
def sample_completions(
    model: "PreTrainedModel",
    prompts: Sequence[Ids],
    *,
    max_new_tokens: int,
    eos_token_id: int,
    pad_token_id: int = 0,
    batch_size: int = 512,
    seed: int = 0,
) -> list[list[int]]:
    """Draw one completion of each prompt from the model, at temperature 1 and untruncated.

    Args:
        model: A causal language model of transformers, with a key-value cache.
        prompts: Token ids of each prompt; repeat a prompt for several samples.
        max_new_tokens: Longest completion; one that reaches it has no end-of-text token.
        eos_token_id: Ends a completion, and is its last token.
        pad_token_id: Any valid token.
        batch_size: Prompts sampled together.
        seed: Of the samples; the global generator is left as it was.

    Returns:
        Token ids of the completions, in the order of the prompts.
    """
    generator = torch.Generator(model.device).manual_seed(seed)
    completions: list[list[int]] = []
    for start in range(0, len(prompts), batch_size):
        tokens = _sample_batch(
            model,
            prompts[start : start + batch_size],
            max_new_tokens,
            eos_token_id,
            pad_token_id,
            generator,
        )
        for row in tokens.tolist():
            length = row.index(eos_token_id) + 1 if eos_token_id in row else len(row)
            completions.append(row[:length])
    return completions


def _sample_batch(
    model: "PreTrainedModel",
    prompts: Sequence[Ids],
    max_new_tokens: int,
    eos_token_id: int,
    pad_token_id: int,
    generator: torch.Generator,
) -> Tensor:
    """Return (B, N) sampled ids; what follows a row's end-of-text token means nothing."""
    width = max(map(len, prompts))
    missing = torch.tensor([[width - len(prompt)] for prompt in prompts], device=model.device)
    ids = torch.tensor(
        [[pad_token_id] * (width - len(p)) + list(p) for p in prompts], device=model.device
    )
    # Without padding the mask is all True: leaving it out takes the faster attention path.
    padded = bool(missing.any())
    columns = torch.arange(width + max_new_tokens, device=model.device)
    attention_mask = columns >= missing
    positions = (columns - missing).clamp(min=0)
    tokens = torch.full((len(prompts), max_new_tokens), pad_token_id, device=model.device)
    running = torch.arange(len(prompts), device=model.device)  # rows of the batch, by prompt
    finished = torch.zeros(len(prompts), dtype=torch.bool, device=model.device)
    cache = None
    for step in range(max_new_tokens):
        end = width + step
        output = model(
            input_ids=ids,
            attention_mask=attention_mask[:, :end].long() if padded else None,
            position_ids=positions[:, end - ids.shape[1] : end],
            past_key_values=cache,
            use_cache=True,
        )
        cache = output.past_key_values
        probabilities = output.logits[:, -1].float().softmax(dim=1)
        ids = torch.multinomial(probabilities, 1, generator=generator)
        tokens[running, step] = ids[:, 0]
        finished |= ids[:, 0] == eos_token_id
        left = (~finished).nonzero()[:, 0]
        if len(left) == 0:
            break
        # Rows that have ended cost as much as the others: drop them once they are 30%.
        if len(left) < 0.7 * len(running):
            cache.batch_select_indices(left)
            attention_mask, positions = attention_mask[left], positions[left]
            running, finished, ids = running[left], finished[left], ids[left]
    return tokens


def _next_token_logps(model: "PreTrainedModel", batch: TokenBatch) -> Tensor:
    """Return (B, T, V): at position t, the log-probs of what comes after token t, in nats."""
    output = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask.long())
    logps: Tensor = output.logits.float().log_softmax(dim=2)
    return logps
