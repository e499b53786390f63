"""KTO of all weights on thumbs: plain text, the whole data set in a batch."""

from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import KTOConfig, KTOTrainer

model = AutoModelForCausalLM.from_pretrained("model")
tokenizer = AutoTokenizer.from_pretrained("model")
train_dataset = load_dataset("json", data_files="thumbs.jsonl", split="train")

training_args = KTOConfig(
    output_dir="aligned",
    beta=0.2,
    desirable_weight=1.0,
    undesirable_weight=1.3,
    learning_rate=3e-3,
    num_train_epochs=6,
    per_device_train_batch_size=16,
    logging_steps=1,
    bf16=False,
    use_cpu=True,
    report_to="none",
    disable_tqdm=True,
)
trainer = KTOTrainer(
    model=model, args=training_args, processing_class=tokenizer, train_dataset=train_dataset
)
trainer.train()
trainer.save_model("aligned")
