// The search page: a conversation of which one search runs at a time.
"use strict";

import { element, plain, Turn } from "/answer.js";
import { showFigures } from "/figures.js";
import { apiKey, exampleQuestions, SearchStream } from "/stream.js";

const NUM_RELATED = 3;
const MAX_TURNS = 20;
const STAGES = { rewriting: "Understanding the question…", searching: "Searching…", reading: "Reading…" };

const find = (id) => document.getElementById(id);
const form = find("form");
const query = find("query");
const stopButton = find("stop");
const status_ = find("status");
const error = find("error");
const conversation = find("conversation");
const keyForm = find("key-form");
const examples = find("examples");

let turns = [];
let running = null; // the SearchStream that is being read
let started = 0;
let firstToken = 0;
let numTokens = 0;

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const text = query.value.trim();
  if (text) ask(text);
});

keyForm.addEventListener("submit", (event) => {
  event.preventDefault();
  apiKey(find("key").value.trim());
  keyForm.hidden = true;
  const last = turns.pop();
  last?.element.remove();
  if (last) ask(last.query);
  else showExamples();
});

find("new").addEventListener("click", () => {
  running?.stop();
  turns = [];
  conversation.replaceChildren();
  history.replaceState(null, "", "/");
  error.hidden = true;
  say("");
  arrange();
  query.value = "";
  query.focus();
  showExamples();
});

stopButton.addEventListener("click", () => running?.stop());
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.stop();
  if (event.key === "/" && !/^(INPUT|TEXTAREA)$/.test(event.target.tagName)) {
    event.preventDefault();
    query.focus();
  }
});
// Stop the stream when the page is closed.
addEventListener("pagehide", () => running?.stop());

async function ask(text) {
  running?.stop();
  const earlier = turns.filter((turn) => turn.isComplete).slice(-MAX_TURNS);
  const past = earlier.map((turn) => ({ query: turn.query, summary: turn.text }));
  const mine = (running = new SearchStream(text, past, NUM_RELATED));
  const turn = begin(text);
  try {
    for await (const event of mine.events(() => say("Connection lost, trying again…"))) {
      if (mine !== running) return;
      if (event.name === "error") throw new Error(event.data.error.message);
      show(turn, event);
    }
  } catch (problem) {
    if (mine !== running) return;
    if (mine.stopped) say(`Stopped after ${count(numTokens, "token")}.`);
    else if (!turn.isComplete) fail(problem);
  } finally {
    if (mine === running) end(turn);
  }
}

function begin(text) {
  started = performance.now();
  firstToken = numTokens = 0;
  stopButton.disabled = false;
  error.hidden = true;
  turns.at(-1)?.setCurrent(false);
  const turn = new Turn(text);
  turns.push(turn);
  turn.setCurrent(true);
  conversation.append(turn.element);
  history.replaceState(null, "", `?q=${encodeURIComponent(turns[0].query)}`);
  arrange();
  query.value = turns.length > 1 ? "" : text;
  if (turns.length > 1) turn.element.scrollIntoView({ block: "start" });
  // Screen readers announce the text when it is complete.
  turn.summary.setAttribute("aria-busy", "true");
  turn.summary.classList.add("writing");
  say("Searching…");
  return turn;
}

function end(turn) {
  running = null;
  // A disabled button loses the focus: move it to the search field.
  if (document.activeElement === stopButton) query.focus();
  stopButton.disabled = true;
  turn.summary.classList.remove("writing");
  turn.summary.setAttribute("aria-busy", "false");
  if (turn.isComplete) query.value = "";
}

// Before the first question the page has examples, afterwards a way back to its beginning.
function arrange() {
  const isEmpty = !turns.length;
  find("new").hidden = isEmpty;
  examples.hidden = !isEmpty || !examples.querySelector("li");
  form.classList.toggle("following", !isEmpty);
  query.placeholder = isEmpty ? "What would you like to know?" : "Ask a follow-up question";
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

function show(turn, event) {
  const data = event.data;
  if (event.name === "status") {
    if (!firstToken) say(STAGES[data.status] ?? "");
  } else if (event.name === "search_results") {
    turn.showSearches(data.searches ?? []);
    turn.showResults(data.results);
    say(`${count(data.results.length, "passage")} found, reading…`);
  } else if (event.name === "token") {
    firstToken ||= performance.now();
    numTokens += 1;
    turn.addText(data.token);
    say("Writing…");
    figures(turn, null);
  } else if (event.name === "complete") {
    complete(turn, data);
  } else if (event.name === "related") {
    showQuestions(turn.find(".related"), data.questions);
  }
}

function complete(turn, data) {
  const reason = { length: ", cut at the length limit", abort: ", ended by an operator" };
  say(`Done in ${seconds(performance.now() - started)}${reason[data.finish_reason] ?? ""}.`);
  const numFlagged = turn.showSupport(data.citation_details);
  const flagged = turn.find(".flagged");
  flagged.hidden = !numFlagged;
  const verb = numFlagged === 1 ? "is" : "are";
  flagged.textContent =
    `${count(numFlagged, "sentence")} ${verb} not supported by the sources, and underlined.`;
  if (data.nothing_found) turn.find(".sources h3").textContent = "Nearest passages";
  turn.isComplete = true;
  turn.summary.classList.remove("writing");
  turn.find(".actions").hidden = false;
  turn.find(".copy").addEventListener("click", (event) => copy(event.target, plain(turn.text)));
  turn.find(".share").addEventListener("click", (event) => copy(event.target, link(turn)));
  figures(turn, data);
}

function figures(turn, data) {
  const times = { started, firstToken, now: performance.now() };
  const tokens = data ? data.usage.completion_tokens : numTokens;
  showFigures(turn.find(".figures"), times, tokens, data);
}

// The address that asks the question of a turn, as it can be understood alone.
function link(turn) {
  const asked = turn.searches[0] ?? turn.query;
  return `${location.origin}/?q=${encodeURIComponent(asked)}`;
}

async function copy(button, text) {
  try {
    await navigator.clipboard.writeText(text);
    say("Copied.");
  } catch {
    // The browser allows it on HTTPS and on localhost only.
    const area = element("textarea", "hidden");
    area.value = text;
    document.body.append(area);
    area.select();
    say(document.execCommand("copy") ? "Copied." : "The browser does not allow copying here.");
    area.remove();
    button.focus();
  }
}

function showQuestions(section, questions) {
  const items = questions.map((question) => {
    const button = element("button", "question-link", question);
    button.type = "button";
    button.addEventListener("click", () => ask(question));
    const item = element("li");
    item.append(button);
    return item;
  });
  section.querySelector("ul").replaceChildren(...items);
  section.hidden = !items.length;
}

async function showExamples() {
  showQuestions(examples, await exampleQuestions());
  arrange();
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
  ask(urlQuery.trim());
} else {
  showExamples();
}
