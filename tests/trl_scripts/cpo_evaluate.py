"""AlphaPO by TRL's CPOTrainer, evaluated between steps, with a callback and an own optimiser."""

import torch
from datasets import load_dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    TrainerCallback,
    get_constant_schedule_with_warmup,
)
from trl.experimental.cpo import CPOConfig, CPOTrainer


class Watch(TrainerCallback):
    """Keep what happens."""

    def __init__(self):
        self.seen = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.seen.append(("log", state.global_step, logs.get("rewards/accuracies")))

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        self.seen.append(("evaluate", state.global_step, metrics["eval_rewards/margins"]))

    def on_epoch_end(self, args, state, control, **kwargs):
        self.seen.append(("epoch", state.global_step, state.epoch))


model = AutoModelForCausalLM.from_pretrained("model")
dataset = load_dataset("json", data_files="pairs.jsonl", split="train")
dataset = dataset.train_test_split(test_size=8, seed=42)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

training_args = CPOConfig(
    output_dir="aligned",
    loss_type="alphapo",
    alpha=0.25,
    simpo_gamma=0.1,
    beta=2.5,
    max_length=64,
    num_train_epochs=2,
    per_device_train_batch_size=8,
    per_device_eval_batch_size=4,
    eval_strategy="epoch",
    save_strategy="epoch",
    save_only_model=True,
    logging_steps=1,
    bf16=False,
    use_cpu=True,
    report_to="none",
    disable_tqdm=True,
)
watch = Watch()
trainer = CPOTrainer(
    model=model,
    args=training_args,
    train_dataset=dataset["train"],
    eval_dataset=dataset["test"],
    processing_class=AutoTokenizer.from_pretrained("model"),
    callbacks=[watch],
    optimizers=(optimizer, get_constant_schedule_with_warmup(optimizer, 2)),
)
trainer.train()
trainer.save_model()
metrics = trainer.evaluate()
