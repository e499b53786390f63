"""The packed side of the comparison: DPO with transformers' Trainer over unpadded rows.

What those write who need speed: the texts of a batch, chosen and rejected, stand behind each other
in one row without padding, FlashAttention keeps them apart, only completions meet the vocabulary,
and the reference's log-probs are computed once, before training. Nothing of prefopt is used; what
it lacks is that the prompt of a pair is computed once for each of its two answers.
"""

import inspect
import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, Trainer, TrainingArguments

ATTENTION = "packed"
REFERENCE_BATCH = 2  # pairs, as the other sides have it
SIDES = ("chosen", "rejected")

Row = dict[str, Any]


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    scaling: float | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int = 0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend within each text of a packed row; on a CPU, where no such kernel is, text by text.

    Query (1, heads, T, d), keys and values (1, key-value heads, T, d) become (1, T, heads, d).
    """
    assert cu_seq_lens_q is not None
    if not query.is_cuda:
        ends = cu_seq_lens_q.tolist()
        texts = [
            F.scaled_dot_product_attention(
                *(states[:, :, start:end] for states in (query, key, value)),
                is_causal=True,
                scale=scaling,
                enable_gqa=True,
            )
            for start, end in itertools.pairwise(ends)
        ]
        return torch.cat(texts, 2).transpose(1, 2), None
    from torch.nn.attention.varlen import varlen_attn

    # As transformers' own FlashAttention does: rotary positions left float32 under autocast.
    states = [x[0].transpose(0, 1).to(torch.bfloat16) for x in (query, key, value)]
    lengths = (cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q)
    # Before torch 2.12 fewer key-value heads need no parameter.
    grouped = {"enable_gqa": True} if "enable_gqa" in _parameters(varlen_attn) else {}
    return varlen_attn(*states, *lengths, scale=scaling, window_size=(-1, 0), **grouped)[None], None


def _parameters(function: Any) -> Any:
    return inspect.signature(function).parameters


AttentionInterface.register(ATTENTION, attend)


def pack(rows: list[Row]) -> dict[str, Any]:
    """Return a batch of pairs as one row: the chosen texts, then the rejected ones."""
    texts = [(row["prompt_ids"], row[side]) for side in SIDES for row in rows]
    lengths = [len(prompt) + len(completion) for prompt, completion in texts]
    ids = [token for prompt, completion in texts for token in (*prompt, *completion)]
    starts = torch.tensor([0, *lengths]).cumsum(0)
    predicting = [
        torch.arange(len(prompt) - 1, length - 1) + start
        for (prompt, _), length, start in zip(texts, lengths, starts.tolist(), strict=False)
    ]
    reference = [[row.get(f"reference_{side}", 0.0) for row in rows] for side in SIDES]
    return {
        "input_ids": torch.tensor([ids]),
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
        "cu_seq_lens_q": starts.int(),
        "max_length_q": max(lengths),
        "predicting": torch.cat(predicting),
        "text": torch.repeat_interleave(
            torch.arange(len(texts)), torch.tensor([len(completion) for _, completion in texts])
        ),
        "reference": torch.tensor(reference),
    }


def logprobs(model: Any, batch: dict[str, Any]) -> Tensor:
    """Return the log-prob of each completion; (2, pairs)."""
    names = ("input_ids", "position_ids", "cu_seq_lens_q", "max_length_q")
    hidden = model.base_model(
        **{name: batch[name] for name in names}, use_cache=False
    ).last_hidden_state[0]
    logits = model.get_output_embeddings()(hidden[batch["predicting"]])
    targets = batch["input_ids"][0, batch["predicting"] + 1]
    tokens = -F.cross_entropy(logits.float(), targets, reduction="none")
    sums = tokens.new_zeros(batch["reference"].numel()).index_add(0, batch["text"], tokens)
    return sums.view(2, -1)


class PackedTrainer(Trainer):  # type: ignore[misc]
    """DPO over packed rows.

    Args:
        steps: Told positions and losses of each step.
        beta: Of DPO.
    """

    def __init__(self, *args: Any, steps: Any, beta: float = 0.1, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.steps, self.beta = steps, beta
        self.model_accepts_loss_kwargs = False

    def add_reference(self, rows: list[Row]) -> None:
        """Compute the start's log-probs of all rows, once."""
        for start in range(0, len(rows), REFERENCE_BATCH):
            part = rows[start : start + REFERENCE_BATCH]
            with torch.no_grad(), self.compute_loss_context_manager():
                found = logprobs(self.model, self._prepare_inputs(pack(part))).tolist()
            for side, values in zip(SIDES, found, strict=True):
                for row, value in zip(part, values, strict=True):
                    row[f"reference_{side}"] = value

    def compute_loss(self, model: Any, inputs: dict[str, Any], **kwargs: Any) -> Tensor:
        """Return DPO's loss (Rafailov et al. 2023, Eq. 7), a mean over pairs."""
        ratios = logprobs(model, inputs) - inputs["reference"]
        return -F.logsigmoid(self.beta * (ratios[0] - ratios[1])).mean()

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Train on a batch, and say what it was."""
        loss = super().training_step(model, inputs, *args, **kwargs)
        self.steps.add("positions", inputs["input_ids"].numel())
        self.steps.add("head_positions", inputs["predicting"].numel())
        self.steps.add("loss", loss)
        return loss


def packed_trainer(job: dict[str, Any], model: Any, rows: list[Row], steps: Any) -> PackedTrainer:
    """Return a trainer of packed rows, the reference computed.

    Args:
        job: What is measured.
        model: The policy, with attention ``ATTENTION``.
        rows: Pairs as token ids, cut.
        steps: Callback that times.
    """
    own = {"remove_unused_columns": False, "logging_steps": 10}
    fields = {name: job["arguments"][name] for name in job["arguments"] if name in _FIELDS}
    trainer = PackedTrainer(
        model,
        args=TrainingArguments(**fields, **own),
        train_dataset=rows,
        data_collator=pack,
        callbacks=[steps],
        steps=steps,
    )
    trainer.add_reference(rows)
    return trainer


_FIELDS = frozenset(_parameters(TrainingArguments))
