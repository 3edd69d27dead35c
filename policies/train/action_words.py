"""Action tokens, and the components of actions, are fitted to the data before a training begins."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from ...datasets.features import ACTION
from ...datasets.reading.loader import WindowSource
from ..backbones.fast_tokens import FASTNet
from ..components import ComponentsCodec
from ..policy import Policy, first_link
from .data import tensors

MOST = 2000  # windows that they are fitted on, evenly spaced


def know_actions(policy: Policy, windows: WindowSource, say: Callable[[str], None]) -> None:
    """Fit the tokens of each network that writes them, and the components of a codec that has some, unless
    they were learned before: the network's weights mean those. ValueError in one sentence where there are
    more values than tokens."""
    nets = [m for m in policy.modules() if isinstance(m, FASTNet) and not m.learned]
    codec = policy.codec
    components = isinstance(codec, ComponentsCodec) and not codec.learned
    if not (nets or components):
        return
    rows = np.unique(np.linspace(0, len(windows) - 1, MOST).round().astype(np.int64))
    with torch.no_grad():
        batch = first_link(tensors(windows.vectors(rows), policy.device))
        if isinstance(codec, ComponentsCodec) and components:
            say(codec.learn(batch[ACTION].flatten(0, 1).cpu().numpy()))
        chunks = policy.codec.encode(batch[ACTION], batch).float().cpu().numpy()
    for net in nets:
        say(net.learn(chunks))
