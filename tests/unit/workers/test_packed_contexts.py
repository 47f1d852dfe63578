"""Teacher's rows with solutions of every source: what is packed into one row is scored as if it stood alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from transformers import AutoTokenizer

from demopsd_dist.config import Config, SolutionSource, load
from demopsd_dist.data.examples import ContextChooser, examples_with_contexts, reward_group
from demopsd_dist.data.packing import RowLayout
from demopsd_dist.data.prompts import PromptBuilder
from demopsd_dist.data.records import Logp, Question, Rollout, TrainingExample, forward_input
from demopsd_dist.data.rewards import resolve_reward
from demopsd_dist.methods import resolve_method
from demopsd_dist.minisci import MODEL_DIR, tasks
from tests.unit.house.source_files import ROOT
from workers.teacher.worker import TeacherWorker

QUESTIONS = tasks.questions("train", 3, 0)


def demo(*words: str) -> Config:
    return load(ROOT / "configs" / "demo.yaml", ["method=opsd", "leakage.every_steps=0", *words])


def responses(builder: PromptBuilder, question: Question) -> list[Rollout]:
    """Two right responses and a wrong one, as token ids of the demo's tokenizer."""
    prompt = builder.student(question)
    texts = [
        f"<reasoning>a</reasoning><answer>{question.answer}</answer>",
        f"<answer>{question.answer}</answer>",
        "<answer>0</answer>",
    ]
    ids = [np.asarray(builder.tokenizer(text)["input_ids"], np.int32) for text in texts]
    return [
        Rollout(prompt, i, tokens_T, np.zeros(len(tokens_T), np.float32), text, False, np.zeros_like(tokens_T), 0)
        for i, (text, tokens_T) in enumerate(zip(texts, ids, strict=True))
    ]


def examples_of(source: SolutionSource) -> list[TrainingExample]:
    builder = PromptBuilder(AutoTokenizer.from_pretrained(MODEL_DIR))
    groups = [reward_group(responses(builder, question), resolve_reward("answer")) for question in QUESTIONS]
    solutions = {question.id: question.solution or "" for question in QUESTIONS}
    chooser = ContextChooser("0", source, solutions=solutions, others=QUESTIONS)
    return examples_with_contexts(groups, builder, chooser).examples


def rows_of(examples: Sequence[TrainingExample], tree_tokens: int) -> list[tuple[int, ...]]:
    """Rows as the teacher worker lays them out."""
    layout: RowLayout[int] = RowLayout(
        lambda i: examples[i].prompt.id,
        lambda i: forward_input(examples[i].privileged_tokens, examples[i].response_T),
        tree_tokens,
    )
    return [row.items for row in layout.rows(range(len(examples)))]


def teacher_logp(examples: Sequence[TrainingExample], *words: str) -> list[Logp]:
    config = demo(*words)
    worker = TeacherWorker(0, config, MODEL_DIR)
    worker.start()
    supports = [np.zeros((example.response_length_tokens, 0), np.int32) for example in examples]
    scored = worker.score(examples, supports, resolve_method(config).forwards)
    return [teacher for _, _, teacher in scored if teacher is not None]


@pytest.mark.parametrize("source", list(SolutionSource))
def test_a_packed_batch_has_the_values_of_single_rows(source: SolutionSource) -> None:
    examples = examples_of(source)
    assert len(examples) == 9
    assert len(rows_of(examples, 0)) == 9
    rows = rows_of(examples, 2048)
    assert len(rows) == 3, "the responses to a question share a row, whatever each is shown"
    alone, together = teacher_logp(examples, "model.tree_tokens=0"), teacher_logp(examples)
    assert len(together) == 9
    for one, other, example in zip(alone, together, examples, strict=True):
        assert one.shape[0] == example.response_length_tokens
        np.testing.assert_allclose(one, other, atol=2e-5)


def test_the_source_of_the_solution_decides_the_teachers_values() -> None:
    """The right response is likelier under its own solution than under that of another question."""
    logp = {}
    for source in (SolutionSource.dataset, SolutionSource.other_question):
        examples = examples_of(source)
        logp[source] = sum(
            float(teacher_TV[np.arange(len(teacher_TV)), example.response_T].sum())
            for example, teacher_TV in zip(examples, teacher_logp(examples), strict=True)
            if example.reward == 1.0
        )
    assert logp[SolutionSource.dataset] > logp[SolutionSource.other_question] + 5.0
