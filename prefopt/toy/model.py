"""The toy world's language model: a word tokenizer and a tiny Llama, fitted in seconds on a CPU."""

from collections.abc import Callable

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from prefopt.toy.data import Row, sample_texts
from prefopt.toy.grammar import vocabulary

__all__ = ["build_model", "build_tokenizer", "fit_model"]

LEARNING_RATE = 8e-3  # the highest, of ``fit_model``


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per word of the language.

    It adds no token of its own to a text; ``</s>`` ends a completion and ``<pad>`` fills.
    """
    words = ["<pad>", "</s>", "<unk>", *vocabulary()]
    vocab = {word: index for index, word in enumerate(words)}
    core = Tokenizer(WordLevel(vocab, unk_token="<unk>"))
    core.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=64,
        clean_up_tokenization_spaces=False,
    )


def build_model(
    tokenizer: PreTrainedTokenizerFast, *, hidden_size: int = 64, seed: int = 0
) -> LlamaForCausalLM:
    """Return a tiny Llama with random weights, in float32.

    Args:
        tokenizer: Gives the vocabulary's size and the special tokens.
        hidden_size: Width of the residual stream; a multiple of 16.
        seed: Of the weights. The global generator is left as it was.
    """
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=1,
        num_attention_heads=hidden_size // 16,
        num_key_value_heads=hidden_size // 16,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        initializer_range=hidden_size**-0.5,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def fit_model(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    *,
    steps: int = 400,
    batch_size: int = 64,
    seed: int = 0,
    on_step: Callable[[float], None] | None = None,
) -> LlamaForCausalLM:
    """Fit a model to texts of the grammar by maximum likelihood of the completions, in place.

    Every step has new texts, so it cannot overfit. AdamW, the learning rate warmed
    up over a tenth of the steps and brought to 0 by a cosine.

    Args:
        model: Trained in place.
        tokenizer: From :func:`build_tokenizer`.
        steps: Optimiser steps.
        batch_size: Texts per step.
        seed: Of the texts.
        on_step: Called after each step with its loss, in nats per completion.

    Returns:
        The same model, in evaluation mode.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1, cycle_momentum=False
    )
    texts = sample_texts(steps * batch_size, seed=seed)
    model.train()
    for step in range(steps):
        rows = texts[step * batch_size : (step + 1) * batch_size]
        inputs, labels = _encode(tokenizer, rows)
        total = torch.nn.functional.cross_entropy(
            model(input_ids=inputs).logits[:, :-1].flatten(0, 1),
            labels[:, 1:].flatten(),
            ignore_index=-100,
            reduction="sum",
        )
        loss = total / batch_size
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 4.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if on_step is not None:
            on_step(loss.item())
    return model.eval()


def _encode(
    tokenizer: PreTrainedTokenizerFast, rows: list[Row]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids padded at the end, and labels that count completion and end only."""
    prompts = tokenizer([row["prompt"] for row in rows])["input_ids"]
    completions = tokenizer([row["completion"] for row in rows])["input_ids"]
    width = max(len(p) + len(c) + 1 for p, c in zip(prompts, completions, strict=True))
    inputs = torch.full((len(rows), width), tokenizer.pad_token_id)
    labels = torch.full((len(rows), width), -100)
    for index, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        ids = torch.tensor([*prompt, *completion, tokenizer.eos_token_id])
        inputs[index, : len(ids)] = ids
        labels[index, len(prompt) : len(ids)] = ids[len(prompt) :]
    return inputs, labels
