"""ORPO as on TRL's page: all weights; prompts of one token, and a pair in each batch."""

from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

model = AutoModelForCausalLM.from_pretrained("model")
tokenizer = AutoTokenizer.from_pretrained("model")
train_dataset = load_dataset("json", data_files="titles.jsonl", split="train")

training_args = ORPOConfig(
    output_dir="aligned",
    beta=0.25,
    max_length=64,
    learning_rate=3e-3,
    max_steps=8,
    per_device_train_batch_size=1,
    gradient_accumulation_steps=4,
    logging_steps=1,
    bf16=False,
    use_cpu=True,
    report_to="none",
    disable_tqdm=True,
)
trainer = ORPOTrainer(
    model=model, args=training_args, processing_class=tokenizer, train_dataset=train_dataset
)
trainer.train()
trainer.save_model()
