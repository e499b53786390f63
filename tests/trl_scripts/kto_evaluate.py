"""KTO with evaluation: two held-out sets by name, a callback, a reference of its own."""

from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import KTOConfig, KTOTrainer


class Watch(TrainerCallback):
    """Keep what is logged of the KL divergence and of the held-out sets, and stop early."""

    def __init__(self):
        self.seen = []

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 5:
            control.should_training_stop = True

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.seen.append(("log", state.global_step, logs.get("kl")))

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        found = [metrics[name] for name in sorted(metrics) if name.endswith("_loss")]
        self.seen.append(("evaluate", state.global_step, found[0]))


dataset = load_dataset("json", data_files="thumbs.jsonl", split="train")
held_out = load_dataset("json", data_files="more_thumbs.jsonl", split="train")
training_args = KTOConfig(
    output_dir="aligned",
    beta=0.3,
    learning_rate=3e-3,
    lr_scheduler_type="constant",
    max_steps=10,
    per_device_train_batch_size=16,
    per_device_eval_batch_size=16,
    precompute_ref_log_probs=True,
    eval_strategy="epoch",
    save_strategy="no",
    logging_strategy="steps",
    logging_steps=1,
    bf16=False,
    use_cpu=True,
    report_to="none",
    disable_tqdm=True,
)
watch = Watch()
trainer = KTOTrainer(
    model=AutoModelForCausalLM.from_pretrained("model"),
    ref_model=AutoModelForCausalLM.from_pretrained("reference"),
    args=training_args,
    train_dataset=dataset,
    eval_dataset={"seen": dataset, "unseen": held_out},
    processing_class=AutoTokenizer.from_pretrained("model"),
    callbacks=[watch],
)
before = trainer.evaluate()
trainer.train()
trainer.save_model()
metrics = trainer.evaluate()
