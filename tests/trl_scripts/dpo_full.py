"""DPO as in TRL's quick start: a model by its path, chats, all weights."""

from datasets import load_dataset
from trl import DPOConfig, DPOTrainer

dataset = load_dataset("json", data_files="chat_pairs.jsonl", split="train")
training_args = DPOConfig(
    output_dir="aligned",
    num_train_epochs=2,
    per_device_train_batch_size=4,
    learning_rate=3e-3,
    warmup_steps=2,
    logging_steps=1,
    bf16=False,
    use_cpu=True,
    report_to="none",
    disable_tqdm=True,
)
trainer = DPOTrainer(model="model", args=training_args, train_dataset=dataset)
trainer.train()
trainer.save_model()
