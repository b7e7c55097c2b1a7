"""Reference merges: tiny models and adapters made with transformers and PEFT."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from transformers.utils import logging  # noqa: TID251

from .cases import CASES, RECIPES
from .recipes import Built, Case

logging.disable_progress_bar()
logging.set_verbosity_error()

__all__ = ["CASES", "RECIPES", "Built", "Case"]
