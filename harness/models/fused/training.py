"""Linear layers and depthwise convolutions of a block of CAMixerSR with their gradients (projection.h, depthwise.h).

Shape suffixes: those of models/camixersr.py.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from harness.models.fused.maps import compiled, structure, threads_for

_Projection = structure(
    "Projection",
    integers="pixels inputs outputs threads backward",
    pointers="input weight bias output grad weight_grad bias_grad workspace",
)
_MixerConvolutions = structure(
    "MixerConvolutions",
    integers="images height width channels threads backward",
    pointers=(
        "input attention depthwise_weight depthwise_bias dilated_weight dilated_bias output grad "
        "attention_grad depthwise_weight_grad depthwise_bias_grad dilated_weight_grad dilated_bias_grad workspace"
    ),
)
_GatedConvolution = structure(
    "GatedConvolution",
    integers="images height width channels threads backward",
    pointers="input weight output grad weight_grad workspace",
)
_MIXED = ("input", "attention", "depthwise_weight", "depthwise_bias", "dilated_weight", "dilated_bias")


def project(layer: nn.Linear, x: Tensor) -> Tensor:
    """Return what a linear layer gives."""
    projected: Tensor = _Project.apply(x, layer.weight, layer.bias)  # type: ignore[no-untyped-call]
    return projected


def convolve_mixed(
    mixed_BHWC: Tensor, attention_B11C: Tensor | None, depthwise: nn.Conv2d, dilated: nn.Conv2d
) -> Tensor:
    """Return a·GELU(dilated(depthwise(x))) + x for channel attention a."""
    convolved: Tensor = _ConvolveMixed.apply(  # type: ignore[no-untyped-call]
        mixed_BHWC, attention_B11C, depthwise.weight, depthwise.bias, dilated.weight, dilated.bias
    )
    return convolved


def convolve_gated(expanded_BHWC: Tensor, weight_C133: Tensor) -> Tensor:
    """Return GELU(d(e)₁)·d(e)₂ for the halves of the channels, d the depthwise convolution.

    `expanded_BHWC` and the weight have twice the channels of the result.
    """
    gated: Tensor = _ConvolveGated.apply(expanded_BHWC, weight_C133)  # type: ignore[no-untyped-call]
    return gated


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        x, weight = x.contiguous(), weight.contiguous()
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        bias = None if bias is None else bias.contiguous()
        output = x.new_empty(*x.shape[:-1], len(weight))
        _run("projection", _describe_projection(x, weight, bias=bias, output=output))
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        x_grad = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        weight_grad = torch.empty_like(weight)
        bias_grad = weight.new_empty(len(weight)) if ctx.has_bias else None
        grad = grad.contiguous()
        call = _describe_projection(x, weight, output=x_grad, grad=grad, weight_grad=weight_grad, bias_grad=bias_grad)
        _run("projection", call)
        return x_grad, weight_grad, bias_grad


class _ConvolveMixed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Tensor | None) -> Tensor:
        """Of `_MIXED`."""
        inputs = tuple(None if one is None else one.contiguous() for one in inputs)
        mixed_BHWC = inputs[0]
        assert mixed_BHWC is not None
        ctx.save_for_backward(*inputs)
        output_BHWC = torch.empty_like(mixed_BHWC)
        call = _describe(_MixerConvolutions, output_BHWC, output=output_BHWC, **dict(zip(_MIXED, inputs, strict=True)))
        _run("mixer_convolutions", call)
        return output_BHWC

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BHWC: Tensor) -> tuple[Tensor | None, ...]:
        inputs = dict(zip(_MIXED, ctx.saved_tensors, strict=True))
        grads = {name: None if one is None else torch.empty_like(one) for name, one in inputs.items()}
        written = {"output" if name == "input" else f"{name}_grad": grad for name, grad in grads.items()}
        grad_BHWC = grad_BHWC.contiguous()
        _run("mixer_convolutions", _describe(_MixerConvolutions, grad_BHWC, grad=grad_BHWC, **inputs, **written))
        return tuple(grads.values())


class _ConvolveGated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, expanded_BHWC: Tensor, weight_C133: Tensor) -> Tensor:
        expanded_BHWC, weight_C133 = expanded_BHWC.contiguous(), weight_C133.contiguous()
        ctx.save_for_backward(expanded_BHWC, weight_C133)
        output_BHWC = expanded_BHWC.new_empty(*expanded_BHWC.shape[:-1], len(weight_C133) // 2)
        call = _describe(_GatedConvolution, output_BHWC, input=expanded_BHWC, weight=weight_C133, output=output_BHWC)
        _run("gated_convolution", call)
        return output_BHWC

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BHWC: Tensor) -> tuple[Tensor, Tensor]:
        expanded_BHWC, weight_C133 = ctx.saved_tensors
        expanded_grad_BHWC, weight_grad_C133 = torch.empty_like(expanded_BHWC), torch.empty_like(weight_C133)
        grad_BHWC = grad_BHWC.contiguous()
        call = _describe(
            _GatedConvolution,
            grad_BHWC,
            input=expanded_BHWC,
            weight=weight_C133,
            output=expanded_grad_BHWC,
            grad=grad_BHWC,
            weight_grad=weight_grad_C133,
        )
        _run("gated_convolution", call)
        return expanded_grad_BHWC, weight_grad_C133


def _describe_projection(x: Tensor, weight: Tensor, **others: Tensor | None) -> Any:
    outputs, inputs = weight.shape
    if x.shape[-1] != inputs:
        raise RuntimeError(f"a linear layer of {inputs} features got {x.shape[-1]}")
    pixels = x.numel() // inputs
    return _Projection(
        pixels=pixels,
        inputs=inputs,
        outputs=outputs,
        threads=threads_for((pixels, max(inputs, outputs))),
        **_addressed(input=x, weight=weight, **others),
    )


def _describe(kind: type[Any], output_BHWC: Tensor, **tensors: Tensor | None) -> Any:
    """Describe a call of a kernel for convolutions; `output_BHWC`: what it gives, or has the gradient of."""
    B, H, W, C = output_BHWC.shape
    width = 2 * C if kind is _GatedConvolution else C
    lengths = [len(one) for name, one in tensors.items() if one is not None and name.endswith(("weight", "bias"))]
    features = tensors["input"]
    assert features is not None
    if {features.shape[-1], *lengths} != {width}:
        raise RuntimeError(f"convolutions of {features.shape[-1]} channels got parameters of {sorted(set(lengths))}")
    return kind(images=B, height=H, width=W, channels=C, threads=threads_for((B, H, W, C)), **_addressed(**tensors))


def _addressed(**tensors: Tensor | None) -> dict[str, int | None]:
    """Return where tensors lie, and whether the pass is a backward one."""
    addresses: dict[str, int | None] = {
        name: None if tensor is None else tensor.data_ptr() for name, tensor in tensors.items()
    }
    return {**addresses, "backward": "grad" in tensors}


def _run(name: str, call: Any) -> None:
    library, reference = compiled(), ctypes.byref(call)
    size = library.function(f"{name}_workspace", (ctypes.c_void_p,), ctypes.c_int64)(reference)
    workspace = torch.empty(size + 64, dtype=torch.uint8, device="cpu")
    call.workspace = -(-workspace.data_ptr() // 64) * 64
    library.function(f"{name}_run", (ctypes.c_void_p,), ctypes.c_int)(reference)
