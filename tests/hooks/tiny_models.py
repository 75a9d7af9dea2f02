"""Tiny random models in Pythia's, GPT-2's and Llama's architecture, and a tiny trained run; nothing is downloaded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from wallprobe.tasks.recurrence import RecurrenceTask
from wallprobe.training.wall.conditions import Condition
from wallprobe.training.wall.jobs import Job
from wallprobe.training.wall.loop import train
from wallprobe.training.wall.recipes import Recipe

TEXT = "the capital of france is paris which known for tower quick brown fox jumps over lazy dog near river bank"
WORDS = TEXT.split()
PAD = "<pad>"


def _neox(parallel: bool) -> Any:
    return GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=32,
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=24,
            rotary_pct=0.25,
            use_parallel_residual=parallel,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


ARCHITECTURES: dict[str, Callable[[], Any]] = {
    "neox": lambda: _neox(True),
    "neox_sequential": lambda: _neox(False),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=32, n_embd=32, n_layer=3, n_head=4, n_positions=24, bos_token_id=0, eos_token_id=0)
    ),
    "llama": lambda: LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32,
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=64,
            max_position_embeddings=24,
            bos_token_id=0,
            eos_token_id=0,
        )
    ),
}


def save_tokenizer(folder: Path) -> None:
    """A word tokenizer of `WORDS`; id 0 is padding, id 1 every other word."""
    vocabulary = {word: number for number, word in enumerate([PAD, "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token=PAD, eos_token=PAD).save_pretrained(folder)


def save_model(architecture: str, folder: Path) -> Path:
    """A random model with norms whose scales differ from 1, so that an affine left out shows."""
    model = ARCHITECTURES[architecture]()
    source = torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        scale = name.endswith("weight") and ("norm" in name or "ln_" in name)
        nn.init.normal_(parameter, mean=1.5 if scale else 0.0, std=0.3, generator=source)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def save_run(root: Path, layers: int = 2) -> str:
    """Train a run for four steps; its name."""
    recipe = Recipe(preset="tiny", n_layers=layers, d_model=16, n_heads=2, steps=4, batch=8, warmup=0)
    return str(train(Job(Condition("c0", "none", "none"), recipe, task=RecurrenceTask(modulus=5, length=8)), root).name)
