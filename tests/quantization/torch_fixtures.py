"""Small torch models with random weights."""

from __future__ import annotations

from typing import Any

import torch


def gpt2(**sizes: int) -> Any:
    """A GPT-2 whose word table and last layer are one parameter."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = {"n_layer": 2, "n_embd": 48, "n_head": 4, "vocab_size": 200, "n_positions": 40}
    torch.manual_seed(0)
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
    return GPT2LMHeadModel(GPT2Config(**{**config, **sizes}, **special)).eval()


class Small(torch.nn.Module):
    """A table, two layers and a norm."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.table = torch.nn.Embedding(50, 36)
        self.up = torch.nn.Linear(36, 70)
        self.norm = torch.nn.LayerNorm(70)
        self.down = torch.nn.Linear(70, 5, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.down(self.norm(torch.relu(self.up(self.table(ids)))))
