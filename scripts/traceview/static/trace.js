"use strict";

// One trace: its waterfall and the details of a span.
// Text from traces is inserted as text nodes only and never parsed as HTML.

const SERVICES = ["gateway", "orchestrator", "tokenizer", "inference"];
const WARNINGS = new Set(["cancelled", "refused", "invalid", "open", "failed_over"]);
const FAILOVER = "weir.failover";
const SVG = "http://www.w3.org/2000/svg";

const head = document.getElementById("head");
const tools = document.getElementById("tools");
const scale = document.getElementById("scale");
const rows = document.getElementById("rows");
const detail = document.getElementById("detail");

// The trace that is shown; `collapsed` has the ids of spans whose children are hidden.
let shown = { id: "", trace: null, selected: "", collapsed: new Set() };

function element(name, options = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(options)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

function drawn(name, options) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(options)) node.setAttribute(key, value);
  return node;
}

function duration(ms) {
  if (ms >= 1000) return `${(ms / 1000).toFixed(2)} s`;
  if (ms >= 1) return `${ms.toFixed(ms < 10 ? 2 : 1)} ms`;
  return `${Math.round(ms * 1000)} µs`;
}

function colorOf(service) {
  const index = SERVICES.indexOf(service);
  return `s${index < 0 ? 4 : index}`;
}

function badge(outcome) {
  if (outcome === "ok") return "";
  const kind = WARNINGS.has(outcome) ? "warn" : "bad";
  return element("b", { class: `badge ${kind}` }, outcome.replaceAll("_", " "));
}

// Ticks at multiples of 1, 2 or 5 times a power of ten: at most six, with room for their labels.
function roundTicks(total) {
  const width = scale.querySelector(".track").clientWidth;
  const least = total / Math.min(5, Math.max(2, Math.floor(width / 90)));
  const power = 10 ** Math.floor(Math.log10(least));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= least * 0.999);
  const [size, unit] = total >= 1000 ? [1000, "s"] : total >= 1 ? [1, "ms"] : [0.001, "µs"];
  return Array.from({ length: Math.floor(total / step + 0.001) + 1 }, (_, number) => {
    const value = (number * step) / size;
    return { ms: number * step, label: `${Number(value.toPrecision(6))} ${unit}` };
  });
}

function showScale(total, ticks) {
  const track = scale.querySelector(".track");
  track.replaceChildren(...ticks.map(({ ms, label }) => {
    const part = (ms / total) * 100;
    const side = part < 5 ? "first" : part > 92 ? "last" : "";
    const tick = element("span", { class: `tick ${side}` }, label);
    tick.style.left = `${part}%`;
    return tick;
  }));
}

function bar(span, total, ticks, steps) {
  const svg = drawn("svg", { "aria-hidden": "true" });
  const percent = (ms) => Math.max(0, Math.min(100, (ms / total) * 100));
  const addBox = (from, width, className, y, height, title) => {
    const place = { x: `${from}%`, width: `${width}%`, y: `${y}%`, height: `${height}%`, rx: 2 };
    const box = drawn("rect", { ...place, class: className });
    const label = drawn("title", {});
    label.textContent = title;
    box.append(label);
    svg.append(box);
  };
  for (const { ms } of ticks) {
    const x = `${percent(ms)}%`;
    svg.append(drawn("line", { x1: x, x2: x, y1: "0", y2: "100%", class: "grid" }));
  }
  const kind = span.failed ? "failed" : colorOf(span.service);
  addBox(percent(span.start_ms), Math.max(0.25, percent(span.duration_ms)),
    `${kind} ${span.kind === "client" ? "client" : ""}`, 15, 70,
    `${span.service}: ${span.name}, ${duration(span.duration_ms)}`);
  for (const event of span.events) {
    const isFailover = event.name === FAILOVER;
    addBox(percent(event.at_ms), isFailover ? 0.6 : 0.25, isFailover ? "failover" : "event", 0, 100,
      `${event.name} at ${duration(event.at_ms)}`);
  }
  for (const step of steps) {
    addBox(percent(step.start_ms), Math.max(0.2, percent(step.duration_ms)), "step", 86, 14,
      `engine step ${step.attributes["weir.step.number"]}, ${duration(step.duration_ms)}`);
  }
  return svg;
}

function stepsIn(span, trace) {
  if (!["prefill", "decode"].includes(span.name)) return [];
  return trace.steps.filter((step) => {
    const middle = step.start_ms + step.duration_ms / 2;
    return middle > span.start_ms && middle < span.start_ms + span.duration_ms;
  });
}

function shortName(span) {
  const isRpc = (span.name.includes("/") && span.kind !== "server") || span.name.includes(".v1.");
  return isRpc ? span.name.split(".").pop() : span.name;
}

function spanRow(span, trace, ticks) {
  const parts = [element("span", { class: "text" }, shortName(span))];
  if (span.kind !== "internal") parts.push(element("small", {}, span.kind));
  if (span.outcome !== "ok") parts.push(badge(span.outcome));
  const toggle = element("span", { class: "toggle", "aria-hidden": "true" });
  const label = element("span", { class: "label" }, ...parts);
  const name = element("span", { class: "name", title: `${span.service}: ${span.name}` },
    toggle, label);
  name.style.setProperty("--depth", span.depth);
  const row = element("div", { class: "row", role: "treeitem", tabindex: "-1",
    "aria-level": span.depth + 1 }, name,
    element("span", { class: "track" }, bar(span, trace.duration_ms, ticks, stepsIn(span, trace))),
    element("span", { class: "self" }, duration(span.self_ms)),
    element("span", { class: "time" }, duration(span.duration_ms)));
  row.dataset.id = span.id;
  toggle.addEventListener("click", (event) => {
    event.stopPropagation();
    setCollapsed([span], !shown.collapsed.has(span.id));
  });
  row.addEventListener("click", () => select(span));
  return row;
}

function parents() {
  const { spans } = shown.trace;
  return spans.filter((span, number) => (spans[number + 1]?.depth ?? 0) > span.depth);
}

function setCollapsed(spans, collapsed) {
  for (const span of spans) {
    if (collapsed) shown.collapsed.add(span.id);
    else shown.collapsed.delete(span.id);
  }
  showTree();
}

// Hides the descendants of collapsed spans: the rows after one that are deeper than it.
function showTree() {
  const foldable = new Set(parents().map((span) => span.id));
  let hiddenBelow = Infinity;
  shown.trace.spans.forEach((span, number) => {
    const row = rows.children[number];
    if (span.depth <= hiddenBelow) hiddenBelow = Infinity;
    row.hidden = span.depth > hiddenBelow;
    if (!foldable.has(span.id)) return;
    const collapsed = shown.collapsed.has(span.id);
    row.setAttribute("aria-expanded", String(!collapsed));
    if (collapsed && !row.hidden) hiddenBelow = span.depth;
  });
}

function pairs(values) {
  return element("table", {}, element("tbody", {},
    ...Object.entries(values).map(([name, value]) => element("tr", {}, element("th", {}, name),
      element("td", {}, Array.isArray(value) ? value.join(", ") : String(value))))));
}

function select(span) {
  shown.selected = span.id;
  for (const row of rows.children) {
    const isSelected = row.dataset.id === span.id;
    row.setAttribute("aria-selected", String(isSelected));
    row.tabIndex = isSelected ? 0 : -1;
  }
  const parts = [
    element("h3", {}, `${span.service}: ${span.name} `, badge(span.outcome)),
    element("p", {}, `${span.kind}, from ${duration(span.start_ms)} for ` +
      `${duration(span.duration_ms)}, of which ${duration(span.self_ms)} outside of its children` +
      `${span.message ? `: ${span.message}` : ""}`),
    pairs(span.attributes),
  ];
  for (const event of span.events) {
    parts.push(element("h3", {}, `${event.name} at ${duration(event.at_ms)}`),
      pairs(event.attributes));
  }
  detail.replaceChildren(...parts);
}

function showTrace(trace) {
  const isNew = shown.trace === null;
  shown.trace = trace;
  trace.duration_ms = Math.max(trace.duration_ms, 0.001);
  const root = trace.spans[0];
  const services = [...new Set(trace.spans.map((span) => span.service))];
  document.title = `${root.name} · ${duration(root.duration_ms)}`;
  head.replaceChildren(
    element("h2", {}, `${root.name} · ${duration(root.duration_ms)} `, badge(root.outcome)),
    element("p", {}, ...services.map((service) => element("span", { class: "legend" },
      element("i", { class: colorOf(service) }), service)),
    element("span", { class: "id" }, `trace ${trace.trace_id}`)));
  tools.hidden = scale.hidden = false;
  const ticks = roundTicks(trace.duration_ms);
  showScale(trace.duration_ms, ticks);
  rows.replaceChildren(...trace.spans.map((span) => spanRow(span, trace, ticks)));
  showTree();
  select(trace.spans.find((span) => span.id === shown.selected) || root);
  if (isNew) window.scrollTo(0, 0);
}

function showMissing(id) {
  head.replaceChildren(element("h2", {}, "Trace not found"),
    element("p", {}, `trace ${id}: not received yet, not sampled, or evicted`));
  rows.replaceChildren();
  detail.replaceChildren();
  tools.hidden = scale.hidden = true;
}

// The keys of a tree view (WAI-ARIA Authoring Practices).
rows.addEventListener("keydown", (event) => {
  const visible = [...rows.children].filter((row) => !row.hidden);
  const at = visible.indexOf(document.activeElement);
  if (at < 0) return;
  const row = visible[at];
  const span = shown.trace.spans.find((each) => each.id === row.dataset.id);
  const expanded = row.getAttribute("aria-expanded");
  const next = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: visible.length - 1 };
  if (event.key in next) visible[next[event.key]]?.focus();
  else if (event.key === "ArrowLeft" && expanded === "true") setCollapsed([span], true);
  else if (event.key === "ArrowRight" && expanded === "false") setCollapsed([span], false);
  else if (event.key === "ArrowRight" && expanded === "true") visible[at + 1]?.focus();
  else if (event.key === "ArrowLeft") {
    const above = visible.slice(0, at).reverse();
    above.find((each) => each.ariaLevel < row.ariaLevel)?.focus();
  } else if (event.key === "Enter" || event.key === " ") select(span);
  else return;
  event.preventDefault();
});
document.getElementById("collapse").addEventListener("click", () => setCollapsed(parents(), true));
document.getElementById("expand").addEventListener("click", () => setCollapsed(parents(), false));
