"""On-policy RL from the start, by a learnt or the true reward: RLOO, through TRL.

Source: Ahmadian et al. 2024, arXiv:2402.14740, Eq. 7 and 8 (leave-one-out baseline). Departures
from it: those of TRL's ``RLOOTrainer``. The prompts are those of the training pairs, and answers
are read as ``prefopt eval`` reads them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from datasets import Dataset

from prefopt.compare.baselines.reward_model import model_options
from prefopt.compare.baselines.training import train
from prefopt.compare.baselines.trl_config import make_config, make_model_config
from prefopt.data import PreferenceExample, load_rows, read_example
from prefopt.data.ends import end_tokens
from prefopt.data.tokenize import tokenize_prompts
from prefopt.evaluation.generation import read_answer
from prefopt.evaluation.judges import FunctionJudge, PointJudge, load_function
from prefopt.evaluation.loading import tokenizer_of
from prefopt.training.loading import load_model

__all__ = ["train_on_policy"]

Reward = Callable[..., list[float]]


def train_on_policy(options: Mapping[str, Any], resume: bool = False) -> None:
    """Train a policy on its own answers.

    Args:
        options: ``model``, ``dataset``, ``output_dir``; ``reward`` (a function, as ``prefopt eval``
            takes it) or ``reward_model`` (its folder); and options of TRL's ``RLOOConfig`` and
            ``ModelConfig``.
        resume: Whether to go on from the newest checkpoint.

    Raises:
        ValueError: If the reward is missing, TRL cannot read the prompts, or an option is wrong.
    """
    from trl import RLOOTrainer, get_peft_config, get_quantization_config

    judge = _judge(options)
    model_config = make_model_config(options)
    config = make_config(options, "RLOOConfig")
    config.model_init_kwargs = model_options(options)
    quantization = get_quantization_config(model_config)
    if quantization is not None:
        config.model_init_kwargs["quantization_config"] = quantization
    tokenizer = tokenizer_of(options["model"], config.model_init_kwargs)
    tokenizer.padding_side = "left"
    model = load_model(options["model"], config.model_init_kwargs, trainable=True)
    ends = end_tokens(tokenizer, model.generation_config)
    model.generation_config.eos_token_id = ends
    prompts = _prompts(options["dataset"])
    _check_enough(len(prompts), config)
    prompt_ids = tokenize_prompts(prompts, range(len(prompts)), tokenizer)
    _check_readable(prompts, prompt_ids, tokenizer)
    trainer = RLOOTrainer(
        model=model,
        reward_funcs=_reward(judge, prompts, prompt_ids, tokenizer, ends),
        args=config,
        train_dataset=_trl_rows(prompts),
        processing_class=tokenizer,
        peft_config=get_peft_config(model_config),
    )
    train(trainer, resume, lambda: trainer.save_model(config.output_dir))


def _prompts(file: str) -> list[PreferenceExample]:
    """Return the prompt of each row: as often as there are pairs of it, as the losses see it."""
    return [
        replace(read_example(row, number), completions=[])
        for number, row in enumerate(load_rows(file))
    ]


def _check_enough(prompts: int, config: Any) -> None:
    """Raise ``ValueError`` if there are fewer prompts than a step takes: TRL would make no step."""
    needed = config.generation_batch_size // config.num_generations
    if prompts < needed:
        raise ValueError(
            f"a step of RL takes {needed} prompts and there are {prompts}: take a smaller "
            "per_device_train_batch_size, or more num_generations"
        )


def _judge(options: Mapping[str, Any]) -> PointJudge:
    """Return what rewards answers."""
    if options.get("reward_model"):
        from prefopt.evaluation.judges.classifier import ClassifierJudge

        batch = options.get("per_device_train_batch_size", 8)
        return ClassifierJudge.load(options["reward_model"], batch_size=batch)
    if not options.get("reward"):
        raise ValueError("RL needs a reward: the option reward or reward_model")
    return FunctionJudge(load_function(options["reward"]), options["reward"])


def _reward(
    judge: PointJudge,
    prompts: Sequence[PreferenceExample],
    prompt_ids: Sequence[Sequence[int]],
    tokenizer: Any,
    ends: Sequence[int],
) -> Reward:
    """Return the reward of answers as TRL calls it; of token ids, for their text loses spaces."""

    def reward(number: list[int], completion_ids: list[list[int]], **unused: Any) -> list[float]:
        answers = [
            read_answer(tokenizer, prompts[place], prompt_ids[place], ids, ends).text
            for place, ids in zip(number, completion_ids, strict=True)
        ]
        return judge.scores([prompts[place] for place in number], answers)

    return reward


def _trl_rows(prompts: Sequence[PreferenceExample]) -> Dataset:
    """Return a row for each prompt, with its number by which the reward finds it."""
    return Dataset.from_dict(
        {"prompt": [one.prompt for one in prompts], "number": list(range(len(prompts)))}
    )


def _check_readable(
    prompts: Sequence[PreferenceExample], prompt_ids: Sequence[list[int]], tokenizer: Any
) -> None:
    """Raise ``ValueError`` if TRL would give the policy other tokens than all else is given."""
    forms = {one.form for one in prompts}
    if forms not in ({"text"}, {"messages"}):
        raise ValueError(f"TRL's RL reads text or messages, all alike; got {' and '.join(forms)}")
    given = [one.prompt for one in prompts]
    if forms == {"text"}:
        found = tokenizer(text=given)["input_ids"]
    else:
        found = tokenizer.apply_chat_template(
            given, add_generation_prompt=True, tokenize=True, return_dict=True
        )["input_ids"]
    for number, (its, ours) in enumerate(zip(found, prompt_ids, strict=True)):
        if list(its) != list(ours):
            raise ValueError(
                f"TRL reads prompt {number} as other tokens than training does ({its[:8]}... and "
                f"{ours[:8]}...): prompts with tools or options of a template cannot be trained on"
            )
