"""KTO as TRL's own kto.py, on chats, with the loss that has no estimate of the KL divergence.

python kto_lora.py --model_name_or_path model --dataset_name chats --loss_type apo_zero_unpaired
"""

from datasets import load_dataset
from trl import (
    KTOConfig,
    KTOTrainer,
    ModelConfig,
    ScriptArguments,
    TrlParser,
    get_peft_config,
)


def main(script_args, training_args, model_args):
    dataset = load_dataset(script_args.dataset_name)
    trainer = KTOTrainer(
        model=model_args.model_name_or_path,
        args=training_args,
        train_dataset=dataset[script_args.dataset_train_split],
        eval_dataset=(
            dataset[script_args.dataset_test_split] if training_args.eval_strategy != "no" else None
        ),
        peft_config=get_peft_config(model_args),
    )
    trainer.train()
    trainer.save_model(training_args.output_dir)
    return trainer


if __name__ == "__main__":
    parser = TrlParser((ScriptArguments, KTOConfig, ModelConfig))
    script_args, training_args, model_args = parser.parse_args_and_config()
    trainer = main(script_args, training_args, model_args)
