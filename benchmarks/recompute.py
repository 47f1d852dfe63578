"""Memory and time of a learner's layers with and without activation checkpointing: `python -m benchmarks.recompute`

One forward and backward pass of a Qwen3 of the given size with random weights: a single sequence, in float32 on two
threads, each in a process of its own. Memory is the peak beyond weights and gradients.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time

import torch

from workers.learner.activation_checkpointing import checkpoint_activations

MIB = 2**20


def main() -> None:
    """Command line of the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=256)
    args = parser.parse_args()
    for recompute in (False, True):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            loss, mib, seconds = pool.apply(measure, (recompute, args.tokens, args.layers, args.hidden))
        print(f"checkpointing {recompute!s:5}   loss {loss:.6f}   {mib:7.0f} MiB   {seconds:6.1f} s", flush=True)


def measure(recompute: bool, tokens: int, layers: int, hidden: int) -> tuple[float, float, float]:
    """Loss, peak memory (MiB) and time (s) of one forward and backward pass."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.set_num_threads(2)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=128,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        head_dim=64,
    )
    model = Qwen3ForCausalLM(config).eval()
    if recompute:
        checkpoint_activations(model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    loss_of(model, 64).backward()  # for memory that is allocated once
    before = peak_mib()
    started = time.perf_counter()
    loss = loss_of(model, tokens)
    loss.backward()
    return loss.item(), peak_mib() - before, time.perf_counter() - started


def loss_of(model: torch.nn.Module, tokens: int) -> torch.Tensor:
    """Mean log-probability of the token 0 after each of `tokens` tokens."""
    ids = torch.arange(tokens)[None] % 128
    return model(ids, use_cache=False).logits.log_softmax(-1)[..., 0].mean()


def peak_mib() -> float:
    """Peak resident memory of this process, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB


if __name__ == "__main__":
    main()
