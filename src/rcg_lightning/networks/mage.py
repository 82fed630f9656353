"""MAGE (Li et al. 2023), the masked generative encoder: a transformer that predicts masked tokens of an image."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rcg_lightning.arguments import BelowOne, Depth, MLPRatio, Width
from rcg_lightning.config import ConfigMixin
from rcg_lightning.networks.layers import SelfAttention, run_block
from rcg_lightning.types import require

# width, depth and heads of the encoder; B and L as published, H by the same rule from ViT-H. The decoder has the
# encoder's width, 8 blocks and 16 heads
SIZES = {"B": (768, 12, 12), "L": (1024, 24, 16), "H": (1280, 32, 16)}
FAKE_LABEL = 76  # vocabulary index of the fake label at position 0, minus the number of codes
MASK = 1000  # vocabulary index of a masked token, the last, minus the number of codes
TABLE_STD = 0.02  # initial standard deviation of embedding tables


class Block(nn.Module):
    """Pre-norm transformer block: exact GELU, dropout after every linear layer and of the attention weights."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float, dropout: float, attention_dropout: float | None) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = SelfAttention(dim, heads, dropout=dropout, weights_dropout=attention_dropout)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        hidden = int(dim * mlp_ratio)
        first, last = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.mlp = nn.Sequential(first, nn.GELU(), nn.Dropout(dropout), last, nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))  # (B, N, D)
        return x + self.mlp(self.norm2(x))  # (B, N, D)


class Head(nn.Module):
    """Logits over the vocabulary: each position's features are projected and compared with the token embeddings."""

    def __init__(self, dim: int, embedding_dim: int, vocabulary_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, embedding_dim)
        self.norm = nn.LayerNorm(embedding_dim, eps=1e-5)
        self.bias = nn.Parameter(torch.zeros(1, 1, vocabulary_size))

    def forward(self, h: Tensor, embeddings: Tensor) -> Tensor:
        """h (B, N, D), embeddings of the first K entries of the vocabulary (K, E) -> (B, N, K)."""
        return F.linear(self.norm(F.gelu(self.linear(h))), embeddings, self.bias[0, 0, : len(embeddings)])


class MAGE(ConfigMixin, nn.Module):
    """Agrees with RCG's MAGE, including its peculiarities.

    The encoder sees a slot for the condition and some of the tokens; the decoder sees all tokens. The condition enters
    its slot without position, norm and dropout; without a condition the slot holds the embedding of one fake label. The
    encoder's output for the slot fills the masked positions of the decoder. The logits compare with the token
    embeddings, which get no gradient from that. The vocabulary is the official one: K codes, 1000 labels that are never
    used, and the masked token. Attention is torch's fused attention and runs in autocast's precision; the official one
    runs in float32.

    Args:
        width: of the encoder's tokens.
        depth: blocks of the encoder.
        heads: attention heads of the encoder.
        decoder_width: of the decoder's tokens.
        decoder_depth: blocks of the decoder.
        decoder_heads: attention heads of the decoder.
        mlp_ratio: hidden width of the MLPs over that of the tokens.
        dropout: of embeddings, attention and MLPs.
        checkpointing: recompute activations in the backward pass instead of storing them: less memory, a third slower.
        attention_dropout: of the attention weights; None for ``dropout``. Fused attention on a CPU supports none, so 0
            saves time and memory there.
        size: "B", "L" or "H": sizes of encoder and decoder where they are not given.
    """

    def __init__(
        self,
        width: Width | None = None,
        depth: Depth | None = None,
        heads: Width | None = None,
        decoder_width: Width | None = None,
        decoder_depth: Depth = 8,
        decoder_heads: Width = 16,
        mlp_ratio: MLPRatio = 4.0,
        dropout: BelowOne = 0.1,
        checkpointing: bool = False,
        attention_dropout: BelowOne | None = None,
        size: str = "B",
    ) -> None:
        super().__init__()
        require(size in SIZES, f"MAGE has no size {size}: those known are {', '.join(SIZES)}")
        width, depth, heads, decoder_width = (
            known if given is None else given
            for given, known in zip((width, depth, heads, decoder_width), (*SIZES[size], SIZES[size][0]))
        )
        for name, dim, parts in (("width", width, heads), ("decoder_width", decoder_width, decoder_heads)):
            require(dim % parts == 0, f"MAGE: {name} {dim} is not divisible by {parts} heads")
        self.width, self.depth, self.heads = width, depth, heads
        self.decoder_width, self.decoder_depth, self.decoder_heads = decoder_width, decoder_depth, decoder_heads
        self.mlp_ratio, self.dropout, self.checkpointing = mlp_ratio, dropout, checkpointing
        self.attention_dropout = attention_dropout

    def build(self, tokens: int, codes: int, condition_dim: int) -> None:
        """Create the parameters for images of ``tokens`` tokens, each one of ``codes``."""
        fits = condition_dim in (0, self.width)
        require(fits, f"MAGE reads the condition as one of its tokens: conditioner.dim must be {self.width} or null")
        self.codes, self.fake, self.mask = codes, codes + FAKE_LABEL, codes + MASK
        encoder = (self.width, self.heads, self.mlp_ratio, self.dropout, self.attention_dropout)
        decoder = (self.decoder_width, self.decoder_heads, self.mlp_ratio, self.dropout, self.attention_dropout)
        self.words = nn.Embedding(codes + MASK + 1, self.width)
        self.positions = nn.Embedding(1 + tokens, self.width)
        self.embed_norm = nn.LayerNorm(self.width, eps=1e-6)
        self.blocks = nn.ModuleList(Block(*encoder) for _ in range(self.depth))
        self.norm = nn.LayerNorm(self.width, eps=1e-6)
        self.decoder_embed = nn.Linear(self.width, self.decoder_width)
        self.decoder_positions = nn.Parameter(torch.zeros(1, 1 + tokens, self.decoder_width))
        self.decoder_blocks = nn.ModuleList(Block(*decoder) for _ in range(self.decoder_depth))
        self.decoder_norm = nn.LayerNorm(self.decoder_width, eps=1e-6)
        self.head = Head(self.decoder_width, self.width, codes + MASK + 1)
        self.initialise()

    def initialise(self) -> None:
        """Linear layers as in MAE, tables with small values; norms and the head's bias keep torch's initial values."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for table in (self.words.weight, self.positions.weight, self.decoder_positions):
            nn.init.normal_(table, std=TABLE_STD)

    def forward(self, tokens: Tensor, masked: Tensor, c: Tensor, visible: Tensor | None = None) -> Tensor:
        """Predict the token at every position.

        Args:
            tokens: (B, N) int64 in [0, K); masked tokens are not read.
            masked: (B, N) bool.
            c: (B, D) condition, (B, 0) for none.
            visible: (B, M) int64, positions that the encoder sees, including all that are not masked; None for all.

        Returns:
            (B, N, K) logits over the codebook.
        """
        x = self.encode(self.embed(tokens, masked, c), visible)  # (B, 1 + M, D)
        return self.head(self.decode(x, masked, visible)[:, 1:], self.words.weight[: self.codes].detach())

    def embed(self, tokens: Tensor, masked: Tensor, c: Tensor) -> Tensor:
        """Return the embeddings of the slot and of all tokens, (B, 1 + N, D)."""
        ids = F.pad(torch.where(masked, self.mask, tokens), (1, 0), value=self.fake)  # (B, 1 + N)
        x = self.embed_norm(self.words(ids) + self.positions.weight)  # (B, 1 + N, D)
        x = F.dropout(x, self.dropout, self.training)
        return torch.cat([c[:, None].to(x.dtype), x[:, 1:]], dim=1) if c.shape[1] else x

    def encode(self, x: Tensor, visible: Tensor | None = None) -> Tensor:
        """Embeddings (B, 1 + N, D) -> the encoder's tokens (B, 1 + M, D), the slot first."""
        if visible is not None:
            x = x.gather(1, _with_slot(visible, x.shape[2]))  # (B, 1 + M, D)
        return self.norm(self.run_blocks(self.blocks, x))

    def decode(self, x: Tensor, masked: Tensor, visible: Tensor | None = None) -> Tensor:
        """The encoder's tokens (B, 1 + M, D) -> the decoder's tokens at all positions, (B, 1 + N, E)."""
        x = self.decoder_embed(x)  # (B, 1 + M, E)
        slot = x[:, :1]
        if visible is not None:  # all other positions are masked: their values here are overwritten below
            x = slot.repeat(1, 1 + masked.shape[1], 1).scatter(1, _with_slot(visible, x.shape[2]), x)
        x = torch.where(F.pad(masked, (1, 0))[:, :, None], slot, x) + self.decoder_positions  # (B, 1 + N, E)
        return self.decoder_norm(self.run_blocks(self.decoder_blocks, x))

    def run_blocks(self, blocks: nn.ModuleList, x: Tensor) -> Tensor:
        """Tokens (B, N, D) -> tokens after all blocks."""
        for block in blocks:
            x = run_block(block, x, checkpointing=self.checkpointing, random=self.dropout > 0)
        return x


def _with_slot(visible: Tensor, dim: int) -> Tensor:
    """Positions (B, M) -> indices (B, 1 + M, dim) of the slot and of these positions after it."""
    return F.pad(visible + 1, (1, 0))[:, :, None].expand(-1, -1, dim)
