// Streams one search at a time from /api/v1/search and shows it as it comes.
"use strict";

const form = document.getElementById("form");
const query = document.getElementById("query");
const searchButton = document.getElementById("search");
const stopButton = document.getElementById("stop");
const status_ = document.getElementById("status");
const error = document.getElementById("error");
const answer = document.getElementById("answer");
const summary = document.getElementById("summary");
const details = document.getElementById("details");
const sources = document.getElementById("sources");
const results = document.getElementById("results");
const traceUrl = document.querySelector('meta[name="weir-trace-url"]').content;

let running = null; // the AbortController of the search that runs

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const text = query.value.trim();
  if (!text) return;
  history.replaceState(null, "", `?q=${encodeURIComponent(text)}`);
  search(text);
});

// Aborting the fetch closes the connection, which ends the work on the server.
stopButton.addEventListener("click", () => running?.abort());
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
});

async function search(text) {
  running?.abort();
  const mine = (running = new AbortController());
  const started = performance.now();
  begin();
  try {
    const response = await fetch(
      `/api/v1/search?streaming=true&query=${encodeURIComponent(text)}`,
      { signal: mine.signal, headers: { accept: "text/event-stream" } },
    );
    if (!response.ok) throw new Error(await refusal(response));
    let complete = false;
    for await (const event of events(response.body)) {
      if (mine !== running) return;
      if (event.name === "error") throw new Error(event.data.error.message);
      complete ||= event.name === "complete";
      show(event, started);
    }
    if (!complete) throw new Error("The answer broke off; the connection was lost.");
  } catch (problem) {
    if (mine !== running) return;
    if (mine.signal.aborted) status_.textContent = "Stopped.";
    else fail(problem);
  } finally {
    if (mine === running) end();
  }
}

function begin() {
  stopButton.disabled = false;
  error.hidden = answer.hidden = sources.hidden = true;
  summary.replaceChildren();
  details.replaceChildren();
  results.replaceChildren();
  status_.textContent = "Searching…";
}

function end() {
  running = null;
  // A disabled button loses the focus; whoever used it goes on from the search field.
  if (document.activeElement === stopButton) query.focus();
  stopButton.disabled = true;
  summary.classList.remove("writing");
  link(summary);
}

function fail(problem) {
  status_.textContent = "";
  error.textContent = problem.message || "The server could not be reached.";
  error.hidden = false;
}

async function refusal(response) {
  const again = response.headers.get("retry-after");
  const hint = again ? ` Try again in ${again} s.` : "";
  try {
    return (await response.json()).error.message + hint;
  } catch {
    return `The server answered ${response.status}.${hint}`;
  }
}

function show(event, started) {
  const seconds = ((performance.now() - started) / 1000).toFixed(1);
  if (event.name === "search_results") {
    results.append(...event.data.results.map(result));
    sources.hidden = !event.data.results.length;
    answer.hidden = false;
    summary.classList.add("writing");
    status_.textContent = `${count(event.data.results.length, "source")} found, reading…`;
  } else if (event.name === "token") {
    if (!summary.hasChildNodes()) status_.textContent = "Writing…";
    summary.append(event.data.token);
  } else if (event.name === "complete") {
    const reason = { length: ", cut at the length limit", abort: ", ended by an operator" };
    status_.textContent = `Done in ${seconds} s${reason[event.data.finish_reason] ?? ""}.`;
    details.append(`${count(event.data.usage.completion_tokens, "token")} · request `);
    details.append(element("code", "", event.data.request_id));
    if (traceUrl) {
      const trace = element("a", "", "trace");
      trace.href = traceUrl.replace("{trace_id}", event.data.trace_id);
      details.append(" · ", trace);
    }
  }
}

function result(found) {
  const item = element("li");
  item.id = `source-${found.position}`;
  const text = element("div");
  const safe = /^https?:/i.test(found.url);
  const title = element(safe ? "a" : "span", "title", found.title || found.url);
  if (safe) Object.assign(title, { href: found.url, rel: "noreferrer" });
  text.append(
    title,
    element("div", "url", found.url),
    element("p", "snippet", found.snippet),
  );
  item.append(element("span", "number", String(found.position)), text);
  return item;
}

// [n] becomes a link to the source, once no half of it can be missing.
function link(node) {
  const text = node.textContent;
  const parts = text.split(/(\[\d+\])/).map((part) => {
    const number = /^\[(\d+)\]$/.exec(part)?.[1];
    if (!number || !document.getElementById(`source-${number}`)) return part;
    const citation = element("a", "", part);
    citation.href = `#source-${number}`;
    citation.setAttribute("aria-label", `Source ${number}`);
    return citation;
  });
  node.replaceChildren(...parts);
}

function element(name, className = "", text = "") {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.textContent = text;
  return made;
}

function count(number, noun) {
  return `${number} ${noun}${number === 1 ? "" : "s"}`;
}

// EventSource can neither be told of an HTTP error nor be kept from asking again.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const frames = (buffer + value).split("\n\n");
    buffer = frames.pop();
    for (const frame of frames) {
      const name = /^event: (.*)$/m.exec(frame)?.[1];
      const data = /^data: (.*)$/m.exec(frame)?.[1];
      if (name && data) yield { name, data: JSON.parse(data) };
    }
  }
}

const asked = new URLSearchParams(location.search).get("q");
if (asked?.trim()) {
  query.value = asked;
  search(asked.trim());
}
