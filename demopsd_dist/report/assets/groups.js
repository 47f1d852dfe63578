// All responses to a question side by side, with their rewards, and those that the teacher saw.

function viewTabs(count, changed) {
  const names = { tokens: "Tokens", group: `Group of ${count}` };
  const tabs = Object.entries(names).map(([name, text]) =>
    el("button", {
      type: "button", role: "tab", class: "view-tab", "data-view": name, "aria-selected": String(state.view === name), tabindex: state.view === name ? 0 : -1,
      onclick: () => {
        state.view = name;
        changed();
        document.querySelector(`.view-tab[data-view=${name}]`)?.focus();
      },
      onkeydown: (event) => {
        if (!["ArrowLeft", "ArrowRight"].includes(event.key)) return;
        event.preventDefault();
        event.target.parentNode.querySelector("[aria-selected=false]").click();
      },
    }, text),
  );
  return el("div", { class: "view-tabs", role: "tablist", "aria-label": "Shown of the sample" }, ...tabs);
}

// same: sample number -> recorded entry or undefined; choose: shows an entry
function groupView(entry, group, same, choose) {
  const right = group.filter((one) => one.reward >= 0.5).length;
  const cards = group.map((one) => {
    const recorded = same(one.sample);
    const own = one.sample === entry.sample;
    const good = one.reward >= 0.5;
    return el(
      "li",
      { class: `card sibling${own ? " own" : ""}${one.shown ? " shown" : ""}` },
      el("p", { class: "facts" }, el("span", { class: good ? "badge right" : "badge wrong" }, `${good ? "✓ right" : "✗ wrong"} · reward ${short(one.reward)}`), el("span", {}, `response ${one.sample + 1}`)),
      own ? el("p", { class: "role" }, "this response") : null,
      one.shown ? el("p", { class: "role seen" }, "in the teacher’s prompt for this response") : null,
      el("pre", { tabindex: 0 }, ...visibleLines(one.text || "(empty)")),
      recorded && !own ? el("button", { type: "button", class: "tool", onclick: () => choose(recorded) }, "Open") : null,
    );
  });
  const shown = group.filter((one) => one.shown).length;
  const saw = ["No response of the group stands in the teacher’s prompt for this one.", "The teacher saw the marked one while it scored this response."][shown] ?? "The teacher saw one of the marked ones, whose texts are the same, while it scored this response.";
  const story = `${right} of ${group.length} responses are right. ${saw}`;
  return el("div", { class: "group-view" }, el("p", { class: "story" }, story), el("ul", { class: "siblings" }, ...cards));
}
