"""Chunks by codes: an autoencoder with residual vector quantisation (van den Oord et al. 2017, arXiv
1711.00937; Zeghidour et al. 2021, arXiv 2107.03312), as VQ-BeT has it (Lee et al. 2024, arXiv 2403.03181).

Legend: B batch, H horizon, A action dimensions, D code width, G codebooks, C codes of each."""

from __future__ import annotations

import torch
from torch import Tensor, nn

KEPT = 0.9  # of a code's running mean at an update
SHARE = 0.03  # of an even share: a code that has less is moved to where a chunk is


class ResidualVQ(nn.Module):
    """The codes of the second codebook are of what the first one's leave, and so on. A codebook follows the
    running means of what its codes stand for; a code that stands for next to nothing is moved onto something
    of the batch, so that codebooks do not collapse. They are no weights, and an optimiser leaves them as they
    are.

    settled: a truth value, kept with the weights, whether the codes are learned and stay as they are."""

    def __init__(
        self, horizon: int, action_dim: int, hidden: int, width: int, codes: int, books: int
    ) -> None:
        super().__init__()
        self.shape, chunk = (horizon, action_dim), horizon * action_dim
        self.encoder, self.decoder = _mlp(chunk, hidden, width), _mlp(width, hidden, chunk)
        self.books: Tensor
        self.counts: Tensor
        self.settled: Tensor
        self.register_buffer("books", torch.randn(books, codes, width))
        self.register_buffer("counts", torch.zeros(books, codes))
        self.register_buffer("settled", torch.tensor(False))

    def codes(self, a_BHA: Tensor, mask_BH: Tensor) -> Tensor:
        """Of chunks, `(B, G)` int. mask_BH: bool, the actions that count."""
        with torch.no_grad():
            return self._nearest(self._encoded(a_BHA, mask_BH))[0]

    def vectors(self, codes_Bg: Tensor) -> Tensor:
        """What the first g codes stand for together, `(B, D)`."""
        each = [book[codes_Bg[:, g]] for g, book in enumerate(self.books[: codes_Bg.shape[1]])]
        return torch.stack(each).sum(0)

    def chunk(self, vectors_BD: Tensor) -> Tensor:
        """`(B, H, A)`, of what codes stand for."""
        return self.decoder(vectors_BD).unflatten(1, self.shape)

    def learn(self, a_BHA: Tensor, mask_BH: Tensor) -> tuple[Tensor, Tensor]:
        """(the chunks as their codes give them, `(B, H, A)`; how far their encodings are from the codes,
        squared, `(B,)`), differentiable. In training, the codebooks move."""
        z = self._encoded(a_BHA, mask_BH)
        codes, left = self._nearest(z.detach())
        vectors = self.vectors(codes)
        before = torch.cat([torch.zeros_like(z)[None], z.detach() - left[1:]])
        each = torch.stack([book[codes[:, g]] for g, book in enumerate(self.books)])
        far = ((z - before - each) ** 2).mean(-1).sum(0)
        chunk = self.chunk(z + (vectors - z).detach())
        if self.training:
            self._follow(codes, left)
        return chunk, far

    def _encoded(self, a_BHA: Tensor, mask_BH: Tensor) -> Tensor:
        return self.encoder((a_BHA * mask_BH[..., None]).flatten(1)).float()

    def _nearest(self, z_BD: Tensor) -> tuple[Tensor, Tensor]:
        """(codes `(B, G)`, what each codebook was asked to stand for `(G, B, D)`)."""
        codes, left = [], []
        rest = z_BD
        for book in self.books:
            nearest = torch.cdist(rest, book).argmin(1)
            codes.append(nearest)
            left.append(rest)
            rest = rest - book[nearest]
        return torch.stack(codes, dim=1), torch.stack(left)

    @torch.no_grad()
    def _follow(self, codes_BG: Tensor, left_GBD: Tensor) -> None:
        for g, (book, counts, left) in enumerate(zip(self.books, self.counts, left_GBD, strict=True)):
            mine = nn.functional.one_hot(codes_BG[:, g], len(book)).to(left)
            now = mine.sum(0)
            sums = KEPT * book * counts[:, None] + (1 - KEPT) * mine.T @ left
            counts.mul_(KEPT).add_(now, alpha=1 - KEPT)
            follows = counts > SHARE * len(left) / len(book)
            elsewhere = left[torch.randint(len(left), (len(book),), device=left.device)]
            moved = torch.where(follows[:, None], sums / counts.clamp(min=1e-6)[:, None], elsewhere)
            book.copy_(moved)
            counts.copy_(torch.where(follows, counts, len(left) / len(book)))


def _mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, outputs)
    )
