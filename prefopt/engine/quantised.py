"""Keep 4-bit weights in the form in which they can be trained.

On a CPU that multiplies in bf16, bitsandbytes (0.50) rewrites the 4-bit weights of a layer for good
at its first forward pass in evaluation mode. Their scales are rounded to bf16 then, and the kernel
that reads them has no backward pass: after one pass of a reference or an evaluation, no gradient
reaches what lies below the layer.
"""

from torch import nn


def keep_trainable(model: nn.Module) -> None:
    """Prevent bitsandbytes from packing a model's 4-bit weights for inference on CPU.

    Raises:
        ValueError: If weights have been packed already.
    """
    for name, layer in model.named_modules():
        if not hasattr(layer, "support_avx512bf16_for_cpu"):
            continue
        state = getattr(layer.weight, "quant_state", None)
        if getattr(state, "packing_format_for_cpu", False):
            raise ValueError(
                f"the 4-bit weights of {name} were packed for inference by a forward pass in "
                "evaluation mode on CPU, such as `generate`; bitsandbytes rounds them then, and "
                "they cannot be trained: load the model again, and train before you generate"
            )
        layer.support_avx512bf16_for_cpu = False
