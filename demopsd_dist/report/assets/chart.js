// Line chart: series over steps with intervals, a cursor that shows values, and the values as a table.

const CHART_HEIGHT = 216;
const MARGIN = { left: 48, right: 12, top: 22, bottom: 38 };

// series: [{name, colour, dash, points: [[x, y]], band: [[x, low, high]], dots}]; unit: name of the y axis, with its unit
function lineChart({ title, about, series, unit, show = short, zero = false, log = false }) {
  const drawable = series.filter((one) => one.points.length);
  if (!drawable.length) return null;
  let zoom = null; // first and last step shown; null for all
  const plot = el("div", { class: "plot" });
  const tip = el("div", { class: "tip", role: "status", hidden: true });
  const numbers = el("details", { class: "numbers" }, el("summary", {}, "Numbers"));
  numbers.addEventListener("toggle", () => {
    if (numbers.open && numbers.children.length === 1) numbers.append(el("div", { class: "scroll" }, valueTable(drawable, show)));
  });
  const card = el(
    "figure",
    { class: "card chart" },
    el("figcaption", {}, el("h3", {}, title), el("p", {}, about)),
    drawable.length > 1 ? legend(drawable) : null,
    plot,
    tip,
    chartTools(title, drawable, () => plot.querySelector("svg"), () => zoomTo(null)),
    numbers,
  );
  let drawn = 0;
  REDRAWS.push(() => drawn && draw(drawn));
  function zoomTo(range) {
    zoom = range && shownPart(drawable, range).some((one) => one.points.length > 1) ? range : null;
    card.classList.toggle("zoomed", zoom !== null);
    tip.hidden = true;
    draw(drawn);
  }
  new ResizeObserver(([entry]) => {
    const width = Math.round(entry.contentRect.width);
    if (width > 80 && width !== drawn) draw((drawn = width));
  }).observe(plot);

  function draw(width) {
    const part = zoom ? shownPart(drawable, zoom) : drawable;
    const lines = part.map((one) => ({ ...one, smooth: smoothed(one.points, state.smoothing) }));
    const frame = scales(part, width, zero, log);
    const picture = svg("svg", {
      width,
      height: CHART_HEIGHT,
      viewBox: `0 0 ${width} ${CHART_HEIGHT}`,
      role: "img",
      tabindex: 0,
      "aria-label": `${title}: ${drawable.map((one) => `${one.name} ${show(one.points.at(-1)[1])}`).join(", ")} at the end`,
    });
    axes(picture, frame, unit, show);
    for (const one of lines) drawSeries(picture, one, frame);
    addCursor(picture, tip, part, frame, show);
    addZoom(picture, part, frame, zoomTo);
    plot.replaceChildren(picture);
  }
  return card;
}

function legend(series) {
  return el("ul", { class: "legend" }, ...series.map((one) => el("li", {}, swatch(one), one.name)));
}

function swatch(one) {
  return svg("svg", { width: 22, height: 10, "aria-hidden": "true" }, stroke(svg("path", { d: "M1 5H21" }), one));
}

function stroke(path, one) {
  path.style.stroke = one.colour;
  path.setAttribute("class", "line");
  if (one.dash) path.setAttribute("stroke-dasharray", one.dash);
  return path;
}

function scales(series, width, zero, log) {
  const xs = series.flatMap((one) => one.points.map(([x]) => x));
  const ys = series.flatMap((one) => [...one.points.map(([, y]) => y), ...(one.band ?? []).flatMap(([, low, high]) => [low, high])]);
  let [x0, x1] = [Math.min(...xs), Math.max(...xs)];
  if (x0 === x1) [x0, x1] = [Math.max(0, x0 - 1), x1 + 1];
  const positive = ys.filter((y) => y > 0);
  const logged = log && positive.length > 0;
  let [y0, y1] = logged ? [Math.min(...positive), Math.max(...positive)] : [Math.min(...ys), Math.max(...ys)];
  if (zero && !logged) y0 = Math.min(y0, 0);
  const to = logged ? Math.log10 : (y) => y;
  let [low, high] = [to(y0), to(y1)];
  if (low === high) [low, high] = zero && low === 0 ? [0, 1] : [low - (Math.abs(low) * 0.1 || 1), high + (Math.abs(high) * 0.1 || 1)];
  const ticks = logged ? decades(low, high) : niceTicks(low, high, 4);
  [low, high] = [Math.min(low, ticks[0]), Math.max(high, ticks.at(-1))];
  const inner = width - MARGIN.left - MARGIN.right;
  const tall = CHART_HEIGHT - MARGIN.top - MARGIN.bottom;
  return {
    x: (x) => MARGIN.left + (inner * (x - x0)) / (x1 - x0),
    y: (y) => MARGIN.top + tall * (1 - (to(logged ? Math.max(y, 10 ** low) : y) - low) / (high - low)),
    xTicks: niceTicks(x0, x1, Math.max(2, Math.floor(inner / 70))).filter((x) => x >= x0 && x <= x1 && Number.isInteger(x)),
    yTicks: logged ? ticks.map((tick) => 10 ** tick) : ticks,
    right: MARGIN.left + inner,
    bottom: MARGIN.top + tall,
  };
}

function niceTicks(low, high, count) {
  const raw = (high - low) / count;
  const size = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((factor) => factor * size).find((one) => one >= raw * 0.999);
  const first = Math.floor(low / step + 1e-9);
  const ticks = [];
  for (let i = first; ; i++) {
    ticks.push(Number((i * step).toPrecision(12)));
    if (i * step >= high - step * 1e-9) return ticks;
  }
}

function decades(low, high) {
  const ticks = [];
  const every = Math.max(1, Math.ceil((high - low) / 4));
  for (let tick = Math.floor(low); ; tick += every) {
    ticks.push(tick);
    if (tick >= high) return ticks;
  }
}

function axes(picture, frame, unit, show) {
  for (const tick of frame.yTicks) {
    const y = frame.y(tick);
    picture.append(
      svg("path", { class: "rule", d: `M${MARGIN.left} ${y}H${frame.right}` }),
      svg("text", { class: "tick", x: MARGIN.left - 8, y: y + 4, "text-anchor": "end" }, show(tick)),
    );
  }
  for (const tick of frame.xTicks) {
    picture.append(svg("text", { class: "tick", x: frame.x(tick), y: CHART_HEIGHT - 20, "text-anchor": "middle" }, String(tick)));
  }
  picture.append(
    svg("text", { class: "tick", x: 0, y: 11 }, unit, meaningOfUnit(unit) ? svg("title", {}, meaningOfUnit(unit)) : null),
    svg("text", { class: "tick", x: (MARGIN.left + frame.right) / 2, y: CHART_HEIGHT - 3, "text-anchor": "middle" }, "step", svg("title", {}, MEANINGS.step)),
  );
}

function drawSeries(picture, one, frame) {
  if (one.band?.length > 1) {
    const upper = one.band.map(([x, , high]) => `${frame.x(x)} ${frame.y(high)}`);
    const lower = one.band.map(([x, low]) => `${frame.x(x)} ${frame.y(low)}`).reverse();
    const band = svg("path", { class: "band", d: `M${[...upper, ...lower].join("L")}Z` });
    band.style.fill = one.colour;
    picture.append(band);
  }
  const path = (points) => stroke(svg("path", { d: `M${points.map(([x, y]) => `${frame.x(x)} ${frame.y(y)}`).join("L")}` }), one);
  const raw = path(one.points);
  picture.append(raw);
  if (one.smooth) {
    raw.style.opacity = 0.25;
    picture.append(path(one.smooth));
  }
  if (one.dots || one.points.length < 12) {
    for (const [x, y] of one.points) {
      const dot = svg("circle", { class: "dot", cx: frame.x(x), cy: frame.y(y), r: 3 });
      dot.style.fill = one.colour;
      picture.append(dot);
    }
  }
}

function addCursor(picture, tip, series, frame, show) {
  const xs = [...new Set(series.flatMap((one) => one.points.map(([x]) => x)))].sort((a, b) => a - b);
  const values = series.map((one) => new Map(one.points));
  const bands = series.map((one) => new Map((one.band ?? []).map(([x, ...bounds]) => [x, bounds])));
  const line = svg("path", { class: "cursor", d: "" });
  picture.append(line);
  let at = -1;

  function moveTo(index) {
    at = clamp(index, 0, xs.length - 1);
    const x = xs[at];
    picture.cursorStep = x;
    line.setAttribute("d", `M${frame.x(x)} ${MARGIN.top}V${frame.bottom}`);
    const rows = series.flatMap((one, i) => {
      if (!values[i].has(x)) return [];
      const interval = bands[i].get(x);
      const between = interval ? ` (${show(interval[0])} to ${show(interval[1])})` : "";
      return [el("div", {}, swatch(one), `${one.name} `, el("b", {}, show(values[i].get(x))), between)];
    });
    tip.replaceChildren(el("div", { class: "tip-head" }, `step ${x}`), ...rows);
    tip.hidden = false;
    const left = frame.x(x) > picture.clientWidth / 2;
    tip.classList.toggle("left", left);
  }
  function leave() {
    at = -1;
    tip.hidden = true;
    line.setAttribute("d", "");
  }
  picture.addEventListener("pointermove", (event) => {
    const x = event.clientX - picture.getBoundingClientRect().left;
    let nearest = 0;
    xs.forEach((one, i) => {
      if (Math.abs(frame.x(one) - x) < Math.abs(frame.x(xs[nearest]) - x)) nearest = i;
    });
    moveTo(nearest);
  });
  picture.addEventListener("pointerleave", leave);
  picture.addEventListener("blur", leave);
  picture.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: xs.length - 1 };
    if (event.key === "Escape") leave();
    if (!(event.key in moves)) return;
    event.preventDefault();
    moveTo(at < 0 && event.key === "ArrowLeft" ? xs.length - 1 : moves[event.key]);
  });
}

function valueTable(series, show) {
  const xs = [...new Set(series.flatMap((one) => one.points.map(([x]) => x)))].sort((a, b) => a - b);
  const values = series.map((one) => new Map(one.points));
  return table(["step", ...series.map((one) => one.name)], xs.map((x) => [String(x), ...values.map((byStep) => (byStep.has(x) ? show(byStep.get(x)) : ""))]));
}
