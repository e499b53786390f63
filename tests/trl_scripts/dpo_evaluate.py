"""DPO of several losses, as TRL's page on MPO: a reference of its own, the best checkpoint kept."""

from datasets import load_dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    EarlyStoppingCallback,
    TrainerCallback,
)
from trl import DPOConfig, DPOTrainer


class Watch(TrainerCallback):
    """Keep what happens, and the margins that evaluation finds."""

    def __init__(self):
        self.seen = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.seen.append(("log", state.global_step, logs.get("rewards/margins")))

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        self.seen.append(("evaluate", state.global_step, metrics["eval_rewards/margins"]))

    def on_save(self, args, state, control, **kwargs):
        self.seen.append(("save", state.global_step, state.best_metric))


model = AutoModelForCausalLM.from_pretrained("model")
ref_model = AutoModelForCausalLM.from_pretrained("reference")
tokenizer = AutoTokenizer.from_pretrained("model")
dataset = load_dataset("json", data_files="pairs.jsonl", split="train")
dataset = dataset.train_test_split(test_size=8, seed=42)

training_args = DPOConfig(
    output_dir="aligned",
    loss_type=["sigmoid", "bco_pair", "sft"],
    loss_weights=[0.8, 0.2, 1.0],
    beta=0.3,
    max_length=64,
    learning_rate=3e-3,
    lr_scheduler_type="cosine",
    per_device_train_batch_size=4,
    per_device_eval_batch_size=8,
    max_steps=8,
    eval_strategy="steps",
    eval_steps=2,
    save_strategy="steps",
    save_steps=2,
    save_total_limit=2,
    load_best_model_at_end=True,
    metric_for_best_model="eval_rewards/margins",
    greater_is_better=True,
    logging_steps=1,
    bf16=False,
    use_cpu=True,
    report_to="none",
    disable_tqdm=True,
)
watch = Watch()
trainer = DPOTrainer(
    model=model,
    ref_model=ref_model,
    args=training_args,
    train_dataset=dataset["train"],
    eval_dataset=dataset["test"],
    processing_class=tokenizer,
    callbacks=[watch, EarlyStoppingCallback(early_stopping_patience=3)],
)
trainer.train()
trainer.save_model("aligned/best")
metrics = trainer.evaluate()
