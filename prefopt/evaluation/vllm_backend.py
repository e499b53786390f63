"""Answers written by vLLM, where it is installed: the same prompts, the same kind of samples."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prefopt.evaluation.sampling import Sampling
from prefopt.training.loading import SavedAdapter

__all__ = ["VllmModel", "load_vllm"]


@dataclass(frozen=True)
class VllmModel:
    """A model that vLLM has loaded.

    Attributes:
        engine: A ``vllm.LLM``.
        adapter: A ``vllm.lora.request.LoRARequest``; None for none.
    """

    engine: Any
    adapter: Any = None

    @property
    def window(self) -> int | None:
        """How many tokens it reads at most; None where it does not say."""
        config = getattr(getattr(self.engine, "llm_engine", None), "model_config", None)
        return getattr(config, "max_model_len", None)

    def write(
        self,
        prompt_ids: Sequence[list[int]],
        sampling: Sampling,
        ends: list[int],
        progress: bool | None,
    ) -> list[list[int]]:
        """Return the token ids of all answers, with the token that ends each.

        Args:
            prompt_ids: Token ids of the prompts.
            sampling: How answers are drawn.
            ends: Tokens that end an answer.
            progress: Whether to show a bar; None leaves it to vLLM.
        """
        from vllm import SamplingParams

        options = SamplingParams(
            n=sampling.samples,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            max_tokens=sampling.max_new_tokens,
            seed=sampling.seed,
            stop_token_ids=ends,
            detokenize=False,
        )
        asked = [{"prompt_token_ids": ids} for ids in prompt_ids]
        use_tqdm = {} if progress is None else {"use_tqdm": progress}
        found = self.engine.generate(asked, options, lora_request=self.adapter, **use_tqdm)
        return [list(answer.token_ids) for one in found for answer in one.outputs]


def load_vllm(name: str, **options: Any) -> VllmModel:
    """Return a model by id or folder, or an adapter on its base model, loaded by vLLM.

    Args:
        name: The id or folder.
        options: Of ``vllm.LLM``.

    Raises:
        ImportError: If vLLM is not installed.
    """
    try:
        from vllm import LLM
        from vllm.lora.request import LoRARequest
    except ImportError:
        raise ImportError("backend 'vllm' needs vLLM: pip install vllm") from None
    adapter = SavedAdapter.find(name, {})
    # Settings of the checkpoint, as top-k or a repetition penalty, take no part.
    given = {"generation_config": "vllm", **options}
    if adapter is None:
        return VllmModel(LLM(model=name, **given))
    engine = LLM(model=adapter.base, enable_lora=True, max_lora_rank=_rank(name), **given)
    return VllmModel(engine, LoRARequest("adapter", 1, name))


def _rank(adapter: str) -> int:
    """Return the rank for which vLLM must keep room; it takes powers of 2 from 8 on."""
    from peft import PeftConfig

    config = PeftConfig.from_pretrained(adapter)
    of_layers = getattr(config, "rank_pattern", None) or {}
    largest = max(int(getattr(config, "r", 8)), *map(int, of_layers.values()), 8)
    return 1 << (largest - 1).bit_length()
