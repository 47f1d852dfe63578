"""The DemoPSD loss in a training loop of plain torch and transformers, without Ray, vLLM or DeepSpeed.

    python examples/loss_in_your_trainer.py         # two minutes on one core

Each step samples eight responses to every question, and learns from those that have a right sibling: that sibling goes
into the teacher's prompt. Student, reference and teacher then score the same response tokens, and `demopsd_loss`
compares them.
"""

import copy
import random

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from demopsd_dist import demopsd_loss
from demopsd_dist.data.rewards import Question, answer_reward
from demopsd_dist.minisci import MODEL_DIR
from demopsd_dist.minisci.tasks import questions

SAMPLES, EMA_RATE = 8, 0.05
tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
student = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32)
ema = copy.deepcopy(student).requires_grad_(False)  # weights of teacher and reference


def prompt_ids(question: Question, solution: str | None = None) -> list[int]:
    """Token ids of the prompt; with a solution it is the teacher's."""
    text = question.text
    if solution is not None:
        text += f"\n\nCorrect solution:\n\n{solution}\n\nCorrectly solve the original question."
    system = [{"role": "system", "content": question.system}] if question.system else []
    messages = [*system, {"role": "user", "content": text}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)


@torch.no_grad()
def sample_responses(question: Question) -> list[list[int]]:
    """Token ids of sampled responses to one question."""
    prompt = torch.tensor([prompt_ids(question)])
    sampled = student.generate(
        prompt, do_sample=True, num_return_sequences=SAMPLES, max_new_tokens=48, pad_token_id=tokenizer.eos_token_id
    )
    responses = sampled[:, prompt.shape[1] :].tolist()
    end = tokenizer.eos_token_id
    return [ids[: ids.index(end) + 1] if end in ids else ids for ids in responses]


def response_logits(model: torch.nn.Module, prompt: list[int], response: list[int]) -> torch.Tensor:
    """Logits (1, T, V) at the T tokens of a response: those at position t predict token t."""
    logits = model(torch.tensor([prompt + response])).logits
    return logits[:, len(prompt) - 1 : -1]


def pairs_of_step(rng: random.Random, batch: list[Question]) -> tuple[list[tuple[Question, list[int], str]], float]:
    """Responses to learn from, each with a right sibling's text, and the fraction of right responses."""
    pairs, right = [], 0
    for question in batch:
        responses = sample_responses(question)
        texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in responses]
        correct = [i for i, text in enumerate(texts) if answer_reward(text, question.answer) >= 0.5]
        right += len(correct)
        for i, ids in enumerate(responses):
            if siblings := [texts[j] for j in correct if j != i]:
                pairs.append((question, ids, rng.choice(siblings)))
    return pairs, right / (SAMPLES * len(batch))


def train(steps: int = 4, questions_per_step: int = 6) -> list[float]:
    """Train, print a line for each step, and return the loss of each step in nats per token."""
    rng = random.Random(0)
    torch.manual_seed(0)
    pool = questions("train", 256, seed=0)
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-4, weight_decay=0.01)
    losses = []
    for step in range(1, steps + 1):
        pairs, right = pairs_of_step(rng, rng.sample(pool, questions_per_step))
        token_count = sum(len(ids) for _, ids, _ in pairs)  # of the whole batch, so that every token weighs the same
        total = alpha = 0.0
        for question, ids, solution in pairs:
            prompt = prompt_ids(question)
            with torch.no_grad():
                reference = response_logits(ema, prompt, ids)
                teacher = response_logits(ema, prompt_ids(question, solution), ids)
            mask = torch.ones(1, len(ids))
            result = demopsd_loss(
                response_logits(student, prompt, ids), reference, teacher, mask, top_k=50, token_count=token_count
            )
            result.loss.backward()  # gradients of all responses add up
            total += result.loss.item()
            alpha += result.alpha_BT.sum().item() / token_count
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for mean, weight in zip(ema.parameters(), student.parameters(), strict=True):
                mean.lerp_(weight, EMA_RATE)
        print(f"step {step}  right {right:.0%}  loss {total:.4f}  alpha {alpha:.3f}  responses {len(pairs)}")
        losses.append(total)
    return losses


if __name__ == "__main__":
    train()
