"""A GPU that is imagined: tensors with shapes, devices and no values, and a watch for what makes the host wait for it.

torch's fake tensors say what each operation gives and where, without a driver. A line that needs a value, a number of
values or both devices at once raises; `watched` refuses as well what fake tensors let pass and a GPU would wait for.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import fields
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model.config import ModelConfig
from model.data.images import Batch
from model.network.retinanet import RetinaNetConf, build_detector

CUDA = torch.device("cuda", 0)
INDEXING = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_unsafe_index", "aten::_index_put_impl_")
COPIES = ("aten::_to_copy", "aten::copy_")


class HostWaitsError(AssertionError):
    """An operation that would make the host wait for the GPU, or the GPU for the host."""


@contextmanager
def imagined_cuda(*, compiling: bool = False) -> Iterator[None]:
    """Let every tensor be a fake one, of `cuda` as well as of the CPU; what `model` keeps is forgotten on both ends.

    Args:
        compiling: leave out what torch.compile refuses beside fake tensors, which an optimizer needs alone.
    """
    mode = FakeTensorMode()
    # Module.to swaps parameters, and refuses those that the mode remembers weakly.
    mode.fake_tensor_converter.set_tensor_memo = lambda t, v: None  # type: ignore[method-assign]
    _forget()
    try:
        with (
            # Both ask the driver.
            mock.patch("torch.cuda.amp.common.amp_definitely_not_available", return_value=False),
            mock.patch("torch.cuda.is_bf16_supported", return_value=True),
            mock.patch("torch.autograd._engine_run_backward", run_backward),
            mode,
            nullcontext() if compiling else _InPlace(),
        ):
            yield
    finally:
        _forget()


@contextmanager
def watched(sent: Sequence[Batch] = ()) -> Iterator[None]:
    """Refuse what makes the host and the GPU wait for each other.

    Args:
        sent: batches on the host whose tensors may go to the GPU, if nothing waits for them.

    Raises:
        HostWaitsError: names the operation; its traceback ends in the line that asked for it.
    """
    tensors = [getattr(batch, field.name) for batch in sent for field in fields(batch)]
    with _Watch(tensors):
        yield


def detector_on_cuda(config: ModelConfig, num_classes: int = 3) -> RetinaNetConf:
    """A detector whose weights lie on the imagined GPU."""
    with CUDA:
        return build_detector(config, num_classes, seed=0)


class _InPlace(TorchDispatchMode):
    """Does for fake tensors what torch has no rule for: a fused SGD changes values alone."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._fused_sgd_.default:
            assert {leaf.device for leaf in tree_leaves(args) if isinstance(leaf, Tensor)} == {CUDA}
            return None
        return func(*args, **(kwargs or {}))


class _Watch(TorchDispatchMode):
    def __init__(self, sent: Sequence[Tensor]) -> None:
        super().__init__()
        self.sent = sent

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # `prim` asks for properties, and cannot be looked up.
        is_operation = isinstance(func, torch._ops.OpOverload) and func.namespace != "prim"
        if is_operation and torch.is_inference_mode_enabled():
            # There, an operation that is made of others (`to`, `item`) arrives whole.
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        reason = self._objection(func, args, kwargs)
        if reason is not None:
            raise HostWaitsError(f"{func}: {reason}")
        return func(*args, **kwargs)

    def _objection(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> str | None:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        name = func._schema.name if isinstance(func, torch._ops.OpOverload) else ""
        if name in COPIES:
            return self._objection_to_copy(name, args, kwargs)
        if not any(tensor.device.type == "cuda" for tensor in tensors):
            return None
        if name in INDEXING:
            return _objection_to_indices(args[1])
        if any(tensor.device.type == "cpu" and tensor.ndim > 0 for tensor in tensors):
            return "takes tensors of both devices"
        if torch.Tag.data_dependent_output in func.tags:
            return "its result is a number on the host"
        if torch.Tag.dynamic_output_shape in func.tags and kwargs.get("output_size") is None:
            return "the size of its result depends on values"
        return None

    def _objection_to_copy(self, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> str | None:
        if name == "aten::copy_":
            to, source = args[0].device, args[1]
            waits = not (kwargs.get("non_blocking") or (len(args) > 2 and args[2]))
        else:
            source = args[0]
            to, waits = torch.device(kwargs.get("device") or source.device), not kwargs.get("non_blocking")
        if to.type == source.device.type:
            return None
        if to.type == "cpu":
            return "copies from the GPU to the host"
        if waits or not any(source is tensor for tensor in self.sent):
            return "copies to the GPU what is no part of the batch, or waits for it"
        return None


def _objection_to_indices(indices: Sequence[Tensor | None]) -> str | None:
    given = [index for index in indices if index is not None]
    if any(index.dtype in (torch.bool, torch.uint8) for index in given):
        return "the number of chosen elements depends on values"
    if any(index.device.type == "cpu" for index in given):
        return "copies indices to the GPU"
    return None


def _forget() -> None:
    """Empty all caches of functions of `model`: a fake tensor must not stay there, nor a real one be found."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "model":
            for value in list(vars(module).values()):
                if hasattr(value, "cache_clear"):
                    value.cache_clear()


def run_backward(
    roots: Sequence[Tensor],
    gradients: Sequence[Tensor | None],
    keep_graph: bool,
    create_graph: bool,
    inputs: Sequence[Tensor] = (),
    *,
    allow_unreachable: bool = False,
    accumulate_grad: bool = False,
) -> tuple[Tensor | None, ...]:
    """Call the nodes of the backward pass in the order of autograd's engine, which asks the driver for its streams."""
    assert not create_graph and not inputs and accumulate_grad
    waiting: dict[Any, list[Tensor | None]] = {}
    for root, gradient in zip(roots, gradients, strict=True):
        _add(waiting, root.grad_fn, root.output_nr, torch.ones_like(root) if gradient is None else gradient)
    # A node comes after all that it takes gradients from.
    for node in _in_order([root.grad_fn for root in roots]):
        given = waiting.pop(node, None)
        if given is None:
            continue
        with torch.no_grad():
            if hasattr(node, "variable"):  # the end of a branch
                (gradient,) = given
                leaf = node.variable
                # In place, as the engine does: a gradient may be a part of a larger tensor.
                leaf.grad = gradient if leaf.grad is None or gradient is None else leaf.grad.add_(gradient)
                continue
            found = (node.apply if hasattr(node, "_forward_cls") else node)(*given)
        for gradient, (after, place) in zip(_tuple(found), node.next_functions, strict=False):
            if gradient is not None and after is not None:
                _add(waiting, after, place, gradient)
    return ()


def _tuple(found: Any) -> tuple[Tensor | None, ...]:
    return tuple(found) if isinstance(found, tuple | list) else (found,)


def _add(waiting: dict[Any, list[Tensor | None]], node: Any, place: int, gradient: Tensor) -> None:
    # What was broadcast is summed, and what was cast is cast back, between the nodes.
    wanted = node._input_metadata[place]
    gradient = gradient.sum_to_size(wanted.shape).to(wanted.dtype)
    given = waiting.setdefault(node, [None] * len(node._input_metadata))
    earlier = given[place]
    given[place] = gradient if earlier is None else earlier + gradient


def _in_order(roots: Sequence[Any]) -> list[Any]:
    """All nodes behind the roots, each before those that it hands gradients to."""
    finished: list[Any] = []
    seen: set[Any] = set()
    stack = [(root, False) for root in roots]
    while stack:
        node, done = stack.pop()
        if done:
            finished.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack += [(after, False) for after, _ in node.next_functions if after is not None]
    return finished[::-1]
