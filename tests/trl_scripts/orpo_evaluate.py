"""ORPO with evaluation at each step, a callback, of its own choice too."""

from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl.experimental.orpo import ORPOConfig, ORPOTrainer


class Watch(TrainerCallback):
    """Keep what happens; evaluate and save at a step of its own choice."""

    def __init__(self):
        self.seen = []

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            control.should_evaluate = control.should_save = True

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.seen.append(("log", state.global_step, logs.get("loss")))

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        self.seen.append(("evaluate", state.global_step, metrics["eval_loss"]))

    def on_save(self, args, state, control, **kwargs):
        self.seen.append(("save", state.global_step, None))


dataset = load_dataset("json", data_files="titles.jsonl", split="train")
dataset = dataset.train_test_split(test_size=6, seed=42)
training_args = ORPOConfig(
    output_dir="aligned",
    beta=0.1,
    learning_rate=3e-3,
    lr_scheduler_type="linear",
    max_steps=6,
    per_device_train_batch_size=1,
    per_device_eval_batch_size=1,
    eval_strategy="steps",
    eval_steps=2,
    save_strategy="no",
    logging_first_step=True,
    logging_steps=1,
    seed=7,
    bf16=False,
    use_cpu=True,
    report_to="none",
    disable_tqdm=True,
)
watch = Watch()
trainer = ORPOTrainer(
    model=AutoModelForCausalLM.from_pretrained("model"),
    args=training_args,
    train_dataset=dataset["train"],
    eval_dataset=dataset["test"],
    processing_class=AutoTokenizer.from_pretrained("model"),
    callbacks=[watch],
)
before = trainer.evaluate()
trainer.train()
trainer.save_model()
metrics = trainer.evaluate()
