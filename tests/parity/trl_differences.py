"""What differs between TRL 1.16 and ``prefopt.trl``, with its cause and a script that shows it.

``docs/migration.md`` has the same list for readers, ``test_trl_scripts.py`` measures it.
"""

from dataclasses import dataclass

Edits = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Difference:
    """A meaning that differs.

    Attributes:
        why: The cause.
        script: The script that shows it.
        edits: Changes of its text under which it does.
        least: How far ``value`` is apart at least, at some step, relative to TRL's.
        value: What is compared: the loss of steps, or another number that is logged.
        data: Which models and data.
        mine: Changes instead of ``edits`` of ours alone, after which there is no difference.
        theirs: Changes instead of ``edits`` of TRL's alone, after which there is none.
        my_data: Data of ours alone, with which there is none.
    """

    why: str
    script: str
    edits: Edits
    least: float
    value: str = "loss"
    data: str = "plain"
    mine: Edits | None = None
    theirs: Edits | None = None
    my_data: str | None = None

    @property
    def is_explained(self) -> bool:
        """Whether taking the cause away, on one side, takes the difference away."""
        return (self.mine, self.theirs, self.my_data) != (None, None, None)


def _batch(size: int, accumulated: int = 1, was: int = 16) -> tuple[str, str]:
    return (
        f"per_device_train_batch_size={was},",
        f"per_device_train_batch_size={size}, gradient_accumulation_steps={accumulated},",
    )


_MPO = '["sigmoid", "bco_pair", "sft"],\n    loss_weights=[0.8, 0.2, 1.0],'


def _dpo(loss: str) -> Edits:
    return ((_MPO, f"{loss},"), ("max_steps=8", "max_steps=4"))


_APO = ("beta=0.2,", 'beta=0.2, loss_type="apo_zero_unpaired",')
_PAIRS = ('"thumbs.jsonl"', '"pairs.jsonl"')

DIFFERENCES = {
    "likelihood of ORPO": Difference(
        "TRL's likelihood term is the mean over all tokens of the batch, those of the prompts too; "
        "ours over the chosen completion, then over pairs. (The twelve scripts: the same with "
        "TRL's term made ours.)",
        "orpo_lora",
        (),
        1e-2,
    ),
    "mismatched completions of KTO": Difference(
        "TRL gives each row the completion before it in its batch, ours the one before it in the "
        "data. (Below: the same with TRL's batch for that made the data.)",
        "kto_full",
        (_batch(4), ("num_train_epochs=6", "num_train_epochs=2")),
        1e-3,
    ),
    "accumulation in KTO": Difference(
        "TRL estimates the KL divergence of each micro-batch, ours of the whole optimiser step, so "
        "that two batches of 8 accumulated are one of 16",
        "kto_full",
        (_batch(8, 2),),
        1e-3,
        theirs=(),
    ),
    "random order of thumbs": Difference(
        "ours mixes the two labels evenly where a random order is asked for",
        "kto_full",
        (_batch(4), _APO, ("num_train_epochs=6", "train_sampling_strategy='random'")),
        1e-3,
    ),
    "pairs for KTO": Difference(
        "TRL makes all chosen and then all rejected completions rows of their own, and its batch "
        "size counts those; ours counts pairs, whose two completions stay together",
        "kto_full",
        (_PAIRS, _APO, _batch(32), ("num_train_epochs=6", "max_steps=4")),
        1e-3,
        theirs=(_PAIRS, _APO, _batch(64), ("num_train_epochs=6", "max_steps=4")),
    ),
    "label smoothing of 'sigmoid'": Difference(
        "TRL's DPOTrainer ignores it there",
        "dpo_evaluate",
        _dpo('"sigmoid", label_smoothing=0.1'),
        1e-2,
        mine=_dpo('"sigmoid"'),
    ),
    "weights of WPO": Difference(
        "ours are at most 1, as in the authors' code; TRL has no limit. (The same where they are "
        "below: of less likely completions.)",
        "dpo_evaluate",
        _dpo('"sigmoid", use_weighting=True'),
        1e-2,
        data="likely",
    ),
    "accumulation of means over tokens": Difference(
        "the likelihood term of CPO, and 'sft' of DPO, is a mean over the tokens of the optimiser "
        "step here, in TRL the mean of the micro-batches' means",
        "cpo_full",
        (_batch(2, 2, was=4),),
        1e-4,
        theirs=(),
    ),
    "BOS in CPO and ORPO": Difference(
        "TRL's put BOS before each prompt where the tokenizer has such a token, ours leave it to "
        "the tokenizer, as TRL's DPO and KTO do",
        "cpo_full",
        (),
        1e-3,
        data="BOS not added",
        my_data="BOS added",
    ),
    "EOS of chats in CPO and ORPO": Difference(
        "TRL's put EOS behind what the chat template renders where it ends otherwise, ours leave "
        "it to the template, as TRL's DPO and KTO do",
        "cpo_lora",
        (),
        1e-3,
        data="turns end without EOS",
        my_data="the last turn ends with EOS",
    ),
    "means of evaluation": Difference(
        "ours are over all rows (of 'sft', all tokens) of the set, TRL's over batches: of a "
        "smaller last batch a row counts more",
        "dpo_evaluate",
        (
            ("per_device_eval_batch_size=8", "per_device_eval_batch_size=3"),
            ("max_steps=8", "max_steps=4"),
        ),
        1e-3,
        value="eval_logps/chosen",
        theirs=(("max_steps=8", "max_steps=4"),),
    ),
    "log-probs that CPO logs": Difference(
        "of 'simpo', 'alphapo' and 'ipo' TRL logs means over tokens as logps, ours always sums",
        "cpo_evaluate",
        (),
        1.0,
        value="logps/chosen",
    ),
    "log-probs that ORPO logs": Difference(
        "TRL logs means over tokens as logps, ours sums",
        "orpo_evaluate",
        (),
        1.0,
        value="logps/chosen",
    ),
    "logits that CPO and ORPO log": Difference(
        "TRL's mean is over all positions, those of the prompt and of padding too, ours is over "
        "those that predict the completion, as TRL's DPO and KTO have it",
        "cpo_lora",
        (),
        1e-3,
        value="logits/chosen",
    ),
    "rewards of 'sigmoid_norm'": Difference(
        "ours are beta times the log-ratio per token, which the loss compares; TRL logs the sum's",
        "dpo_evaluate",
        _dpo('"sigmoid_norm"'),
        0.1,
        value="rewards/margins",
    ),
    "rewards under a divergence": Difference(
        "ours are the scores of f_divergence_type, which the loss compares; TRL logs log-ratios",
        "dpo_evaluate",
        _dpo('"sigmoid", f_divergence_type="js_divergence"'),
        0.1,
        value="rewards/margins",
    ),
    "log-probs under ld_alpha": Difference(
        "TRL logs weighted sums, ours the log-probs of the completions",
        "dpo_evaluate",
        _dpo('"sigmoid", ld_alpha=0.4'),
        0.01,
        value="logps/chosen",
    ),
    "what KTO logs under accumulation": Difference(
        "ours are means over the rows of the optimiser step, TRL's over its micro-batches, "
        "whichever number of a label each has",
        "kto_lora",
        (),
        1e-3,
        value="logps/chosen",
    ),
}
