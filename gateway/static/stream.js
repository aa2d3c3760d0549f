// Reads one search as an event stream and resumes it after a lost connection.
"use strict";

const RETRY_MILLISECONDS = [200, 400, 800, 1200, 1600];
const KEY = "weir-api-key";

export class Refusal extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

// sessionStorage throws if the browser forbids it; the page works without it.
export function apiKey(key) {
  try {
    if (key !== undefined) sessionStorage.setItem(KEY, key);
    return sessionStorage.getItem(KEY) ?? "";
  } catch {
    return key ?? "";
  }
}

function headers(more = {}) {
  const key = apiKey();
  return key ? { ...more, authorization: `Bearer ${key}` } : more;
}

export class SearchStream {
  #abort = new AbortController();
  #lastEventId = "";
  #body;

  // `history` has the earlier questions and their answers.
  constructor(query, history, related) {
    const fields = { query, history, related, streaming: true, resumable: true };
    this.#body = JSON.stringify(fields);
  }

  get stopped() {
    return this.#abort.signal.aborted;
  }

  // After a disconnect alone the server would wait for a reconnect, so stop the stream explicitly.
  stop() {
    if (this.stopped) return;
    this.#abort.abort();
    const name = this.#lastEventId.split(".").slice(0, -1).join(".");
    if (!name) return;
    const url = `/api/v1/search/${encodeURIComponent(name)}`;
    fetch(url, { method: "DELETE", keepalive: true, headers: headers() }).catch(() => {});
  }

  // Events until `related` or `error`, each once; `onLost` is called before each new attempt.
  // Throws Refusal, TypeError where the server cannot be reached, AbortError after `stop`.
  async *events(onLost) {
    let attempt = 0;
    let isComplete = false;
    for (;;) {
      try {
        for await (const event of this.#connection()) {
          attempt = 0;
          yield event;
          isComplete ||= event.name === "complete";
          if (event.name === "related" || event.name === "error") return;
        }
        if (isComplete) return;
        throw new TypeError("The connection was lost.");
      } catch (problem) {
        const hopeless = problem instanceof Refusal && problem.status !== 503;
        const tried = attempt >= RETRY_MILLISECONDS.length;
        if (isComplete) return; // only the related questions are missing
        if (this.stopped || hopeless || !this.#lastEventId || tried) throw problem;
        onLost();
        await new Promise((resolve) => setTimeout(resolve, RETRY_MILLISECONDS[attempt++]));
        this.#abort.signal.throwIfAborted();
      }
    }
  }

  async *#connection() {
    const resume = this.#lastEventId ? { "last-event-id": this.#lastEventId } : {};
    const type = { "content-type": "application/json", accept: "text/event-stream" };
    const response = await fetch("/api/v1/search", {
      method: "POST",
      body: this.#body,
      signal: this.#abort.signal,
      headers: headers({ ...type, ...resume }),
      cache: "no-store",
    });
    if (!response.ok) throw await refusal(response);
    for await (const event of parse(response.body)) {
      yield event;
      if (event.id) this.#lastEventId = event.id;
    }
  }
}

// Questions that the documents answer; none where they cannot be fetched.
export async function exampleQuestions() {
  try {
    const response = await fetch("/api/v1/examples", { headers: headers(), cache: "no-store" });
    return response.ok ? (await response.json()).questions : [];
  } catch {
    return [];
  }
}

async function refusal(response) {
  const again = response.headers.get("retry-after");
  const hint = again ? ` Try again in ${again} s.` : "";
  try {
    return new Refusal((await response.json()).error.message + hint, response.status);
  } catch {
    return new Refusal(`The server answered ${response.status}.${hint}`, response.status);
  }
}

async function* parse(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const frames = (buffer + value).split("\n\n");
      buffer = frames.pop();
      for (const frame of frames) {
        const field = (name) => new RegExp(`^${name}: (.*)$`, "m").exec(frame)?.[1];
        const data = field("data");
        if (data) yield { name: field("event"), id: field("id"), data: JSON.parse(data) };
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
