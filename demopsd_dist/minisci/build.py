"""Train the embedded base model from scratch: `python -m demopsd_dist.minisci.build` (two cores, under 20 minutes).

Training is supervised, on worked solutions: first right ones; then, without privileged context, half of them with one
arithmetic slip. So the model learns the calculation and then to slip: it samples wrong results. With a correct
solution in the prompt (a quarter of the examples, in exactly the teacher's template) the solution is always right.
Self-distillation needs this gap between a weak student and, in the same weights, a strong privileged teacher. Answers
are free, not one of four options: a model of this size learns the arithmetic in minutes, but not to look up the letter
of the right option.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM

from demopsd_dist.data.prompts import PromptBuilder
from demopsd_dist.data.rewards import answer_reward
from demopsd_dist.minisci import MODEL_DIR, tasks
from demopsd_dist.minisci.tokenizer import byte_tokenizer

PRIVILEGED_FRACTION = 1 / 4  # fraction of the examples
RIGHT_FRACTION = 0.6  # fraction of the steps before slips begin
EVALUATION_SAMPLES = 8


def new_model(tokenizer: PreTrainedTokenizerBase) -> Qwen3ForCausalLM:
    """An untrained model of 0.86M parameters.

    The head is not tied to the embedding: engines that pre-pack a tied head keep a stale copy.
    """
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=272,
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=4096,
            tie_word_embeddings=False,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
            dtype="float32",
        )
    )


@dataclass(frozen=True)
class Example:
    """Tokens of one supervised example."""

    prompt_tokens: np.ndarray
    response_tokens: np.ndarray


class ExampleStream:
    """Endless supervised examples from MiniSci's training split."""

    def __init__(self, builder: PromptBuilder, seed: int, slip_fraction: float) -> None:
        self.builder = builder
        self.rng = random.Random(f"build/{seed}")
        self.problems = tasks.problems("train", seed)
        self.slip_fraction = slip_fraction
        self.slips = False  # until the arithmetic is learned

    def student(self) -> Example:
        """An example without privileged context: right, or with one slip."""
        while True:
            problem = next(self.problems)
            slip = self.slips and self.rng.random() < self.slip_fraction
            compute = tasks.slip_once(self.rng, problem.expression) if slip else tasks.calculate
            try:
                solution = tasks.solution_text(*tasks.work_out(problem.expression, compute))
            except ValueError:  # the slip made a number negative
                continue
            return self._example(self.builder.student(problem.question).tokens, solution)

    def privileged(self) -> Example:
        """An example with the correct solution in the prompt: always right."""
        problem = next(self.problems)
        solution = tasks.solution_text(*tasks.work_out(problem.expression))
        return self._example(self.builder.privileged(problem.question, solution), solution)

    def _example(self, prompt_tokens: np.ndarray, solution: str) -> Example:
        tokenizer = self.builder.tokenizer
        response = tokenizer(solution, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        return Example(prompt_tokens, np.asarray(response))


def response_loss_sum(model: Qwen3ForCausalLM, examples: list[Example]) -> torch.Tensor:
    """Summed cross-entropy of the response tokens; the head is applied to them alone."""
    rows = [np.concatenate([e.prompt_tokens, e.response_tokens]) for e in examples]
    width = max(map(len, rows))
    tokens_BL = torch.tensor(np.stack([np.pad(row, (0, width - len(row))) for row in rows]), dtype=torch.long)
    hidden_BLH = model.model(tokens_BL).last_hidden_state  # causal, padded on the right: no mask needed
    positions = [
        (b, position) for b, e in enumerate(examples) for position in range(len(e.prompt_tokens) - 1, len(rows[b]) - 1)
    ]
    b_N, position_N = torch.tensor(positions).T
    logits_NV = model.lm_head(hidden_BLH[b_N, position_N])
    return torch.nn.functional.cross_entropy(logits_NV, tokens_BL[b_N, position_N + 1], reduction="sum")


def train(model: Qwen3ForCausalLM, stream: ExampleStream, steps: int, batch: int, peak_learning_rate: float) -> None:
    """Train for `steps` optimizer steps of `batch` examples, with a one-cycle learning rate."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak_learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak_learning_rate, total_steps=steps, pct_start=0.05)
    privileged = round(batch * PRIVILEGED_FRACTION)
    started = time.monotonic()
    for step in range(1, steps + 1):
        stream.slips = step > RIGHT_FRACTION * steps
        parts = [
            [stream.student() for _ in range(batch - privileged)],
            [stream.privileged() for _ in range(privileged)],
        ]
        tokens = sum(len(e.response_tokens) for part in parts for e in part)
        loss = 0.0
        for part in parts:
            part_loss = response_loss_sum(model, part) / tokens
            part_loss.backward()
            loss += part_loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 50 == 0 or step == 1:
            elapsed = time.monotonic() - started
            print(f"step {step}/{steps}  loss {loss:.4f}  {elapsed:.0f} s", flush=True)


@torch.inference_mode()
def accuracy(
    model: Qwen3ForCausalLM, builder: PromptBuilder, split: tasks.Split, count: int, *, privileged: bool, seed: int = 1
) -> dict[str, float]:
    """mean@8 by field at temperature 1, without or with the correct solution in the prompt."""
    tokenizer = builder.tokenizer
    torch.manual_seed(seed)
    per_field: dict[str, list[float]] = {field: [] for field in tasks.FIELDS}
    for problem in itertools.islice(tasks.problems(split, seed), count):
        question = problem.question
        solution = tasks.solution_text(*tasks.work_out(problem.expression))
        prompt = builder.privileged(question, solution) if privileged else builder.student(question).tokens
        responses = model.generate(
            torch.tensor(prompt, dtype=torch.long)[None],
            do_sample=True,
            top_k=0,
            temperature=1.0,
            max_new_tokens=64,
            num_return_sequences=EVALUATION_SAMPLES,
        )
        texts = tokenizer.batch_decode(responses[:, len(prompt) :], skip_special_tokens=True)
        per_field[question.field] += [answer_reward(text, question.answer) for text in texts]
    means = {field: float(np.mean(values)) for field, values in per_field.items()}
    return {**means, "average": float(np.mean(list(means.values())))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=MODEL_DIR)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=2200)
    parser.add_argument("--batch", type=int, default=32, help="examples a step")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="peak of a one-cycle schedule")
    parser.add_argument("--slip-share", type=float, default=0.5, help="unprivileged solutions with an arithmetic slip")
    parser.add_argument(
        "--threads", type=int, default=2, help="torch threads; the result depends on it in the last bits"
    )
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    tokenizer = byte_tokenizer()
    builder = PromptBuilder(tokenizer)
    model = new_model(tokenizer)
    started = time.monotonic()
    train(model, ExampleStream(builder, args.seed, args.slip_share), args.steps, args.batch, args.learning_rate)
    metrics = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "train_s": round(time.monotonic() - started, 1),
        "test": accuracy(model, builder, "test", 80, privileged=False),
        "test_privileged": accuracy(model, builder, "test", 80, privileged=True),
        "ood": accuracy(model, builder, "ood", 80, privileged=False),
        "ood_privileged": accuracy(model, builder, "ood", 80, privileged=True),
    }
    settings = {name: value for name, value in vars(args).items() if name != "out"}
    model.generation_config.do_sample = True
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    (args.out / "BUILD.json").write_text(json.dumps({"settings": settings, "figures": metrics}, indent=2) + "\n")
    print(json.dumps(metrics, indent=2))


if __name__ == "__main__":
    main()
