"""Models whose tables outgrow a device: FSDP by accelerate's own configuration, and full weights for checkpoints.

With ``accelerate launch --use_fsdp --fsdp_version 2 --fsdp_auto_wrap_policy TRANSFORMER_BASED_WRAP`` every process
holds a part of each layer. A checkpoint holds all of it, so that any number of processes, sharded or not, can resume
from it. Each function here must be called by every process.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from lookupffn.errors import UserError


def wanted() -> bool:
    """Whether accelerate's configuration asks for FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def choose_sharding(accelerator: Accelerator) -> None:
    """Enables FSDP where accelerate's configuration asks for it, on CPUs too.

    Raises:
        UserError: it asks for FSDP's first version.
    """
    if not wanted() or accelerator.num_processes == 1:
        return
    if accelerator.distributed_type == DistributedType.MULTI_CPU:
        # accelerate ignores its own configuration where there is no GPU
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
        accelerator.state.distributed_type = DistributedType.FSDP
    if not accelerator.is_fsdp2:
        raise UserError("FSDP is supported in its second version: accelerate launch --fsdp_version 2")


def prepare(
    accelerator: Accelerator,
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    *,
    layer: type[nn.Module],
    alone: bool = False,
) -> tuple[nn.Module, Any]:
    """accelerate's ``prepare``: the model as it is to be called, and the optimizer.

    Args:
        accelerator: of the run.
        model: of the run; FSDP shards it in place.
        optimizer: of its parameters.
        layer: what FSDP shards the model by.
        alone: the model is not to be wrapped for several processes.

    Raises:
        UserError: ``alone`` with FSDP.
    """
    if alone and accelerator.distributed_type == DistributedType.FSDP:
        raise UserError("training.micro_batches does not go with FSDP: leave one of them out")
    if alone:
        return accelerator.prepare_model(model, evaluation_mode=True), accelerator.prepare(optimizer)
    if accelerator.distributed_type != DistributedType.FSDP:
        return accelerator.prepare(model, optimizer)
    model._no_split_modules = [layer.__name__]
    # accelerate shards embeddings and output layer in a group of their own, and torch refuses a parameter in two
    # groups, which the bias would be that RoBERTa's head shares with its output layer. Not found, they stay together.
    model.get_input_embeddings = model.get_output_embeddings = lambda: None
    try:
        return accelerator.prepare(model, optimizer)
    finally:
        del model.get_input_embeddings, model.get_output_embeddings


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This process's part of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full_weights(model: nn.Module, *, keep: bool) -> dict[str, torch.Tensor] | None:
    """The weights of a sharded model, put together on the host; None for a model that is whole.

    Args:
        model: the model.
        keep: whether this process is to have them; the others help to put them together and get an empty dictionary.
    """
    if not isinstance(model, FSDPModule):
        return None
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    found: dict[str, torch.Tensor] = {}
    known: dict[int, torch.Tensor] = {}  # tied weights stay one tensor
    for name, tensor in [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]:
        if id(tensor) not in known:
            full = _gather(tensor.detach())
            known[id(tensor)] = full if keep else full.new_empty(0)
        if keep:
            found[name] = known[id(tensor)]
    return {name: found[name] for name in model.state_dict() if name in found}


def full_state(optimizer: Any, *, keep: bool) -> dict[str, Any]:
    """An optimizer's ``state_dict`` with its sharded tensors put together; where not ``keep``, without them."""

    def gathered(value: object) -> object:
        if not isinstance(value, DTensor):
            return value
        full = _gather(value)
        return full if keep else None

    state = optimizer.state_dict()
    # its inner dictionaries are the optimizer's own
    return {**state, "state": {n: {k: gathered(v) for k, v in values.items()} for n, values in state["state"].items()}}


def load_full_state(optimizer: Any, state: dict[str, Any]) -> None:
    """Loads what ``full_state`` returned into an optimizer, on each process its part.

    Raises:
        UserError: it is the state of another model's optimizer.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def part(value: Any, parameter: torch.Tensor) -> Any:
        if not isinstance(parameter, DTensor) or not torch.is_tensor(value) or value.shape != parameter.shape:
            return value
        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)

    try:
        for number, values in state["state"].items():
            for name, value in values.items():
                if torch.is_tensor(value) and value.ndim and value.shape != parameters[number].shape:
                    raise ValueError(f"{name} of parameter {number} is of another shape")
        parts = {n: {k: part(v, parameters[n]) for k, v in values.items()} for n, values in state["state"].items()}
        optimizer.load_state_dict({**state, "state": parts})
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise UserError(f"the optimizer's state is not that of this model ({' '.join(str(error).split())})") from None


def _gather(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu()
