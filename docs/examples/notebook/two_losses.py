# %% [markdown]
# # From data to a compared pair of losses
#
# Preferences in a small world whose true reward is known, two losses trained on the same rows from
# the same start, and the difference between them with an interval. It needs no download and takes
# about a minute of one CPU core. For models and data of your own, change the cell of the data and
# the first line of the cell that trains; `prefopt compare` does the same with several seeds.

# %% [markdown]
# ## The data and the start
#
# Rows are plain dictionaries with `prompt`, `chosen` and `rejected`. The start is a tiny language
# model that has read the world's texts and knows nothing of preferences.

# %%
from datasets import Dataset

from prefopt.toy import build_model, build_tokenizer, fit_model, sample_pairs, true_reward

tokenizer = build_tokenizer()
start = fit_model(build_model(tokenizer), tokenizer, steps=200)
columns = ["prompt", "chosen", "rejected"]
train_rows = Dataset.from_list(sample_pairs(800)).select_columns(columns)
held_out = Dataset.from_list(sample_pairs(400, seed=1)).select_columns(columns)
train_rows[0]

# %% [markdown]
# ## Two losses
#
# Only the name differs. `log_ratios` puts both on one scale, and `eval_on_start` lets the curves
# begin where the start is.

# %%
import copy

from prefopt import PreferenceConfig, PreferenceTrainer


def train_with(loss, **hyperparameters):
    args = PreferenceConfig(
        f"two_losses/{loss}",
        loss_type=loss,
        **hyperparameters,
        learning_rate=1e-3,
        per_device_train_batch_size=32,
        num_train_epochs=2,
        eval_strategy="steps",
        eval_steps=5,
        eval_on_start=True,
        log_ratios=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = PreferenceTrainer(
        copy.deepcopy(start),
        args=args,
        train_dataset=train_rows,
        eval_dataset=held_out,
        processing_class=tokenizer,
    )
    trainer.train()
    return trainer


trainers = {"dpo": train_with("dpo", beta=0.3), "ipo": train_with("ipo", beta=0.3)}

# %% [markdown]
# ## Curves on held-out pairs

# %%
import matplotlib.pyplot as plt

figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
titles = {
    "eval_rewards/accuracies": "held-out accuracy",
    "eval_log_ratios/margins": "held-out margin of log-ratios, nats",
}
for axis, (metric, title) in zip(axes, titles.items()):
    for loss, trainer in trainers.items():
        points = [(e["step"], e[metric]) for e in trainer.state.log_history if metric in e]
        axis.plot(*zip(*points), marker="o", markersize=3, label=loss)
    axis.set(title=title, xlabel="optimiser step")
    axis.grid(alpha=0.3)
axes[0].legend(frameon=False)
figure

# %% [markdown]
# ## Which is better?
#
# Both judged the same rows, so it is the rows on which they disagree that count: a paired interval
# is narrower than the difference of two.

# %%
import torch

from prefopt.evaluation import correct_pairs, paired_difference, paired_test

correct = {}
for loss, trainer in trainers.items():
    chosen, rejected = map(torch.as_tensor, trainer.predict(held_out).predictions)
    correct[loss] = correct_pairs(chosen, rejected)
    print(f"{loss}: {correct[loss].mean():.3f} of {len(chosen)} held-out pairs")
difference = paired_difference(correct["dpo"], correct["ipo"])
p_value = paired_test(correct["dpo"], correct["ipo"])
print(
    f"dpo - ipo: {difference.value:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}], "
    f"p = {p_value:.3f}"
)

# %% [markdown]
# ## What they say
#
# In this world the true reward of an answer is known. Accuracy on pairs is not the whole story:
# what counts is what the model writes.

# %%
from prefopt.evaluation import generate, mean_interval

prompts = held_out.unique("prompt")[:64]
models = {"start": start, **{loss: trainer.model for loss, trainer in trainers.items()}}
rewards = {}
for name, model in models.items():
    answers = generate(model, tokenizer, prompts, samples=4, max_new_tokens=24, progress=False)
    rewards[name] = torch.tensor([true_reward(answer.text) for answer in answers])
    mean = mean_interval(rewards[name])
    print(f"{name:6} {mean.value:+.2f} [{mean.low:+.2f}, {mean.high:+.2f}]   {answers[0].text!r}")
