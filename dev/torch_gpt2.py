"""GPT-2 in plain PyTorch, as the benchmark times it."""

import torch
from torch import nn
from torch.nn import functional as F

from models.gpt2 import GPT2Config


class Block(nn.Module):
    """One layer, as most people write it in PyTorch."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        C = config.channels
        self.num_heads = config.num_heads
        self.ln1, self.ln2 = nn.LayerNorm(C), nn.LayerNorm(C)
        self.qkv, self.attproj = nn.Linear(C, 3 * C), nn.Linear(C, C)
        self.fc, self.fcproj = nn.Linear(C, 4 * C), nn.Linear(4 * C, C)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, T, C = x.shape
        heads = self.qkv(self.ln1(x)).view(B, T, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        attention = F.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.attproj(attention.transpose(1, 2).reshape(B, T, C))
        return x + self.fcproj(F.gelu(self.fc(self.ln2(x)), approximate="tanh"))


class TorchGPT2(nn.Module):
    """GPT-2 in plain PyTorch; its modules have our names."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.channels)
        self.wpe = nn.Embedding(config.seq_len, config.channels)
        self.h = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.lnf = nn.LayerNorm(config.channels)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.wte(tokens) + self.wpe.weight[: tokens.shape[1]]
        for block in self.h:
            x = block(x)
        return F.linear(self.lnf(x), self.wte.weight)
