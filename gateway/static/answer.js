// Renders one turn of the conversation: sources, streamed text, and the support of each sentence.
"use strict";

import { parse } from "/markdown.js";

const CITATION = /(\[\d+(?:, ?\d+)*\])/;

let numTurns = 0;

export class Turn {
  #text = "";
  #details = [];
  #passages = new Map(); // position -> Passage
  #pinned = null; // the citation whose source stays highlighted
  #frame = 0;
  #prefix;

  constructor(query) {
    const template = document.getElementById("turn").content.firstElementChild;
    this.query = query;
    this.searches = [];
    this.isComplete = false;
    this.element = template.cloneNode(true);
    this.#prefix = numTurns++ ? `turn-${numTurns}-` : "";
    this.find(".question").textContent = query;
    this.summary = this.find(".summary");
  }

  find(selector) {
    return this.element.querySelector(selector);
  }

  // The text of the answer, as the server has sent it.
  get text() {
    return this.#text;
  }

  // Only one turn at a time has the ids that scripts and styles of others may refer to.
  setCurrent(isCurrent) {
    for (const name of ["summary", "results", "figures", "flagged"]) {
      this.find(`.${name}`).id = isCurrent ? name : "";
    }
    this.element.classList.toggle("current", isCurrent);
  }

  showSearches(searches) {
    this.searches = searches;
    const other = searches.filter((each) => each !== this.query);
    const line = this.find(".searched");
    line.hidden = !other.length;
    line.textContent = `Searched for: ${other.join(" · ")}`;
  }

  // Passages of one document are one card.
  showResults(found) {
    const cards = new Map();
    for (const result of found) {
      const key = result.url || result.title;
      if (!cards.has(key)) cards.set(key, card(result));
      const passage = new Passage(result, `${this.#prefix}source-${result.position}`);
      this.#passages.set(result.position, passage);
      cards.get(key).append(passage.element);
    }
    this.find(".results").replaceChildren(...cards.values());
    this.find(".sources").hidden = !found.length;
  }

  // Renders once for each frame of the screen, however many pieces arrive.
  addText(piece) {
    this.#text += piece;
    this.#frame ||= requestAnimationFrame(() => this.#render());
  }

  // Renders the text with the support of each sentence; returns the number of unsupported ones.
  showSupport(details) {
    this.#details = details;
    for (const detail of details) {
      if (detail.span) this.#passages.get(detail.n)?.cite(detail.span);
    }
    this.#render();
    return this.#sentences().filter((sentence) => !sentence.supported).length;
  }

  #render() {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    const sentences = this.#sentences();
    const nodes = [];
    for (const block of parse(this.#text)) {
      const node = element(block.tag);
      for (const run of block.runs) node.append(...this.#run(run, sentences));
      const list = nodes.at(-1);
      if (block.tag !== "li") nodes.push(node);
      else if (list?.tagName === "UL") list.append(node);
      else nodes.push(wrap("ul", [node]));
    }
    this.summary.replaceChildren(...nodes);
  }

  // The sentences with their places in the text, which JavaScript counts in UTF-16 code units.
  #sentences() {
    const units = [0];
    for (const character of this.#text) units.push(units.at(-1) + character.length);
    const sentences = new Map();
    for (const detail of this.#details) {
      const [begin, end] = detail.sentence.map((place) => units[place]);
      if (!sentences.has(begin)) sentences.set(begin, { begin, end, supported: false, details: [] });
      const sentence = sentences.get(begin);
      sentence.details.push(detail);
      sentence.supported ||= detail.supported;
    }
    return [...sentences.values()];
  }

  #run(run, sentences) {
    const nodes = [];
    let place = run.begin;
    while (place < run.end) {
      const inside = sentences.find((each) => each.begin <= place && place < each.end);
      const next = sentences.find((each) => each.begin > place);
      const end = Math.min(run.end, inside?.end ?? next?.begin ?? run.end);
      const before = sentences.findLast((each) => each.begin <= place);
      const parts = this.#pieces(this.#text.slice(place, end), before?.details);
      if (inside && end === inside.end) parts.push(...this.#attributions(inside));
      nodes.push(...(inside ? [sentenceNode(inside, parts, end === inside.end)] : parts));
      place = end;
    }
    return run.tags.reduceRight((inner, tag) => [styled(tag, inner, run.href)], nodes);
  }

  #pieces(piece, details = []) {
    return piece.split(CITATION).flatMap((part) => {
      if (!CITATION.test(part)) return part ? [plain(part)] : [];
      return part.match(/\d+/g).map((number) => this.#citation(Number(number), details));
    });
  }

  // The sources of a sentence that cites none, but that they support.
  #attributions(sentence) {
    const attributed = sentence.details.filter((detail) => detail.attributed);
    return attributed.map((detail) => this.#citation(detail.n, [detail]));
  }

  #citation(number, details) {
    const passage = this.#passages.get(number);
    if (!passage) return `[${number}]`;
    const link = element("a", "citation", String(number));
    link.href = `#${passage.element.id}`;
    link.setAttribute("aria-label", `Source ${number}: ${passage.title}`);
    const span = details.find((detail) => detail.n === number)?.span;
    for (const event of ["mouseenter", "focus"]) {
      link.addEventListener(event, () => this.#mark(passage, span));
    }
    for (const event of ["mouseleave", "blur"]) link.addEventListener(event, () => this.#restore());
    link.addEventListener("click", (event) => {
      event.preventDefault();
      this.#pinned = { passage, span };
      this.#mark(passage, span);
      passage.show();
    });
    return link;
  }

  #mark(passage, span) {
    for (const other of this.#passages.values()) other.activate(null);
    passage.activate(span ?? []);
  }

  #restore() {
    for (const passage of this.#passages.values()) passage.activate(null);
    if (this.#pinned) this.#mark(this.#pinned.passage, this.#pinned.span);
  }
}

// A passage of a source, with the spans that support sentences.
class Passage {
  #characters;
  #spans = [];
  #snippet = element("p", "snippet");

  constructor(result, id) {
    this.#characters = Array.from(result.snippet);
    this.title = plain(result.title) || result.url;
    this.element = element("div", "passage");
    this.element.id = id;
    this.element.tabIndex = -1;
    this.element.title = `Relevance ${result.score.toFixed(2)}`;
    this.element.append(element("span", "number", String(result.position)), this.#snippet);
    this.#render(null);
  }

  cite(span) {
    this.#spans.push(span);
    this.element.classList.add("supports");
    this.#render(null);
  }

  // Highlights the passage and a span of it; null: neither.
  activate(span) {
    this.element.classList.toggle("cited", span !== null);
    this.#render(span);
  }

  show() {
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    const target = this.element.querySelector("mark.active") ?? this.element;
    target.scrollIntoView({ block: "center", behavior: calm ? "auto" : "smooth" });
    this.element.focus({ preventScroll: true });
  }

  #render(active) {
    const nodes = [];
    let last = 0;
    const part = (from, to) => plain(this.#characters.slice(from, to).join(""));
    for (const [begin, end] of [...this.#spans].sort((one, other) => one[0] - other[0])) {
      if (begin < last) continue; // the same sentence supports another one
      const isActive = active && active[0] === begin;
      const marked = element("mark", isActive ? "active" : "", part(begin, end));
      nodes.push(part(last, begin), marked);
      last = end;
    }
    this.#snippet.replaceChildren(...nodes, part(last));
  }
}

function card(result) {
  const item = element("li", "document");
  const safe = /^https?:/i.test(result.url);
  const title = element(safe ? "a" : "span", "title", plain(result.title) || result.url);
  if (safe) Object.assign(title, { href: result.url, rel: "noreferrer" });
  item.append(title, element("div", "url", result.url));
  return item;
}

function sentenceNode(sentence, parts, isEnd) {
  const node = wrap("span", parts);
  node.className = sentence.supported ? "sentence" : "sentence unsupported";
  if (!sentence.supported) {
    node.title = "No source says this in these words.";
    if (isEnd) node.append(element("span", "hidden", " (not supported by a source)"));
  }
  return node;
}

function styled(tag, children, href) {
  const node = wrap(tag, children);
  if (tag === "a") Object.assign(node, { href: plain(href), rel: "noreferrer" });
  return node;
}

function wrap(tag, children) {
  const node = document.createElement(tag);
  node.append(...children);
  return node;
}

// The server escapes markup; decode it, because the text is shown as plain text.
export function plain(escaped) {
  return escaped.replaceAll("&lt;", "<").replaceAll("&amp;", "&");
}

export function element(name, className = "", content = "") {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.textContent = content;
  return made;
}
