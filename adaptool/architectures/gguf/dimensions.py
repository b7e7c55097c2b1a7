"""Sizes that a layout needs: heads, experts and the like, from config.json or from a GGUF model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from adaptool.errors import JSON, CorruptInputError, IncompatibleError

MANY = 1 << 14
"""No model has more blocks, heads or experts."""
LARGE = 1 << 24
"""No model has more rows of any kind."""


class Stated:
    """A whole number that a model states under one of several names.

    Args:
        names: keys of config.json; the first that is there counts.
        keys: keys of a GGUF model, without its architecture.
        default: the value where nothing is stated; None refuses.
        least, most: no model states less or more; absurd numbers would keep this program busy.
    """

    def __init__(
        self,
        *names: str,
        keys: tuple[str, ...] = (),
        default: int | None = None,
        least: int = 1,
        most: int = LARGE,
    ) -> None:
        self._names, self._keys, self._default = names, keys, default
        self._least = least if default is None else min(least, default)
        self._most = most

    def __get__(self, owner: Dimensions, _: type[Dimensions] | None = None) -> int:
        if owner.architecture is None:
            wanted = self._names
        else:
            wanted = tuple(f"{owner.architecture}.{key}" for key in self._keys)
        for name in wanted:
            value = owner.values.get(name)
            if isinstance(value, list) and value:
                value = value[min(owner.block, len(value) - 1)]
            if type(value) is int:
                return self._sane(name, value)
        if self._default is None:
            raise IncompatibleError(
                f"the model does not state {' or '.join(wanted)}, which its layout depends on",
                code="MISSING_DIMENSION",
            )
        return self._default

    def _sane(self, name: str, value: int) -> int:
        if not self._least <= value <= self._most:
            raise CorruptInputError(f"the model states {name} = {value}, which no model has")
        return value


@dataclass(frozen=True)
class Dimensions:
    """The numbers behind a model's layout, at one of its blocks.

    Reading a number that the model does not state raises IncompatibleError, one that no model has
    CorruptInputError.

    Attributes:
        values: config.json of the text model, or a GGUF model's plain key-values.
        architecture: GGUF's name of the architecture, None if `values` is a config.json.
        block: the block that a number stated per block is read for.
    """

    values: Mapping[str, JSON]
    architecture: str | None = None
    block: int = 0

    layers = Stated(
        "num_hidden_layers", "n_layer", "num_layers", "n_layers", keys=("block_count",), most=MANY
    )  # fmt: skip
    drafts = Stated(keys=("nextn_predict_layers",), default=0, most=MANY)
    hidden = Stated("hidden_size", "n_embd", "d_model", keys=("embedding_length",))
    heads = Stated(
        "num_attention_heads", "n_head", "n_heads", "num_heads", keys=("attention.head_count",),
        most=MANY,
    )  # fmt: skip
    _kv_heads = Stated(
        "num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num",
        keys=("attention.head_count_kv",), default=0, most=MANY,
    )  # fmt: skip
    _head_dim = Stated("head_dim", "kv_channels", keys=("attention.key_length",), default=0)
    _value_dim = Stated("head_dim", "kv_channels", keys=("attention.value_length",), default=0)
    feed_forward = Stated("intermediate_size", "ffn_hidden_size", keys=("feed_forward_length",))
    _expert_feed_forward = Stated(
        "moe_intermediate_size", keys=("expert_feed_forward_length",), default=0
    )  # fmt: skip
    shared_feed_forward = Stated(
        "shared_intermediate_size", keys=("expert_shared_feed_forward_length",), default=0
    )  # fmt: skip
    experts = Stated(
        "num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts",
        keys=("expert_count",), default=0, most=MANY,
    )  # fmt: skip
    rope_dim = Stated("qk_rope_head_dim", keys=("rope.dimension_count",))
    _nope_dim = Stated("qk_nope_head_dim", default=0)
    _query_dim = Stated(keys=("attention.key_length_mla", "attention.key_length"))
    latent_value_dim = Stated(
        "v_head_dim", keys=("attention.value_length_mla", "attention.value_length")
    )
    _full_every = Stated("full_attention_interval", keys=("full_attention_interval",), default=4)
    linear_key_heads = Stated("linear_num_key_heads", keys=("ssm.group_count",), most=MANY)
    linear_value_heads = Stated(
        "linear_num_value_heads", keys=("ssm.time_step_rank",), most=MANY
    )  # fmt: skip
    linear_key_dim = Stated("linear_key_head_dim", keys=("ssm.state_size",))
    _linear_value_dim = Stated("linear_value_head_dim", default=0)
    _linear_width = Stated(keys=("ssm.inner_size",))
    state_groups = Stated("mamba_n_groups", keys=("ssm.group_count",), most=MANY)
    padding = Stated("pad_token_id", default=-1)
    positions = Stated("max_position_embeddings", "n_positions", keys=("context_length",))

    @property
    def blocks(self) -> int:
        """Blocks of the model proper, without those that only draft further tokens."""
        return self.layers - self.drafts

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values; as many as of queries unless stated."""
        return self._kv_heads or self.heads

    @property
    def head_dim(self) -> int:
        """Rows of one head of queries or keys."""
        return self._head_dim or self.hidden // self.heads

    @property
    def value_dim(self) -> int:
        """Rows of one head of values."""
        return self._value_dim or self.hidden // self.heads

    @property
    def expert_feed_forward(self) -> int:
        """Rows of one expert's gate."""
        return self._expert_feed_forward or self.feed_forward

    @property
    def nope_dim(self) -> int:
        """Rows of one head of latent attention that are not rotated."""
        if self.architecture is None:
            return self._nope_dim
        return self._query_dim - self.rope_dim

    @property
    def linear_value_dim(self) -> int:
        """Rows of one value head of linear attention."""
        if self.architecture is None:
            return self._linear_value_dim
        return self._linear_width // self.linear_value_heads

    @property
    def attends_fully(self) -> bool:
        """Whether this block of a hybrid model has full attention, not linear."""
        kinds = self.values.get("layer_types")
        if isinstance(kinds, list) and self.block < len(kinds):
            return kinds[self.block] == "full_attention"
        return (self.block + 1) % self._full_every == 0

    def truth(self, name: str, default: bool) -> bool:
        """A yes or no of config.json."""
        value = self.values.get(name)
        return value if isinstance(value, bool) else default
