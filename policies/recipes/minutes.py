"""What recipes share that are sized to train in minutes on two CPU cores, so that they differ in their method
alone."""

from __future__ import annotations

from ..recipe import Training


def training_in_minutes(images: bool, chains: bool = False) -> Training:
    """chains: a row of a batch is many decisions in a row, and so a batch has fewer."""
    return Training(
        steps=2500,
        batch_size=(4 if images else 16) if chains else 64 if images else 128,
        learning_rate=1e-3,
        betas=(0.9, 0.95),
        weight_decay=1e-4,
        warmup=100,
    )
