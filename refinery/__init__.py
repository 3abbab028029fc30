"""Refinery: from raw text to packed token shards to a trained model."""

from __future__ import annotations

__version__ = "0.1.0"
