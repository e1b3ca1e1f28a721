"""Weights that are sharded over processes, and DeepSpeed."""

from .sharding import (
    copy_,
    doubled,
    gather,
    gathered,
    is_partitioned,
    is_row_sharded,
    is_sharded,
    own_blocks,
    whole_,
    whole_shape,
)


__all__ = [
    "copy_",
    "doubled",
    "gather",
    "gathered",
    "is_partitioned",
    "is_row_sharded",
    "is_sharded",
    "own_blocks",
    "whole_",
    "whole_shape",
]
