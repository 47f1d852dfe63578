"""Records that pass between the roles. Frozen; a later stage makes a new type instead of filling in a field.

    Question -> Prompt -> Rollout -> TrainingExample -> ScoredExample -> TrainBatch

Legend: T response tokens, K support ids, A atoms: K + 1 with the tail bucket, or V when the support is the whole
vocabulary. Log-probabilities are natural logarithms at the training temperature; float32, or float16 on the way from
the teacher if so configured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from demopsd_dist.data.thinking import THINK_OPEN

Tokens = NDArray[np.int32]
Logp = NDArray[np.float32] | NDArray[np.float16]


@dataclass(frozen=True)
class Question:
    """One record of a data set.

    Attributes:
        history: (role, text) of the turns of a chat between the system message and `text`, the user's last message.
        solution: the data set's own worked solution, if it has one.
        task: the generator and index of a question of a library of tasks, whose own scorer rewards it.
        suffix: end of `text` that `data.suffix` has added.

    Example: `Question(id="physics/7", text="A car at 3 m/s ...", answer="15", field="physics")`
    """

    id: str
    text: str
    answer: str
    field: str
    system: str | None = None
    history: tuple[tuple[str, str], ...] = ()
    solution: str | None = None
    task: str | None = None
    suffix: str = ""

    def __post_init__(self) -> None:
        turns = tuple((role, text) for role, text in self.history)  # lists, where it was read from JSON
        object.__setattr__(self, "history", turns)


@dataclass(frozen=True)
class Prompt:
    """A question as the student sees it: chat template applied, generation prompt included."""

    question: Question
    tokens: Tokens
    opens_thought: bool = False  # ends with `<think>`: the response begins inside a thought

    @property
    def id(self) -> str:
        return self.question.id


def bare_prompt(name: str, tokens: Tokens) -> Prompt:
    """A prompt of which only the tokens are known."""
    return Prompt(Question(name, text="", answer="", field=""), tokens)


@dataclass(frozen=True)
class Rollout:
    """One sampled response.

    Attributes:
        logp_T: the engine's own log-probability of each sampled token.
        version_T: weight version that sampled each token: weights may be published during a response.
    """

    prompt: Prompt
    sample: int  # 0 .. group_size - 1
    tokens_T: Tokens  # ends with the end-of-turn token unless truncated
    logp_T: NDArray[np.float32]
    text: str  # decoded, special tokens removed
    truncated: bool  # hit the response limit
    version_T: Tokens
    worker: int
    attempt: int = 1  # number of times its prompt was requested, this one included
    support_TK: Tokens | None = None  # the engine's most likely ids, where the support is `rollout`

    @property
    def id(self) -> str:
        return f"{self.prompt.id}#{self.sample}"

    @property
    def full_text(self) -> str:
        """The response, after the `<think>` that its prompt has opened, if any."""
        return f"{THINK_OPEN}{self.text}" if self.prompt.opens_thought else self.text

    @property
    def oldest_version(self) -> int:
        return int(self.version_T[0])


@dataclass(frozen=True)
class RewardResult:
    """The reward of a response, 0.0 to 1.0, and feedback on it for the teacher. Blank feedback is none.

    Attributes:
        reward: a number, also as a scalar or an array without dimensions of numpy or torch.
        undecided: the comparison or the task's scorer failed or took too long, so that `reward` is 0.

    Example: `RewardResult(0.0, feedback="The unit is missing.")`
    """

    reward: float
    feedback: str | None = None
    undecided: bool = False

    def __post_init__(self) -> None:
        value = self.reward
        if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
            value = value.item()
        if not isinstance(value, Real):
            raise TypeError(f"a reward is a number from 0 to 1, not {type(self.reward).__name__}.")
        reward = float(value)
        if math.isnan(reward) or not 0.0 <= reward <= 1.0:
            raise ValueError(f"a reward is a number from 0 to 1, not {reward:g}.")
        if not isinstance(self.feedback, str | None):
            raise TypeError(f"feedback is text or None, not {type(self.feedback).__name__}.")
        object.__setattr__(self, "reward", reward)
        object.__setattr__(self, "feedback", self.feedback if self.feedback and self.feedback.strip() else None)


@dataclass(frozen=True)
class PrivilegedContext:
    """Texts that the teacher sees for one response beyond the student's prompt.

    Attributes:
        source: origin of the solutions: `sibling`, `dataset`, `sibling_and_dataset`, `answer_only` or
            `other_question`; `feedback` where there is no solution.

    Example: `PrivilegedContext(("<answer>15</answer>",), None, "answer_only")`
    """

    solutions: tuple[str, ...]
    feedback: str | None
    source: str


@dataclass(frozen=True)
class TermWeights:
    """Weights of the two terms of a mixed loss at all tokens of one response, each 0 to 1."""

    policy: float
    distillation: float


@dataclass(frozen=True)
class TrainingExample:
    """A rollout to learn from, with its reward, its advantage in its group, and the teacher's prompt.

    Attributes:
        source: origin of the teacher's solution (`PrivilegedContext`); None without a teacher.
        cut: the solution or the feedback was cut to fit privileged.max_tokens.
        terms: weights of the loss's terms, where the method mixes two.
    """

    rollout: Rollout
    reward: float
    advantage: float  # its reward minus the mean of its group, perhaps scaled
    privileged_tokens: Tokens  # the teacher's prompt: question, solution, feedback; empty without a teacher
    source: str | None = None
    cut: bool = False
    terms: TermWeights | None = None

    @property
    def id(self) -> str:
        return self.rollout.id

    @property
    def prompt(self) -> Prompt:
        return self.rollout.prompt

    @property
    def question(self) -> Question:
        return self.prompt.question

    @property
    def response_T(self) -> Tokens:
        return self.rollout.tokens_T

    @property
    def student_input(self) -> Tokens:
        """Input of the student's forward: prompt and response without its last token, which predicts nothing."""
        return forward_input(self.prompt.tokens, self.response_T)

    @property
    def response_length_tokens(self) -> int:
        return len(self.response_T)


def forward_input(prompt: Tokens, response_T: Tokens) -> Tokens:
    """Input of a forward whose last T positions predict the response tokens."""
    return np.concatenate([prompt, response_T[:-1]])


@dataclass(frozen=True)
class ScoredExample:
    """An example with log-probabilities on its support, without and with the privileged view.

    A field is None where the method runs no such forward; the teacher's also where a mixed loss has nothing to show
    for this response. A support without columns is the whole vocabulary.
    """

    example: TrainingExample
    support_TK: NDArray[np.int32]
    reference_logp_TA: Logp | None
    teacher_logp_TA: Logp | None

    @property
    def id(self) -> str:
        return self.example.id

    @property
    def rollout(self) -> Rollout:
        return self.example.rollout

    @property
    def prompt(self) -> Prompt:
        return self.example.prompt


@dataclass(frozen=True)
class TrainBatch:
    """The batch of one optimizer step: `shards[rank][micro_batch]` is a tuple of rows, perhaps empty.

    A row holds examples of one question, which share a line of the forward. Every rank has the same number of
    micro-batches, since ranks must meet in collectives. The counts are global: each rank divides its sums by
    them, so the loss does not depend on the sharding.
    """

    shards: tuple[tuple[tuple[tuple[ScoredExample, ...], ...], ...], ...]
    token_count: int  # response tokens in the shards
    size: BatchSize
    learning_rate_factor: float = 1.0  # of the schedule's learning rate
    record_ids: frozenset[str] = frozenset()  # rollouts for which the learners return a `TokenRecord`
    digest_request: DigestRequest | None = None

    @property
    def items(self) -> list[ScoredExample]:
        """All examples, in no particular order."""
        return [item for rank in self.shards for micro_batch in rank for row in micro_batch for item in row]


@dataclass(frozen=True)
class DigestRequest:
    """Request for digests of all tensors that the learners compute in a step.

    Attributes:
        write_gradient_to: folder, the same for all ranks, into which each rank writes its gradient.
        compare_gradient_with: folder of a written gradient to compare with.
    """

    write_gradient_to: Path | None = None
    compare_gradient_with: Path | None = None


@dataclass(frozen=True)
class BatchSize:
    """Size of the batch that the loss is a mean over.

    It exceeds the shards where some responses are left out because their gradient is known to be zero.
    """

    tokens: int
    sequences: int

    def __add__(self, other: BatchSize) -> BatchSize:
        return BatchSize(self.tokens + other.tokens, self.sequences + other.sequences)


@dataclass(frozen=True)
class TokenRecord:
    """Per-token values of one response from the learners: for its first T tokens, and for C candidates at each.

    A log-probability is None where the method has no such view.
    """

    entropy_T: NDArray[np.float32]  # of the student over the whole vocabulary, nats
    loss_T: NDArray[np.float32]  # nats
    distributions: dict[str, NDArray[np.float32]]  # metric -> (T,), for DemoPSD alpha and disagreement
    candidate_TC: Tokens  # ids, by the highest probability that any view gives them
    student_logp_TC: NDArray[np.float32]
    reference_logp_TC: NDArray[np.float32] | None
    teacher_logp_TC: NDArray[np.float32] | None
    target_logp_TC: NDArray[np.float32] | None  # the target of the student: DemoPSD's barycenter


@dataclass(frozen=True)
class StepReport:
    """Results of one step from all learner ranks: `metrics` are means over all response tokens of the batch."""

    metrics: dict[str, float]
    stepped: bool  # False where the batch held no token to learn from
    token_records: dict[str, TokenRecord] = field(default_factory=dict)  # by rollout id, for `TrainBatch.record_ids`
    digests: dict[str, dict[str, str]] = field(default_factory=dict)  # tensor -> row -> digest, if requested
