"""Hugging Face checkpoints as GGUF models."""
