"""SimPO as on TRL's page of CPO: chats, an adapter, batches accumulated."""

from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.experimental.cpo import CPOConfig, CPOTrainer

model = AutoModelForCausalLM.from_pretrained("model")
tokenizer = AutoTokenizer.from_pretrained("model")
train_dataset = load_dataset("json", data_files="chat_pairs.jsonl", split="train")

training_args = CPOConfig(
    output_dir="aligned",
    loss_type="simpo",
    cpo_alpha=0.0,
    simpo_gamma=1.0,
    beta=2.0,
    learning_rate=1e-2,
    lr_scheduler_type="cosine",
    warmup_steps=1,
    max_steps=6,
    per_device_train_batch_size=2,
    gradient_accumulation_steps=2,
    gradient_checkpointing_kwargs={"use_reentrant": False},
    logging_steps=1,
    bf16=False,
    use_cpu=True,
    report_to="none",
    disable_tqdm=True,
)
trainer = CPOTrainer(
    model,
    training_args,
    train_dataset=train_dataset,
    processing_class=tokenizer,
    peft_config=LoraConfig(r=4, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"),
)
trainer.train()
trainer.save_model()
