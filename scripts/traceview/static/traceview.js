"use strict";

// Text from traces is inserted as text nodes only and never parsed as HTML.

const SERVICES = ["gateway", "orchestrator", "tokenizer", "inference"];
const REFRESH_MS = 1500;
const WARNINGS = new Set(["cancelled", "refused", "invalid", "open", "failed_over"]);
const SVG = "http://www.w3.org/2000/svg";

const list = document.getElementById("list");
const head = document.getElementById("head");
const rows = document.getElementById("rows");
const detail = document.getElementById("detail");

let shown = { id: "", numSpans: -1, selected: "" };

function element(name, options = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(options)) node.setAttribute(key, value);
  node.append(...children);
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
  return element("span", { class: `outcome ${WARNINGS.has(outcome) ? "warn" : "bad"}` }, outcome);
}

function currentId() {
  const found = location.pathname.match(/^\/trace\/([0-9a-f]{32})$/);
  return found ? found[1] : "";
}

async function get(path) {
  const response = await fetch(path);
  return response.ok ? response.json() : null;
}

function showList(traces) {
  document.getElementById("nothing").hidden = traces.length > 0;
  list.replaceChildren(...traces.map((trace) => {
    const link = element("a", { href: `/trace/${trace.trace_id}` },
      element("span", {}, trace.name),
      element("small", {}, `${new Date(trace.start).toLocaleTimeString()} · `,
        `${duration(trace.duration_ms)} · ${trace.num_spans} spans `, badge(trace.outcome)));
    if (trace.trace_id === shown.id) link.setAttribute("aria-current", "true");
    link.addEventListener("click", (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      history.pushState(null, "", link.href);
      refresh();
    });
    return element("li", {}, link);
  }));
}

function bar(span, total, steps) {
  const svg = document.createElementNS(SVG, "svg");
  const addBox = (from, width, className, y, height, title) => {
    const box = document.createElementNS(SVG, "rect");
    const numbers = { x: `${from}%`, width: `${width}%`, y: `${y}%`, height: `${height}%`, rx: 2 };
    for (const [key, value] of Object.entries(numbers)) box.setAttribute(key, value);
    box.setAttribute("class", className);
    const label = document.createElementNS(SVG, "title");
    label.textContent = title;
    box.append(label);
    svg.append(box);
  };
  const percent = (ms) => Math.max(0, Math.min(100, (ms / total) * 100));
  const kind = span.failed ? "failed" : colorOf(span.service);
  const title = `${span.service}: ${span.name}, ${duration(span.duration_ms)}`;
  addBox(percent(span.start_ms), Math.max(0.25, percent(span.duration_ms)),
    `${kind} ${span.kind === "client" ? "client" : ""}`, 15, 70, title);
  for (const event of span.events) {
    addBox(percent(event.at_ms), 0.25, "event", 5, 90, `${event.name} at ${duration(event.at_ms)}`);
  }
  for (const step of steps) {
    addBox(percent(step.start_ms), Math.max(0.2, percent(step.duration_ms)), "step", 86, 14,
      `engine step ${step.attributes["weir.step.number"]}, ${duration(step.duration_ms)}`);
  }
  return svg;
}

function showDetail(span) {
  shown.selected = span.id;
  for (const row of rows.children) {
    row.setAttribute("aria-selected", String(row.dataset.id === span.id));
  }
  const pairs = (values) => element("table", {}, element("tbody", {},
    ...Object.entries(values).map(([name, value]) => element("tr", {}, element("th", {}, name),
      element("td", {}, Array.isArray(value) ? value.join(", ") : String(value))))));
  const parts = [
    element("h3", {}, `${span.service}: ${span.name} `, badge(span.outcome)),
    element("p", {}, `${span.kind}, from ${duration(span.start_ms)} for ` +
      `${duration(span.duration_ms)}${span.message ? `: ${span.message}` : ""}`),
    pairs(span.attributes),
  ];
  for (const event of span.events) {
    parts.push(element("h3", {}, `${event.name} at ${duration(event.at_ms)}`),
      pairs(event.attributes));
  }
  detail.replaceChildren(...parts);
}

function spanRow(span, trace, total) {
  const short = span.name.includes("/") && span.kind !== "server" || span.name.includes(".v1.")
    ? span.name.split(".").pop() : span.name;
  const name = element("span", { class: "name", title: `${span.service}: ${span.name}` },
    short, " ", element("small", {}, span.kind === "internal" ? "" : span.kind), " ",
    badge(span.outcome));
  name.style.paddingLeft = `${span.depth * 0.9}rem`;
  const steps = ["prefill", "decode"].includes(span.name)
    ? trace.steps.filter((step) => {
      const middle = step.start_ms + step.duration_ms / 2;
      return middle > span.start_ms && middle < span.start_ms + span.duration_ms;
    })
    : [];
  const row = element("button", { class: "row", role: "treeitem", type: "button",
    "aria-level": span.depth + 1 }, name,
    element("span", { class: "track" }, bar(span, total, steps)),
    element("span", { class: "time" }, duration(span.duration_ms)));
  row.dataset.id = span.id;
  row.addEventListener("click", () => showDetail(span));
  return row;
}

function showTrace(trace) {
  const root = trace.spans[0];
  const total = Math.max(trace.duration_ms, 0.001);
  const services = [...new Set(trace.spans.map((span) => span.service))];
  document.title = `${root.name} · ${duration(total)}`;
  head.replaceChildren(
    element("h2", {}, `${root.name} · ${duration(root.duration_ms)} `, badge(root.outcome)),
    element("p", {}, ...services.map((service) => element("span", { class: "legend" },
      element("i", { class: colorOf(service) }), service)), `trace ${trace.trace_id}`));
  const scale = element("div", { class: "row scale" }, element("span"),
    element("span", { class: "track" },
      ...[0, 0.25, 0.5, 0.75, 1].map((part) => element("span", {}, duration(part * total)))),
    element("span"));
  rows.replaceChildren(scale, ...trace.spans.map((span) => spanRow(span, trace, total)));
  showDetail(trace.spans.find((span) => span.id === shown.selected) || root);
}

async function refresh() {
  const traces = await get("/api/traces").catch(() => null);
  if (traces === null) return;
  const id = currentId() || (traces.length ? traces[0].trace_id : "");
  const summary = traces.find((trace) => trace.trace_id === id);
  const numSpans = summary ? summary.num_spans : -1;
  if (id && (id !== shown.id || numSpans !== shown.numSpans)) {
    const trace = await get(`/api/traces/${id}`).catch(() => null);
    if (trace !== null) {
      shown = { id, numSpans, selected: id === shown.id ? shown.selected : "" };
      showTrace(trace);
    } else {
      head.replaceChildren(element("h2", {}, "Trace not found"),
        element("p", {}, `trace ${id}: not received yet, not sampled, or evicted`));
      rows.replaceChildren();
      detail.replaceChildren();
      shown = { id, numSpans: -1, selected: "" };
    }
  }
  showList(traces);
}

window.addEventListener("popstate", refresh);
refresh();
setInterval(refresh, REFRESH_MS);
