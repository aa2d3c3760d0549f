// The search page: runs one search at a time and shows its answer and figures.
"use strict";

import { addText, clear, element, showResults, showSupport } from "/answer.js";
import { apiKey, SearchStream } from "/stream.js";

const find = (id) => document.getElementById(id);
const form = find("form");
const query = find("query");
const stopButton = find("stop");
const status_ = find("status");
const error = find("error");
const answer = find("answer");
const summary = find("summary");
const figures = find("figures");
const flagged = find("flagged");
const sources = find("sources");
const keyForm = find("key-form");
const traceUrl = document.querySelector('meta[name="weir-trace-url"]').content;

let running = null; // the SearchStream that is being read
let started = 0;
let firstToken = 0;
let numTokens = 0;

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const text = query.value.trim();
  if (!text) return;
  history.replaceState(null, "", `?q=${encodeURIComponent(text)}`);
  search(text);
});

keyForm.addEventListener("submit", (event) => {
  event.preventDefault();
  apiKey(find("key").value.trim());
  keyForm.hidden = true;
  form.requestSubmit();
});

stopButton.addEventListener("click", () => running?.stop());
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.stop();
});
// Stop the stream when the page is closed.
addEventListener("pagehide", () => running?.stop());

async function search(text) {
  running?.stop();
  const mine = (running = new SearchStream(text));
  begin();
  try {
    for await (const event of mine.events(() => say("Connection lost, trying again…"))) {
      if (mine !== running) return;
      if (event.name === "error") throw new Error(event.data.error.message);
      show(event);
    }
  } catch (problem) {
    if (mine !== running) return;
    if (mine.stopped) say(`Stopped after ${count(numTokens, "token")}.`);
    else fail(problem);
  } finally {
    if (mine === running) end();
  }
}

function begin() {
  started = performance.now();
  firstToken = numTokens = 0;
  stopButton.disabled = false;
  error.hidden = answer.hidden = sources.hidden = flagged.hidden = true;
  clear();
  figures.replaceChildren();
  // Screen readers announce the text when it is complete.
  summary.setAttribute("aria-busy", "true");
  say("Searching…");
}

function end() {
  running = null;
  // A disabled button loses the focus: move it to the search field.
  if (document.activeElement === stopButton) query.focus();
  stopButton.disabled = true;
  summary.classList.remove("writing");
  summary.setAttribute("aria-busy", "false");
}

function fail(problem) {
  say("");
  const unreachable = problem instanceof TypeError;
  error.textContent = unreachable ? "The server could not be reached." : problem.message;
  error.hidden = false;
  if (problem.status === 401) {
    keyForm.hidden = false;
    find("key").focus();
  }
}

function show(event) {
  if (event.name === "search_results") {
    const found = event.data.results;
    showResults(found);
    sources.hidden = !found.length;
    answer.hidden = false;
    summary.classList.add("writing");
    say(`${count(found.length, "source")} found, reading…`);
  } else if (event.name === "token") {
    firstToken ||= performance.now();
    numTokens += 1;
    addText(event.data.token);
    say("Writing…");
    showFigures(numTokens);
  } else if (event.name === "complete") {
    complete(event.data);
  }
}

function complete(data) {
  const reason = { length: ", cut at the length limit", abort: ", ended by an operator" };
  say(`Done in ${seconds(performance.now() - started)}${reason[data.finish_reason] ?? ""}.`);
  const numFlagged = showSupport(data.citation_details);
  flagged.hidden = !numFlagged;
  const verb = numFlagged === 1 ? "is" : "are";
  flagged.textContent =
    `${count(numFlagged, "sentence")} ${verb} not supported by the sources, and underlined.`;
  showFigures(data.usage.completion_tokens, data);
}

function showFigures(tokens, data = null) {
  const now = performance.now();
  const rate = (tokens - 1) / ((now - firstToken) / 1000);
  const shown = [["Tokens", String(tokens)]];
  if (firstToken) shown.push(["First token", seconds(firstToken - started)]);
  if (firstToken && tokens > 1) shown.push(["Speed", `${rate.toFixed(1)} tokens/s`]);
  if (data) shown.push(["Request", data.request_id]);
  figures.replaceChildren(...shown.map(([name, value]) => figure(name, value)));
  if (data && traceUrl && data.trace_sampled) {
    const link = element("a", "", "Trace");
    link.href = traceUrl.replace("{trace_id}", data.trace_id);
    const item = element("div");
    item.append(element("dt", "hidden", "Trace"), element("dd"));
    item.lastChild.append(link);
    figures.append(item);
  }
}

function figure(name, value) {
  const item = element("div");
  item.append(element("dt", "", name), element("dd", "", value));
  return item;
}

// Announce changes only.
function say(message) {
  if (status_.textContent !== message) status_.textContent = message;
}

function seconds(milliseconds) {
  return `${(milliseconds / 1000).toFixed(milliseconds < 1000 ? 2 : 1)} s`;
}

function count(number, noun) {
  return `${number} ${noun}${number === 1 ? "" : "s"}`;
}

const urlQuery = new URLSearchParams(location.search).get("q");
if (urlQuery?.trim()) {
  query.value = urlQuery;
  search(urlQuery.trim());
}
