// Parses the Markdown that models write into blocks of styled text with their places in the source.
"use strict";

const INLINE =
  /`([^`\n]+)`|\*\*(?=\S)([^\n]*?\S)\*\*|\*(?=[^\s*])([^*\n]*?[^\s*])\*|(?<!\w)_(?=\S)([^_\n]*?\S)_(?!\w)|\[([^\]\n]+)\]\((https?:\/\/[^\s)]+)\)/g;
const TAGS = [null, "code", "strong", "em", "em", "a"];
const HEADING = /^#{1,6} +/;
const ITEM = /^ *(?:[-*+]|\d{1,3}[.)]) +/;
const FENCE = /^ *```.*$/;

// Blocks { tag, runs }; a run is { begin, end, tags, href } and covers text.slice(begin, end).
export function parse(text) {
  const blocks = [];
  let place = 0;
  let fenced = null;
  for (const line of text.split("\n")) {
    const end = place + line.length;
    if (FENCE.test(line)) {
      fenced = fenced ? null : { tag: "pre", runs: [] };
      if (fenced) blocks.push(fenced);
    } else if (fenced) {
      fenced.runs.push({ begin: place, end: Math.min(end + 1, text.length), tags: [] });
    } else {
      add(blocks, line, place);
    }
    place = end + 1;
  }
  return blocks.filter((block) => block.runs.length);
}

function add(blocks, line, place) {
  const last = blocks.at(-1);
  if (!line.trim()) {
    if (last) last.closed = true;
    return;
  }
  for (const [pattern, tag] of [[HEADING, "h4"], [ITEM, "li"]]) {
    const marker = pattern.exec(line);
    if (marker) {
      const start = marker[0].length;
      blocks.push({ tag, closed: tag === "h4", runs: runs(line.slice(start), place + start) });
      return;
    }
  }
  const found = runs(line, place);
  if (last && !last.closed && last.tag !== "pre") {
    last.runs.push({ begin: place - 1, end: place, tags: [] }, ...found);
  } else {
    blocks.push({ tag: "p", runs: found });
  }
}

function runs(text, offset, tags = [], href = "") {
  const found = [];
  let last = 0;
  const upTo = (end) => {
    if (end > last) found.push({ begin: offset + last, end: offset + end, tags, href });
  };
  for (const match of text.matchAll(INLINE)) {
    upTo(match.index);
    const kind = match.findIndex((group, index) => index > 0 && group !== undefined);
    const inner = match[kind];
    const begin = match.index + match[0].indexOf(inner);
    const link = kind === 5 ? match[6] : href;
    const nested = [...tags, TAGS[kind]];
    if (kind === 1) found.push({ begin: offset + begin, end: offset + begin + inner.length, tags: nested, href });
    else found.push(...runs(inner, offset + begin, nested, link));
    last = match.index + match[0].length;
  }
  upTo(text.length);
  return found;
}
