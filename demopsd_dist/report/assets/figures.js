// Zoom, smoothing and export of charts; export of tables.

const REDRAWS = []; // of all charts, for a change of the smoothing

// Part of the series between two steps.
function shownPart(series, [from, to]) {
  const inside = ([x]) => x >= from && x <= to;
  return series.map((one) => ({ ...one, points: one.points.filter(inside), band: one.band?.filter(inside) })).filter((one) => one.points.length);
}

// Exponential moving average of the points with this weight of the past, 0 to 0.99, corrected for its start; null for 0.
function smoothed(points, weight) {
  if (!weight || points.length < 3) return null;
  let [total, norm] = [0, 0];
  return points.map(([x, y]) => {
    total = weight * total + (1 - weight) * y;
    norm = weight * norm + (1 - weight);
    return [x, total / norm];
  });
}

function smoothingControl() {
  const text = el("output", { for: "smoothing" }, " none");
  const input = el("input", {
    type: "range", id: "smoothing", min: 0, max: 0.98, step: 0.02, value: 0,
    oninput: () => {
      state.smoothing = Number(input.value);
      text.textContent = state.smoothing ? ` ${state.smoothing}` : " none";
      for (const redraw of REDRAWS) redraw();
    },
  });
  return el("form", { class: "controls", onsubmit: (event) => event.preventDefault() },
    el("label", { class: "field", for: "smoothing", title: "Exponential moving average: the weight of the steps before. The recorded values stay visible, faint." }, el("span", {}, "Smoothing", text), input),
    el("p", { class: "hint" }, "Drag over a chart to zoom to these steps; + and − zoom at the cursor, 0 shows all."),
  );
}

// Dragging, and the keys + - 0, choose the steps that a chart shows.
function addZoom(picture, series, frame, zoomTo) {
  const xs = [...new Set(series.flatMap((one) => one.points.map(([x]) => x)))].sort((a, b) => a - b);
  const nearest = (position) => xs.reduce((best, x) => (Math.abs(frame.x(x) - position) < Math.abs(frame.x(best) - position) ? x : best), xs[0]);
  const box = svg("rect", { class: "selection", y: MARGIN.top, height: CHART_HEIGHT - MARGIN.top - MARGIN.bottom, width: 0 });
  picture.append(box);
  let start = null;
  const at = (event) => event.clientX - picture.getBoundingClientRect().left;
  picture.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || event.pointerType === "touch") return; // a finger scrolls
    start = at(event);
    picture.setPointerCapture(event.pointerId);
  });
  picture.addEventListener("pointermove", (event) => {
    if (start === null) return;
    box.setAttribute("x", Math.min(start, at(event)));
    box.setAttribute("width", Math.abs(at(event) - start));
  });
  picture.addEventListener("pointerup", (event) => {
    const from = start;
    start = null;
    box.setAttribute("width", 0);
    if (from === null || Math.abs(at(event) - from) < 8) return;
    zoomTo([nearest(from), nearest(at(event))].sort((a, b) => a - b));
  });
  picture.addEventListener("pointercancel", () => {
    start = null;
    box.setAttribute("width", 0);
  });
  picture.addEventListener("dblclick", () => zoomTo(null));
  picture.addEventListener("keydown", (event) => {
    if (event.key === "0") zoomTo(null);
    if (!["+", "=", "-"].includes(event.key)) return;
    const middle = picture.cursorStep ?? (xs[0] + xs.at(-1)) / 2;
    const half = ((xs.at(-1) - xs[0]) / 2) * (event.key === "-" ? 2 : 0.5);
    const card = picture.closest("figure");
    zoomTo([middle - half, middle + half]);
    card.querySelector("svg[role=img]").focus(); // it has been drawn anew
  });
}

function chartTools(title, series, picture, showAll) {
  const name = fileName(title);
  const button = (text, about, onclick, attributes = {}) => el("button", { type: "button", class: "tool", title: about, "aria-label": `${title}: ${about}`, onclick, ...attributes }, text);
  return el(
    "div",
    { class: "tools" },
    button("All steps", "show all steps again", showAll, { class: "tool reset" }),
    button("SVG", "save the figure as SVG", () => save(`${name}.svg`, "image/svg+xml", standalone(picture(), series))),
    button("PNG", "save the figure as PNG", () => savePng(`${name}.png`, picture(), series)),
    button("CSV", "save the values as CSV", () => save(`${name}.csv`, "text/csv", csv(...chartColumns(series)))),
  );
}

function csvTool(title, head, rows) {
  return el("button", { type: "button", class: "tool", "aria-label": `${title}: save the table as CSV`, onclick: () => save(`${fileName(title)}.csv`, "text/csv", csv(head, rows())) }, "CSV");
}

// Head and rows of a chart's values, unrounded, with the bounds of intervals.
function chartColumns(series) {
  const xs = [...new Set(series.flatMap((one) => one.points.map(([x]) => x)))].sort((a, b) => a - b);
  const columns = series.flatMap((one) => {
    const bands = (one.band ?? []).length ? [[`${one.name} low`, new Map(one.band.map(([x, low]) => [x, low]))], [`${one.name} high`, new Map(one.band.map(([x, , high]) => [x, high]))]] : [];
    return [[one.name, new Map(one.points)], ...bands];
  });
  return [["step", ...columns.map(([name]) => name)], xs.map((x) => [x, ...columns.map(([, values]) => values.get(x) ?? "")])];
}

// Text of a CSV file. A text that a spreadsheet would read as a formula gets an apostrophe before it.
function csv(head, rows) {
  const cell = (value) => {
    let text = String(value ?? "");
    if (typeof value === "string" && /^[=+\-@\t\r]/.test(text) && !isFinite(Number(text))) text = `'${text}`;
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return [head, ...rows].map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
}

const fileName = (title) => `${RUNS.map((run) => run.name).join("-")}-${title}`.replace(/[^\w.-]+/g, "-").toLowerCase().slice(0, 120);

function save(name, kind, content) {
  const address = URL.createObjectURL(new Blob([content], { type: kind }));
  el("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}

const INLINED = ["fill", "stroke", "stroke-width", "stroke-dasharray", "stroke-linejoin", "opacity", "fill-opacity", "font-size", "font-family", "text-anchor"];

// The figure as an SVG file: with its colours, its legend, and the page's background.
function standalone(picture, series) {
  const copy = picture.cloneNode(true);
  const originals = [picture, ...picture.querySelectorAll("*")];
  [copy, ...copy.querySelectorAll("*")].forEach((node, i) => {
    const style = getComputedStyle(originals[i]);
    const values = INLINED.map((name) => [name, style.getPropertyValue(name)]);
    for (const name of ["class", "style"]) node.removeAttribute(name);
    for (const [name, value] of values) node.setAttribute(name, value);
  });
  const [width, legendHeight] = [Number(picture.getAttribute("width")), series.length > 1 ? 18 * series.length + 6 : 0];
  const card = getComputedStyle(picture.closest("figure"));
  copy.setAttribute("height", CHART_HEIGHT + legendHeight);
  copy.setAttribute("viewBox", `0 0 ${width} ${CHART_HEIGHT + legendHeight}`);
  copy.prepend(svg("rect", { width, height: CHART_HEIGHT + legendHeight, fill: card.backgroundColor }));
  if (legendHeight) {
    series.forEach((one, i) => {
      const line = { d: `M8 ${CHART_HEIGHT + 12 + 18 * i}h22`, stroke: resolved(one.colour, picture), "stroke-width": 2, "stroke-dasharray": one.dash };
      copy.append(svg("path", line), svg("text", { x: 38, y: CHART_HEIGHT + 16 + 18 * i, "font-size": 12, "font-family": "sans-serif", fill: card.color }, one.name));
    });
  }
  return new XMLSerializer().serializeToString(copy);
}

// A colour of the page's style as a plain colour.
function resolved(colour, near) {
  const probe = svg("path");
  probe.style.stroke = colour;
  near.append(probe);
  const value = getComputedStyle(probe).stroke;
  probe.remove();
  return value;
}

async function savePng(name, picture, series) {
  const image = new Image();
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(standalone(picture, series))}`;
  await image.decode();
  const canvas = el("canvas", { width: 2 * image.width, height: 2 * image.height });
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  canvas.toBlob((blob) => save(name, "image/png", blob));
}
