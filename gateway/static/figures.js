// The technical figures of an answer: tokens, times, request and trace.
"use strict";

import { element } from "/answer.js";

const traceUrl = document.querySelector('meta[name="weir-trace-url"]').content;

// `data` is the last event of the stream; null while it runs. Times in milliseconds.
export function showFigures(list, { started, firstToken, now }, tokens, data) {
  const rate = (tokens - 1) / ((now - firstToken) / 1000);
  const shown = [["Tokens", String(tokens)]];
  if (firstToken) shown.push(["First token", `${((firstToken - started) / 1000).toFixed(2)} s`]);
  if (firstToken && tokens > 1) shown.push(["Speed", `${rate.toFixed(1)} tokens/s`]);
  if (data) shown.push(["Request", data.request_id]);
  list.replaceChildren(...shown.map(([name, value]) => figure(name, value)));
  if (data && traceUrl && data.trace_sampled) {
    const link = element("a", "", "Trace");
    link.href = traceUrl.replace("{trace_id}", data.trace_id);
    const item = element("div");
    item.append(element("dt", "hidden", "Trace"), element("dd"));
    item.lastChild.append(link);
    list.append(item);
  }
}

function figure(name, value) {
  const item = element("div");
  item.append(element("dt", "", name), element("dd", "", value));
  return item;
}
