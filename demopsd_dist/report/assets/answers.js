// Section Evaluation responses: recorded questions with their responses before and after the training.

const CHANGES = {
  "": "all",
  better: "more right than before",
  worse: "fewer right than before",
  never: "never right",
};
const rightOf = (evaluation) => evaluation.responses.filter((one) => one.reward >= 0.5).length;

async function showAnswers() {
  const withAnswers = RUNS.map((run, number) => ({ run, number })).filter(({ run }) => run.evaluated);
  if (!withAnswers.length) return;
  byId("answers").hidden = false;
  for (const { run, number } of withAnswers) {
    const { questions } = await unpack(`evaluation-${number}`);
    byId("answer-lists").append(answerList(questions, number, run));
  }
}

function answerList(questions, number, run) {
  const splits = [...new Set(questions.map((one) => one.split))];
  const option = ([value, text]) => el("option", { value }, text);
  const split = el("select", { id: `answer-split-${number}`, onchange: () => list() }, ...splits.map((one) => option([one, one === "ood" ? "out of distribution" : one])));
  const change = el("select", { id: `answer-change-${number}`, onchange: () => list() }, ...Object.entries(CHANGES).map(option));
  const count = el("p", { class: "hint", role: "status" });
  const box = el("div", { class: "answer-list" });
  function list() {
    const shown = questions.filter((one) => one.split === split.value && fits(one, change.value));
    count.textContent = plural(shown.length, "question");
    box.replaceChildren(...shown.map(answerDetails));
  }
  list();
  const labelled = (text, input) => el("label", { class: "field", for: input.id }, el("span", {}, text), input);
  return el(
    "div",
    { class: "answers" },
    MANY ? el("h3", {}, run.name) : null,
    el("form", { class: "controls", onsubmit: (event) => event.preventDefault() }, labelled("Questions", split), labelled("Change", change), count),
    box,
  );
}

function fits(question, change) {
  const [first, end] = [question.evaluations[0], question.evaluations.at(-1)];
  const difference = rightOf(end) / end.responses.length - rightOf(first) / first.responses.length;
  return { "": true, better: difference > 0, worse: difference < 0, never: question.evaluations.every((one) => !rightOf(one)) }[change];
}

// The responses become elements when the question is opened.
function answerDetails(question) {
  const counts = question.evaluations.map((one) => `${rightOf(one)} of ${one.responses.length}`).join(" → ");
  const node = el("details", { class: "answer" }, el("summary", {}, el("span", { class: "answer-count" }, `${counts} right`), ` ${question.field}: `, ...visibleLines(question.question), ` (expected ${question.expected})`));
  node.addEventListener("toggle", () => {
    if (!node.open || node.children.length > 1) return;
    node.append(el("div", { class: "answer-columns" }, ...question.evaluations.map((one) => el("section", {}, el("h4", {}, one.step ? `after step ${one.step}` : "before training"), el("ul", { class: "siblings" }, ...one.responses.map(answerCard))))));
  });
  return node;
}

function answerCard(one) {
  const good = one.reward >= 0.5;
  return el("li", { class: "card sibling" }, el("span", { class: good ? "badge right" : "badge wrong" }, `${good ? "✓ right" : "✗ wrong"} · reward ${short(one.reward)}`), el("pre", { tabindex: 0 }, ...visibleLines(one.text || "(empty)")));
}
