"""CPO as on TRL's page: plain pairs, all weights."""

from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.experimental.cpo import CPOConfig, CPOTrainer

model = AutoModelForCausalLM.from_pretrained("model")
tokenizer = AutoTokenizer.from_pretrained("model")
train_dataset = load_dataset("json", data_files="pairs.jsonl", split="train")

training_args = CPOConfig(
    output_dir="aligned",
    loss_type="sigmoid",
    cpo_alpha=0.5,
    beta=0.2,
    label_smoothing=0.1,
    max_length=64,
    learning_rate=3e-3,
    num_train_epochs=1,
    per_device_train_batch_size=4,
    remove_unused_columns=False,
    logging_steps=1,
    bf16=False,
    use_cpu=True,
    report_to="none",
    disable_tqdm=True,
)
trainer = CPOTrainer(
    model=model, args=training_args, processing_class=tokenizer, train_dataset=train_dataset
)
trainer.train()
trainer.save_model()
