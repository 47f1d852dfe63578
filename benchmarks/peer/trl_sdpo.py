"""TRL's SDPO with the settings and prompts of one of our configs; `benchmarks.peer` runs it in TRL's environment.

    python -m benchmarks.peer.trl_sdpo --micro-batch 48 configs/demo.yaml method=sdpo steps=23

Prints a line of JSON a step. The trainer is TRL's, with a timer around its stages; each second counts in one stage.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from datasets import Dataset
from transformers import AutoTokenizer, PrinterCallback, TrainerCallback
from trl.experimental.sdpo import SDPOConfig, SDPOTrainer

from demopsd_dist.config import Config, Divergence, load
from demopsd_dist.data.records import Prompt, Question
from demopsd_dist.data.rewards import Reward
from demopsd_dist.data.sources import load_data
from demopsd_dist.models.model_folder import model_folder
from demopsd_dist.models.precision import resolve_precision
from demopsd_dist.training.step_prompts import prompts_of_step
from launch._task import build_task

ALPHA = {Divergence.forward_kl: 0.0, Divergence.jsd: 0.5, Divergence.reverse_kl: 1.0}


class TimedTrainer(SDPOTrainer):
    """TRL's trainer with the seconds of each stage since the last step."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.stage_s: dict[str, float] = defaultdict(float)
        self._inner_s = 0.0
        super().__init__(*args, **kwargs)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the seconds spent inside, without those of nested stages."""
        outer_s, self._inner_s = self._inner_s, 0.0
        started = time.perf_counter()
        try:
            yield
        finally:
            spent_s = time.perf_counter() - started
            self.stage_s[stage] += spent_s - self._inner_s
            self._inner_s = outer_s + spent_s

    def _generate(self, *args: Any) -> Any:
        with self.timed("sample"):
            return super()._generate(*args)

    def _prepare_training_batch(self, *args: Any) -> Any:
        with self.timed("reward"):
            return super()._prepare_training_batch(*args)

    def _forward_logits(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        with self.timed("teacher" if model is self.teacher_model else "student"):
            return super()._forward_logits(model, *args, **kwargs)

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        with self.timed("loss"):
            return super().compute_loss(*args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        with self.timed("backward"):
            return super().training_step(*args, **kwargs)


class StepTimes(TrainerCallback):
    """Printer of the figures of each step that TRL has logged. Time outside all stages (optimizer, EMA) is `rest`."""

    def __init__(self, trainer: TimedTrainer, samples: int) -> None:
        self._stage_s, self._samples = trainer.stage_s, samples
        self._since = time.perf_counter()

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Start the first step's time."""
        self._since = time.perf_counter()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        """Print the step's figures on the first process."""
        if "loss" not in logs or not state.is_world_process_zero:
            return
        now = time.perf_counter()
        step_s, self._since = now - self._since, now
        figures = {
            "samples": self._samples,
            "tokens": logs["completions/mean_length"] * self._samples,
            "reward": logs["self_distillation/reward_mean"],
            "step_s": step_s,
            "stages": {**self._stage_s, "rest": step_s - sum(self._stage_s.values())},
        }
        self._stage_s.clear()
        print(json.dumps(figures), flush=True)


def samples_per_step(config: Config) -> int:
    """Responses of one step."""
    return config.rollout.prompts_per_step * config.rollout.group_size


def messages(question: Question) -> list[dict[str, str]]:
    """Chat messages of a question."""
    system = [] if question.system is None else [{"role": "system", "content": question.system}]
    return [*system, {"role": "user", "content": question.text}]


def rewards_by(reward: Reward, questions: list[Question]) -> Callable[..., list[float]]:
    """TRL's reward function: the rewards that this project gives to completions of the questions in these rows."""

    def rewards(completions: list[list[dict[str, str]]], row: list[int], **_: Any) -> list[float]:
        pairs = zip(completions, row, strict=True)
        return [reward(completion[0]["content"], questions[index]).reward for completion, index in pairs]

    return rewards


def settings(config: Config, output_dir: str, micro_batch: int) -> SDPOConfig:
    """TRL's settings for our config. Neither side recomputes activations, saves or evaluates."""
    return SDPOConfig(
        output_dir=output_dir,
        use_cpu=True,
        bf16=False,
        model_init_kwargs={"dtype": config.model.precision.value},
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        shuffle_dataset=False,
        seed=config.seed,
        max_steps=config.steps,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=samples_per_step(config) // (micro_batch * int(os.environ.get("WORLD_SIZE", "1"))),
        learning_rate=config.learner.learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=config.learner.warmup_steps,
        weight_decay=config.learner.weight_decay,
        max_grad_norm=config.learner.max_grad_norm,
        num_generations=config.rollout.group_size,
        max_prompt_length=config.rollout.max_prompt_tokens,
        max_completion_length=config.rollout.max_response_tokens,
        temperature=config.rollout.temperature,
        distillation_mode="topk_logits",
        distillation_topk=config.sdpo.top_k,
        distillation_add_tail=True,
        distillation_alpha=ALPHA[config.sdpo.divergence],
        distillation_is_clip=config.sdpo.importance_clip,
        teacher_model_kind=config.sdpo.teacher.value,
        teacher_update_rate=config.teacher.ema_rate,
        dont_reprompt_on_self_success=config.privileged.exclude_own_success,
        max_reprompt_len=config.privileged.max_tokens,
        reprompt_template=config.privileged.template,
        solution_template=config.privileged.solution_template.replace("{solution}", "{successful_previous_attempt}"),
    )


def check_prompts(prompts: list[Prompt], tokenizer: Any) -> None:
    """Check that TRL and this project tokenize each prompt alike."""
    for prompt in prompts:
        trl_tokens = tokenizer.apply_chat_template(messages(prompt.question), add_generation_prompt=True)["input_ids"]
        assert trl_tokens == prompt.tokens.tolist(), f"TRL tokenizes prompt {prompt.id} differently: {trl_tokens}"


def main() -> None:
    """Command line of TRL's run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--micro-batch", type=int, required=True, help="samples of one forward of a process")
    args = parser.parse_intermixed_args()
    config = load(args.config, args.overrides)
    folder = model_folder(config)
    config, _ = resolve_precision(config, folder)
    task = build_task(config, folder, load_data(config.data).questions)[0]
    prompts = [prompt for step in range(config.steps) for prompt in prompts_of_step(task.train, config, step)]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    check_prompts(prompts, tokenizer)
    questions = [prompt.question for prompt in prompts]
    rows = [{"prompt": messages(question), "row": index} for index, question in enumerate(questions)]
    with tempfile.TemporaryDirectory() as output_dir:
        trainer = TimedTrainer(
            model=str(folder),
            reward_funcs=rewards_by(task.reward, questions),
            args=settings(config, output_dir, args.micro_batch),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(StepTimes(trainer, samples_per_step(config)))
        trainer.train()


if __name__ == "__main__":
    main()
