"""Data in people's own layouts up to the teacher's prompts, by `data.train=FILE` alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from demopsd_dist.config import load
from demopsd_dist.data.examples import RewardedGroup, examples_with_contexts, reward_group
from demopsd_dist.data.packing import pack
from demopsd_dist.data.records import Prompt, Rollout, ScoredExample
from demopsd_dist.data.rewards import ANSWER_FORMS
from demopsd_dist.data.sources import load_data
from demopsd_dist.minisci import MODEL_DIR
from demopsd_dist.minisci.tasks import questions
from demopsd_dist.training.step_prompts import ContextChooser
from launch._task import build_task
from tests.unit.data.sources.people_files import RECORDS, people_files, working

DEMO = Path(__file__).parents[4] / "configs" / "demo.yaml"
LAYOUTS = ["gsm8k", "verl", "trl", "mmlu"]
WORDS = ["data.minisci_test_size=8", "privileged.source=sibling_or_dataset"]


def response(prompt: Prompt, sample: int, text: str) -> Rollout:
    ids = np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int32)
    return Rollout(prompt, sample, ids, np.zeros(len(ids), np.float32), text, False, np.zeros_like(ids), 0)


def answered(prompt: Prompt, *answers: str) -> list[Rollout]:
    form = ANSWER_FORMS["answer"]
    return [response(prompt, sample, form.write(answer)) for sample, answer in enumerate(answers)]


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return people_files(tmp_path_factory.mktemp("people"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_from_the_file_to_the_packed_batch(paths: dict[str, Path], layout: str) -> None:
    words = [f"data.train={paths[layout]}", *(WORDS if layout != "mmlu" else WORDS[:1])]
    config = load(DEMO, words)
    data = load_data(config.data)
    task, skipped = build_task(config, MODEL_DIR, data.questions)
    assert (len(task.train), skipped["train"]) == (RECORDS, 0)
    originals = questions("train", RECORDS, seed=5)
    groups: list[RewardedGroup] = []
    for prompt, original in zip(task.train, originals, strict=True):
        question = prompt.question
        assert original.text in task.prompts.tokenizer.decode(prompt.tokens)
        assert (question.solution or "").count(working(original)) == (layout != "mmlu")
        if layout == "mmlu":
            assert f"{question.answer}: {original.answer}\n" in question.text
        else:
            assert question.answer == original.answer
        group = reward_group(answered(prompt, "no", question.answer, "none"), task.reward)
        assert group.rewards == [0, 1, 0]
        groups.append(group)
    contexts = ContextChooser("0", config.privileged.source, solutions=task.solutions.texts)
    wrong = [reward_group(answered(group.prompt, "no", "none"), task.reward) for group in groups]
    examples = examples_with_contexts(groups, task.prompts, contexts).examples
    alone = examples_with_contexts(wrong, task.prompts, contexts).examples
    assert {example.source for example in alone} == ({"dataset"} if layout != "mmlu" else set())
    for example in alone:
        original = originals[int(example.question.id.partition("/")[2]) - 1]
        assert working(original) in task.prompts.tokenizer.decode(example.privileged_tokens)
    scored = [ScoredExample(example, np.zeros((1, 1), np.int32), None, None) for example in examples]
    batch = pack(scored, examples_with_contexts(groups, task.prompts, contexts).size, 2, 4096, 2048)
    assert len(batch.items) == len(examples) > 2 * RECORDS - 1
