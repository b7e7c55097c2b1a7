"""Names of one parameter in checkpoints and adapters of different library versions."""

import pytest

from adaptool.architectures.naming import normal


@pytest.mark.parametrize(
    ("stored", "in_memory"),
    [
        ("vit.encoder.layer.3.attention.attention.query.weight", "vit.layers.3.attention.q_proj.weight"),
        ("vit.encoder.layer.3.attention.output.dense.bias", "vit.layers.3.attention.o_proj.bias"),
        ("vit.encoder.layer.3.intermediate.dense.weight", "vit.layers.3.mlp.fc1.weight"),
        ("vit.encoder.layer.3.output.dense.weight", "vit.layers.3.mlp.fc2.weight"),
        ("language_model.model.layers.0.mlp.up_proj.weight", "model.language_model.layers.0.mlp.up_proj.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("visual.blocks.0.attn.qkv.weight", "model.visual.blocks.0.attn.qkv.weight"),
        ("vision_tower.encoder.layers.0.fc1.weight", "model.vision_tower.encoder.layers.0.fc1.weight"),
        ("model.layers.0.block_sparse_moe.experts.7.w1.weight", "model.layers.0.mlp.experts.7.gate_proj.weight"),
        ("model.layers.0.block_sparse_moe.experts.7.w2.weight", "model.layers.0.mlp.experts.7.down_proj.weight"),
        ("model.layers.0.block_sparse_moe.experts.7.w3.weight", "model.layers.0.mlp.experts.7.up_proj.weight"),
        ("model.layers.0.block_sparse_moe.gate.weight", "model.layers.0.mlp.gate.weight"),
        ("embed_out.weight", "lm_head.weight"),
        ("wte.weight", "transformer.wte.weight"),
        ("encoder.layer.0.attention.self.query.weight", "bert.encoder.layer.0.attention.self.query.weight"),
        ("embeddings.LayerNorm.gamma", "bert.embeddings.LayerNorm.weight"),
    ],
)  # fmt: skip
def test_the_same_parameter(stored: str, in_memory: str) -> None:
    assert normal(stored) == normal(in_memory)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("model.layers.0.q_proj.weight", "model.layers.1.q_proj.weight"),
        ("model.language_model.layers.0.fc.weight", "model.vision_tower.layers.0.fc.weight"),
        ("model.encoder.layers.0.fc1.weight", "model.decoder.layers.0.fc1.weight"),
        ("layers.0.mlp.experts.1.w1.weight", "layers.0.mlp.experts.1.w3.weight"),
        ("bert.encoder.layer.0.output.dense.weight",
         "bert.encoder.layer.0.attention.output.dense.weight"),
    ],
)  # fmt: skip
def test_different_parameters(one: str, other: str) -> None:
    assert normal(one) != normal(other)
