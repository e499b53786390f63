"""Every kind of adapter that peft has: how it is made, on which model, and what comes of it."""

from dataclasses import dataclass, field, fields
from typing import Any

import peft
import pytest

VIRTUAL = "puts virtual tokens before the text"
TIED = r"is on (lm_head|model\.embed_tokens), whose weights are those of .*tie_word_embeddings"
TIE = {"tie_word_embeddings": True}


@dataclass(frozen=True)
class Kind:
    """A kind of adapter.

    Attributes:
        config: Name of the class of its configuration.
        fields: Of that.
        options: Of the class ``fields["..."]`` for fields that are configurations themselves.
        refused: What the error says; None for a kind that is trained.
        model: Name of the tiny model that it is put on.
        changes: Of that model's configuration.
        quick: Whether it is tested every time.
    """

    config: str = "LoraConfig"
    fields: dict[str, Any] = field(default_factory=dict)
    refused: str | None = None
    model: str = "llama"
    changes: dict[str, Any] = field(default_factory=dict)
    quick: bool = False

    def make(self) -> Any:
        """Return its configuration; skip the test where this peft has no such kind."""
        kind = getattr(peft, self.config, None)
        if kind is None:
            pytest.skip(f"peft {peft.__version__} has no {self.config}")
        given = {"task_type": "CAUSAL_LM"} | self.fields
        if self.config == "LoraConfig":
            given = {"r": 4, "lora_alpha": 8} | given
        unknown = set(given) - {item.name for item in fields(kind)}
        if unknown:
            pytest.skip(f"{self.config} of peft {peft.__version__} has no {sorted(unknown)}")
        made = {
            name: value.make() if isinstance(value, Part) else value
            for name, value in given.items()
        }
        if "target_modules" in {item.name for item in fields(kind)}:
            made.setdefault("target_modules", ["q_proj", "v_proj"])
        return kind(**made)


@dataclass(frozen=True)
class Part:
    """A configuration in a field of another one, made when it is asked for."""

    config: str
    fields: dict[str, Any] = field(default_factory=dict)

    def make(self) -> Any:
        """Return it; skip the test where this peft has no such class."""
        if not hasattr(peft, self.config):
            pytest.skip(f"peft {peft.__version__} has no {self.config}")
        return getattr(peft, self.config)(**self.fields)


def _lora(refused: str | None = None, quick: bool = False, **options: Any) -> Kind:
    model, changes = options.pop("model", "llama"), options.pop("changes", {})
    return Kind(fields=options, refused=refused, quick=quick, model=model, changes=changes)


_HEAD = {"target_modules": ["q_proj", "lm_head"]}
_EMBEDDING = {"target_modules": ["q_proj", "embed_tokens"]}
_BOTH = {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}
_EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]

LORA = {
    "LoRA": _lora(quick=True),
    "LoRA, on GPT-2": _lora(
        target_modules=["c_attn"], fan_in_fan_out=True, model="gpt2", changes=TIE
    ),
    "LoRA, `target_modules='all-linear'`": _lora(target_modules="all-linear"),
    "LoRA, `exclude_modules`": _lora(target_modules="all-linear", exclude_modules=["k_proj"]),
    "LoRA, `layers_to_transform`": _lora(layers_to_transform=[1]),
    "LoRA, `rank_pattern`, `alpha_pattern`": _lora(
        rank_pattern={"q_proj": 2}, alpha_pattern={"v_proj": 16}
    ),
    "LoRA, `target_parameters` (experts)": _lora(
        target_modules=[],
        target_parameters=_EXPERTS,
        model="qwen3_moe",
        changes={"router_aux_loss_coef": 0.0},
    ),
    "LoRA on the head": _lora(**_HEAD),
    "LoRA on the embedding": _lora(**_EMBEDDING),
    "LoRA on both": _lora(**_BOTH),
    "LoRA on both, `ensure_weight_tying`": _lora(ensure_weight_tying=True, **_BOTH),
    "LoRA on a tied head": _lora(TIED, quick=True, changes=TIE, **_HEAD),
    "LoRA on a tied embedding": _lora(TIED, changes=TIE, **_EMBEDDING),
    "LoRA on both, tied": _lora(TIED, changes=TIE, **_BOTH),
    "LoRA on both, tied, `ensure_weight_tying`": _lora(
        TIED, changes=TIE, ensure_weight_tying=True, **_BOTH
    ),
    "LoRA, `modules_to_save` the head": _lora(modules_to_save=["lm_head"]),
    "LoRA, `modules_to_save` a tied head": _lora(
        quick=True, changes=TIE, modules_to_save=["lm_head"]
    ),
    "LoRA, `modules_to_save` head and embedding": _lora(
        modules_to_save=["lm_head", "embed_tokens"]
    ),
    "LoRA, `modules_to_save` both, tied": _lora(
        changes=TIE, modules_to_save=["lm_head", "embed_tokens"]
    ),
    "LoRA, `modules_to_save` both, `ensure_weight_tying`": _lora(
        changes=TIE, modules_to_save=["embed_tokens"], ensure_weight_tying=True
    ),
    "LoRA, `modules_to_save` a norm": _lora(modules_to_save=["norm"]),
    "LoRA, `trainable_token_indices`": _lora(trainable_token_indices=[3, 4, 5]),
    "LoRA, `trainable_token_indices`, tied": _lora(
        quick=True, changes=TIE, trainable_token_indices=[3, 4, 5]
    ),
    "LoRA, `bias='all'`": _lora(bias="all", changes={"attention_bias": True}),
    "LoRA, `bias='lora_only'`": _lora(bias="lora_only", changes={"attention_bias": True}),
    "LoRA, `lora_bias`": _lora(lora_bias=True, changes={"attention_bias": True}),
    "LoRA, `lora_dropout`": _lora(lora_dropout=0.5),
    "LoRA, `layer_replication`": _lora(
        "layers that share their weights", quick=True, layer_replication=[[0, 2], [1, 2]]
    ),
    "rsLoRA": _lora(use_rslora=True),
    "DoRA": _lora(quick=True, use_dora=True),
    "DoRA, tied": _lora(changes=TIE, use_dora=True),
    "gaussian": _lora(init_lora_weights="gaussian"),
    "`init_lora_weights=False`": _lora(init_lora_weights=False),
    "PiSSA": _lora(quick=True, init_lora_weights="pissa"),
    "PiSSA, rsLoRA": _lora(init_lora_weights="pissa", use_rslora=True),
    "PiSSA, DoRA": _lora(init_lora_weights="pissa", use_dora=True),
    "PiSSA, `rank_pattern`": _lora(init_lora_weights="pissa", rank_pattern={"q_proj": 2}),
    "PiSSA, `niter`": _lora("does not repeat", quick=True, init_lora_weights="pissa_niter_4"),
    "OLoRA": _lora(init_lora_weights="olora"),
    "EVA": _lora(init_lora_weights="eva", eva_config=Part("EvaConfig")),
    "orthogonal": _lora(init_lora_weights="orthogonal"),
    "MiCA": _lora(init_lora_weights="mica"),
    "LoRA-GA": _lora(
        "does not repeat", init_lora_weights="lora_ga", lora_ga_config=Part("LoraGAConfig")
    ),
    "QALoRA": _lora(use_qalora=True),
    "VeLoRA": _lora(velora_config=Part("VeloraConfig")),
    "BD-LoRA": _lora(
        use_bdlora=Part(
            "BdLoraConfig",
            {"target_modules_bd_a": ["q_proj"], "target_modules_bd_b": ["v_proj"], "nblocks": 2},
        )
    ),
    "aLoRA": _lora("peft's wrapper tells its layers", quick=True, alora_invocation_tokens=[7, 8]),
    "KaSA": _lora("penalty of its own", kasa_config=Part("KasaConfig")),
    "MonteCLoRA": _lora("penalty of its own", monteclora_config=Part("MontecloraConfig")),
}

_WIDE_IA3 = {
    "target_modules": ["k_proj", "v_proj", "down_proj"],
    "feedforward_modules": ["down_proj"],
}
_VBLORA = {"vector_length": 8, "num_vectors": 16, "r": 2}
_CPT = {"cpt_token_ids": [3, 4], "cpt_mask": [1, 1], "cpt_tokens_type_mask": [1, 1]}
_TOKENS = {"num_virtual_tokens": 4}

OTHERS = {
    "AdaLoRA": Kind("AdaLoraConfig", {"total_step": 20}, "update_and_allocate", quick=True),
    "AdaMSS": Kind("AdamssConfig", {"r": 8, "num_subspaces": 2}, "update_and_allocate"),
    "adaption prompt": Kind(
        "AdaptionPromptConfig",
        {"adapter_len": 4, "adapter_layers": 1, "target_modules": None},
        "cannot be merged",
    ),
    "BEFT": Kind("BeftConfig", changes={"attention_bias": True}),
    "BOFT": Kind("BOFTConfig"),
    "C3A": Kind("C3AConfig", {"block_size": 8}),
    "Cartridges": Kind("CartridgeConfig", _TOKENS, VIRTUAL),
    "CPT": Kind("CPTConfig", _CPT, VIRTUAL),
    "DEFT": Kind("DeftConfig"),
    "DeLoRA": Kind("DeloraConfig"),
    "FourierFT": Kind("FourierFTConfig", {"n_frequency": 50}),
    "FRoD": Kind("FrodConfig", {"progressbar": False}),
    "GLoRA": Kind("GloraConfig"),
    "GraLoRA": Kind("GraloraConfig", {"r": 4, "alpha": 8}),
    "HiRA": Kind("HiraConfig", {"r": 4}),
    "HRA": Kind("HRAConfig"),
    "IA3": Kind("IA3Config", _WIDE_IA3),
    "Lily": Kind("LilyConfig", {"r": 4}, "adapter .* looks both ways"),
    "LN tuning": Kind("LNTuningConfig", {"target_modules": ["input_layernorm", "norm"]}),
    "LoHa": Kind("LoHaConfig", {"r": 4}),
    "LoKr": Kind("LoKrConfig", {"r": 4}),
    "MiSS": Kind("MissConfig", {"r": 8}),
    "MiSS, bat": Kind("MissConfig", {"r": 8, "init_weights": "bat"}),
    "multitask prompt tuning": Kind("MultitaskPromptTuningConfig", _TOKENS, VIRTUAL),
    "OFT": Kind("OFTConfig", {"oft_block_size": 8}, quick=True),
    "OSF": Kind("OSFConfig", {"effective_rank": 8}),
    "P-tuning": Kind("PromptEncoderConfig", _TOKENS, VIRTUAL),
    "PEANuT": Kind("PeanutConfig", {"r": 4}),
    "Poly": Kind("PolyConfig", {"r": 4}, "task_ids"),
    "prefix tuning": Kind("PrefixTuningConfig", _TOKENS, VIRTUAL),
    "prompt tuning": Kind("PromptTuningConfig", _TOKENS, VIRTUAL, quick=True),
    "PSOFT": Kind("PsoftConfig", {"r": 4}),
    "PVeRA": Kind("PveraConfig", {"r": 4}),
    "RandLoRA": Kind("RandLoraConfig", {"r": 4}),
    "RoAd": Kind("RoadConfig", {"group_size": 8}),
    "Shadow": Kind("ShadowConfig", {}, "cannot be scored"),
    "SHiRA": Kind("ShiraConfig", {"r": 4}),
    "SuperTuning": Kind("SupertuningConfig", {"sparsity": 0.5}),
    "TinyLoRA": Kind("TinyLoraConfig"),
    "trainable tokens": Kind("TrainableTokensConfig", {"token_indices": [3, 4, 5]}),
    "trainable tokens, tied": Kind(
        "TrainableTokensConfig", {"token_indices": [3, 4, 5]}, changes=TIE
    ),
    "Uni-LoRA": Kind("UniLoraConfig"),
    "VB-LoRA": Kind("VBLoRAConfig", _VBLORA),
    "VB-LoRA, `save_only_topk_weights`": Kind(
        "VBLoRAConfig", _VBLORA | {"save_only_topk_weights": True}, "saved in part"
    ),
    "VeRA": Kind("VeraConfig", {"r": 4}),
    "WaveFT": Kind("WaveFTConfig", {"n_frequency": 50}),
}

# X-LoRA is put on adapters that are saved already: tests/engine/test_wrapper.py.
KINDS = LORA | OTHERS
