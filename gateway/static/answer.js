// Renders an answer: sources, streamed text, and the supporting passage of each sentence.
"use strict";

const CITATION = /(\[\d+(?:, ?\d+)*\])/;

const summary = document.getElementById("summary");
const results = document.getElementById("results");

let text = "";
let sources = new Map(); // position -> { item, snippet, characters }
let pinned = null; // the citation whose source stays highlighted

export function clear() {
  text = "";
  sources = new Map();
  pinned = null;
  summary.replaceChildren();
  results.replaceChildren();
}

export function showResults(found) {
  for (const result of found) {
    const item = element("li");
    item.id = `source-${result.position}`;
    item.tabIndex = -1;
    const safe = /^https?:/i.test(result.url);
    const title = element(safe ? "a" : "span", "title", plain(result.title) || result.url);
    if (safe) Object.assign(title, { href: result.url, rel: "noreferrer" });
    const snippet = element("p", "snippet", plain(result.snippet));
    const body = element("div");
    body.append(title, element("div", "url", result.url), snippet);
    item.append(element("span", "number", String(result.position)), body);
    item.title = `Relevance ${result.score.toFixed(2)}`;
    sources.set(result.position, { item, snippet, characters: Array.from(result.snippet) });
    results.append(item);
  }
}

// A piece never contains a part of a citation.
export function addText(piece) {
  text += piece;
  summary.append(...pieces(piece));
}

// Renders the whole text again, each sentence with its support; returns the unsupported ones.
export function showSupport(details) {
  const characters = Array.from(text);
  const sentences = new Map();
  for (const detail of details) {
    const [begin, end] = detail.sentence;
    if (!sentences.has(begin)) sentences.set(begin, { begin, end, details: [] });
    sentences.get(begin).details.push(detail);
  }
  const nodes = [];
  let last = 0;
  let current = null;
  const upTo = (end) => pieces(characters.slice(last, end).join(""), current?.details);
  for (const sentence of sentences.values()) {
    nodes.push(...upTo(sentence.begin));
    last = sentence.begin;
    current = sentence;
    const supported = sentence.details.some((detail) => detail.supported);
    const node = element("span", supported ? "sentence" : "sentence unsupported");
    node.append(...upTo(sentence.end));
    if (!supported) {
      node.title = "No source says this in these words.";
      node.append(element("span", "hidden", " (not supported by a source)"));
    }
    nodes.push(node);
    last = sentence.end;
  }
  nodes.push(...upTo(characters.length));
  summary.replaceChildren(...nodes);
  const all = [...sentences.values()];
  return all.filter((sentence) => !sentence.details.some((detail) => detail.supported)).length;
}

function pieces(piece, details = []) {
  return piece.split(CITATION).flatMap((part) => {
    if (!CITATION.test(part)) return part ? [plain(part)] : [];
    return part.match(/\d+/g).map(Number).map((number) => citation(number, details));
  });
}

function citation(number, details) {
  const source = sources.get(number);
  if (!source) return `[${number}]`;
  const link = element("a", "citation", String(number));
  link.href = `#source-${number}`;
  const title = source.item.querySelector(".title").textContent;
  link.setAttribute("aria-label", `Source ${number}: ${title}`);
  const span = details.find((detail) => detail.n === number)?.span;
  link.addEventListener("mouseenter", () => mark(number, span));
  link.addEventListener("focus", () => mark(number, span));
  for (const leaving of ["mouseleave", "blur"]) link.addEventListener(leaving, restore);
  link.addEventListener("click", (event) => {
    event.preventDefault();
    pinned = { number, span };
    mark(number, span);
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    const target = source.item.querySelector("mark") ?? source.item;
    target.scrollIntoView({ block: "center", behavior: calm ? "auto" : "smooth" });
    source.item.focus({ preventScroll: true });
  });
  return link;
}

function mark(number, span) {
  unmark();
  const { item, snippet, characters } = sources.get(number);
  item.classList.add("cited");
  if (!span) return;
  const part = (from, to) => plain(characters.slice(from, to).join(""));
  const marked = element("mark", "", part(span[0], span[1]));
  snippet.replaceChildren(part(0, span[0]), marked, part(span[1]));
}

function unmark() {
  for (const { item, snippet, characters } of sources.values()) {
    if (!item.classList.contains("cited")) continue;
    item.classList.remove("cited");
    snippet.textContent = plain(characters.join(""));
  }
}

function restore() {
  if (pinned) mark(pinned.number, pinned.span);
  else unmark();
}

// The server escapes markup; decode it, because the text is shown as plain text.
function plain(escaped) {
  return escaped.replaceAll("&lt;", "<").replaceAll("&amp;", "&");
}

export function element(name, className = "", content = "") {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.textContent = content;
  return made;
}
