"""What LyCORIS writes and computes, kept for the tests (`pip install lycoris-lora==4.1.3`).

    python make_golden.py FOLDER

adapter.safetensors is a file of its modules, base.safetensors the weights that they were made for,
changes.safetensors by how much their forward passes change those, measured with unit inputs.
"""

import sys
from pathlib import Path

import torch
from lycoris.modules.boft import ButterflyOFTModule
from lycoris.modules.diag_oft import DiagOFTModule
from lycoris.modules.full import FullModule
from lycoris.modules.glora import GLoRAModule
from lycoris.modules.ia3 import IA3Module
from lycoris.modules.locon import LoConModule
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from safetensors.torch import save_file
from torch import nn

ROTATIONS = (DiagOFTModule, ButterflyOFTModule)
"""Their Cayley transform is in float32, whatever they are asked for; the rest runs in float64."""


def linear(out: int = 12, inputs: int = 8) -> nn.Module:
    return nn.Linear(inputs, out)


def conv(out: int = 6, inputs: int = 4) -> nn.Module:
    return nn.Conv2d(inputs, out, 3, bias=False)


def conv1d() -> nn.Module:
    return nn.Conv1d(4, 6, 3, bias=False)


D = {"weight_decompose": True}
CASES = {
    "locon_linear": (LoConModule, linear(), {"lora_dim": 3, "alpha": 1.5}),
    "locon_rs": (LoConModule, linear(), {"lora_dim": 3, "alpha": 1.5, "rs_lora": True}),
    "locon_conv": (LoConModule, conv(), {"lora_dim": 2, "alpha": 1}),
    "locon_tucker": (LoConModule, conv(), {"lora_dim": 2, "alpha": 1, "use_tucker": True}),
    "dora_linear": (LoConModule, linear(), {"lora_dim": 3, "alpha": 3, **D}),
    "dora_conv": (LoConModule, conv(), {"lora_dim": 2, "alpha": 1, **D}),
    "dora_input": (LoConModule, linear(), {"lora_dim": 3, "alpha": 3, "wd_on_out": False, **D}),
    "dora_input_conv": (LoConModule, conv(), {"lora_dim": 2, "alpha": 3, "wd_on_out": False, **D}),
    "loha_linear": (LohaModule, linear(), {"lora_dim": 2, "alpha": 1}),
    "loha_conv": (LohaModule, conv(), {"lora_dim": 2, "alpha": 1}),
    "loha_tucker": (LohaModule, conv(), {"lora_dim": 2, "alpha": 1, "use_tucker": True}),
    "loha_conv1d_tucker": (LohaModule, conv1d(), {"lora_dim": 2, "alpha": 1, "use_tucker": True}),
    "loha_dora": (LohaModule, linear(), {"lora_dim": 2, "alpha": 1, **D}),
    "lokr_pair": (LokrModule, linear(8, 16), {"lora_dim": 1, "alpha": 0.5, "factor": 4}),
    "lokr_both": (
        LokrModule,
        linear(24, 24),
        {"lora_dim": 1, "alpha": 0.5, "factor": -1, "decompose_both": True},
    ),
    "lokr_full": (LokrModule, linear(), {"lora_dim": 8, "alpha": 1, "full_matrix": True}),
    "lokr_conv": (LokrModule, conv(8, 8), {"lora_dim": 1, "alpha": 0.5, "factor": 4}),
    "lokr_conv_full": (LokrModule, conv(), {"lora_dim": 8, "alpha": 1, "full_matrix": True}),
    "lokr_tucker": (
        LokrModule,
        conv(8, 8),
        {"lora_dim": 1, "alpha": 0.5, "factor": 4, "use_tucker": True},
    ),
    "lokr_conv1d": (LokrModule, conv1d(), {"lora_dim": 8, "alpha": 1, "full_matrix": True}),
    "lokr_dora": (LokrModule, linear(8, 16), {"lora_dim": 1, "alpha": 0.5, "factor": 4, **D}),
    "oft": (DiagOFTModule, linear(), {"lora_dim": 4, "constraint": 0}),
    "oft_bound": (DiagOFTModule, linear(), {"lora_dim": 4, "constraint": 0.02, "rescaled": True}),
    "oft_conv": (DiagOFTModule, conv(), {"lora_dim": 3, "constraint": 0, "rescaled": True}),
    "boft": (ButterflyOFTModule, linear(8, 6), {"lora_dim": 4, "constraint": 0}),
    "boft_bound": (
        ButterflyOFTModule,
        linear(8, 6),
        {"lora_dim": 4, "constraint": 0.02, "rescaled": True},
    ),
    "boft_conv": (ButterflyOFTModule, conv(8, 4), {"lora_dim": 4, "constraint": 0}),
    "glora_linear": (GLoRAModule, linear(), {"lora_dim": 2, "alpha": 1}),
    "glora_conv": (GLoRAModule, conv(), {"lora_dim": 2, "alpha": 1}),
    "ia3_out": (IA3Module, linear(), {}),
    "ia3_in": (IA3Module, linear(), {"train_on_input": True}),
    "ia3_in_conv": (IA3Module, conv(), {"train_on_input": True}),
    "ia3_out_conv": (IA3Module, conv(), {}),
    "full": (FullModule, linear(), {}),
}


def shift(name: str, parameter: nn.Parameter) -> None:
    """Trained values, that float32 holds."""
    noise = torch.randn_like(parameter) * 0.3
    if name in ("dora_scale", "rescale"):
        noise = parameter.data + noise
    elif name == "oft_blocks":
        noise = noise * 0.3
    parameter.data = noise.float().to(parameter.dtype)


def effect(module: nn.Module, layer: nn.Module) -> dict[str, torch.Tensor]:
    """Weight and bias that the adapted layer computes with."""
    kind = next(module.parameters()).dtype
    if isinstance(layer, nn.Linear):
        bias = module(torch.zeros(1, layer.in_features, dtype=kind))
        columns = module(torch.eye(layer.in_features, dtype=kind)) - bias
        return {"weight": columns.T, "bias": bias[0]}
    channels, kernel = layer.in_channels, layer.kernel_size
    count = channels * torch.Size(kernel).numel()
    patches = torch.eye(count, dtype=kind).reshape(count, channels, *kernel)
    return {"weight": module(patches).reshape(count, -1).T.reshape(-1, channels, *kernel)}


def main(folder: Path) -> None:
    torch.manual_seed(7)
    adapter, base, changes = {}, {}, {}
    for name, (made, layer, options) in CASES.items():
        for parameter in layer.parameters():
            parameter.data = parameter.data.float()
        kind = torch.float32 if made in ROTATIONS else torch.float64
        layer.to(kind)
        before = {key: value.clone() for key, value in layer.state_dict().items()}
        module = made(f"lycoris_{name}", layer, **options).to(kind).eval()
        for key, parameter in module.named_parameters():
            shift(key, parameter)
        if made is FullModule:  # it saves what it added to the layer, once it was put there
            module.apply_to()
        for key, value in effect(module, layer).items():
            base[f"{name}.{key}"] = before[key].float()
            changes[f"{name}.{key}"] = (value - before[key]).detach().float().contiguous()
        for key, value in module.state_dict().items():
            stored = value.detach().clone().contiguous()
            real = stored.is_floating_point()
            adapter[f"lycoris_{name}.{key}"] = stored.float() if real else stored
    for file, tensors in (("adapter", adapter), ("base", base), ("changes", changes)):
        save_file(tensors, folder / f"{file}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
