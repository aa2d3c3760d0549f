"use strict";

// The list of traces, its filters, and the choice of the trace that trace.js shows.

const REFRESH_MS = 1500;
const TYPING_MS = 150;
const FIELDS = ["q", "outcome", "min_ms", "max_ms"];
const ALL_FAILOVERS = "failovers";

const list = document.getElementById("list");
const count = document.getElementById("count");
const fields = Object.fromEntries(FIELDS.map((name) => [name, document.getElementById(name)]));

let version = -1;
let entries = new Map(); // by trace id: the summary as JSON, and its element
let latest = "";
let typing = 0;

function currentId() {
  const found = location.pathname.match(/^\/trace\/([0-9a-f]{32})$/);
  return found ? found[1] : "";
}

function filters() {
  const given = FIELDS.map((name) => [name, fields[name].value.trim()]);
  return new URLSearchParams(given.filter(([, value]) => value));
}

function pageUrl(path) {
  const query = filters().toString();
  return query ? `${path}?${query}` : path;
}

function entryOf(trace) {
  const badges = [];
  if (trace.num_failovers) {
    const times = trace.num_failovers > 1 ? ` ×${trace.num_failovers}` : "";
    badges.push(element("b", { class: "badge warn" }, `⇄ failed over${times}`));
  }
  if (!["ok", "failed_over"].includes(trace.outcome)) badges.push(badge(trace.outcome));
  const facts = `${new Date(trace.start).toLocaleTimeString()} · ` +
    `${duration(trace.duration_ms)} · ${trace.num_spans} ${trace.num_spans === 1 ? 'span' : 'spans'}`;
  const link = element("a", {}, element("span", { class: "title" }, trace.name),
    element("span", { class: "facts" }, element("small", {}, facts), ...badges));
  link.dataset.id = trace.trace_id;
  return element("li", {}, link);
}

function showList(traces) {
  const previous = entries;
  entries = new Map(traces.map((trace) => {
    const json = JSON.stringify(trace);
    const known = previous.get(trace.trace_id);
    const node = known?.json === json ? known.node : entryOf(trace);
    return [trace.trace_id, { json, node }];
  }));
  const nodes = [...entries.values()].map((entry) => entry.node);
  const isSame = nodes.length === list.children.length &&
    nodes.every((node, number) => node === list.children[number]);
  if (!isSame) list.replaceChildren(...nodes);
}

function showOutcomes(outcomes) {
  const total = Object.entries(outcomes)
    .reduce((sum, [name, number]) => sum + (name === ALL_FAILOVERS ? 0 : number), 0);
  const wanted = fields.outcome.value;
  const names = new Set([...Object.keys(outcomes), wanted].filter((name) => name));
  const options = [["", `any outcome (${total})`]];
  for (const name of [...names].sort()) {
    const label = name === ALL_FAILOVERS ? "with a failover" : name.replaceAll("_", " ");
    options.push([name, `${label} (${outcomes[name] || 0})`]);
  }
  fields.outcome.replaceChildren(...options.map(([value, label]) =>
    element("option", { value }, label)));
  fields.outcome.value = wanted;
}

function markCurrent(id) {
  for (const link of list.querySelectorAll("a[aria-current]")) link.removeAttribute("aria-current");
  entries.get(id)?.node.firstChild.setAttribute("aria-current", "true");
}

async function get(path) {
  const response = await fetch(path).catch(() => null);
  return response !== null && response.status === 200 ? response.json() : null;
}

async function refreshList() {
  const query = filters();
  const asked = query.toString();
  if (version >= 0) query.set("version", version);
  const found = await get(`/api/traces?${query}`);
  if (found === null || filters().toString() !== asked) return false;
  version = found.version;
  showList(found.traces);
  showOutcomes(found.outcomes);
  latest = found.traces.length ? found.traces[0].trace_id : "";
  const isFiltered = asked !== "";
  count.textContent = found.traces.length
    ? `${found.traces.length} trace${found.traces.length > 1 ? "s" : ""}`
    : isFiltered ? "No trace matches." : "No traces received. Send a request to the gateway.";
  return true;
}

async function refreshTrace() {
  const id = currentId() || shown.id || latest;
  document.body.dataset.view = currentId() ? "trace" : "list";
  markCurrent(id);
  if (!id) return;
  if (id !== shown.id) shown = { id, trace: null, selected: "", collapsed: new Set() };
  const trace = await get(`/api/traces/${id}`);
  if (id !== shown.id) return;
  if (trace === null) showMissing(id);
  else if (trace.spans.length !== shown.trace?.spans.length) showTrace(trace);
}

async function poll() {
  if (await refreshList()) await refreshTrace();
  setTimeout(poll, REFRESH_MS);
}

function applyFilters() {
  history.replaceState(null, "", pageUrl(location.pathname));
  version = -1;
  refreshList().then(() => markCurrent(shown.id));
}

function goTo(path) {
  history.pushState(null, "", pageUrl(path));
  refreshTrace();
}

function readUrl() {
  const given = new URLSearchParams(location.search);
  for (const name of FIELDS) {
    const value = given.get(name) || "";
    if (name === "outcome") fields.outcome.replaceChildren(element("option", { value }, value));
    fields[name].value = value;
  }
}

function isPlainClick(event) {
  return !(event.ctrlKey || event.metaKey || event.shiftKey || event.button);
}

document.getElementById("filter").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(applyFilters, TYPING_MS);
});
document.getElementById("filter").addEventListener("submit", (event) => event.preventDefault());
// Links are completed when they are used: the filters in them change.
list.addEventListener("pointerover", (event) => complete(event.target.closest("a")));
list.addEventListener("focusin", (event) => complete(event.target.closest("a")));
list.addEventListener("click", (event) => {
  const link = event.target.closest("a");
  if (link === null || !isPlainClick(event)) return;
  event.preventDefault();
  goTo(`/trace/${link.dataset.id}`);
});
document.getElementById("back").addEventListener("click", (event) => {
  if (!isPlainClick(event)) return;
  event.preventDefault();
  goTo("/");
});
window.addEventListener("popstate", () => {
  readUrl();
  version = -1;
  refreshList().then(refreshTrace);
});

function complete(link) {
  if (link) link.href = pageUrl(`/trace/${link.dataset.id}`);
}

readUrl();
poll();
