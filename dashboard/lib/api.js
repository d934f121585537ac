/* The public REST interface below /v1, and nothing else.
 *
 * The key, where the daemon needs one, is kept in sessionStorage: it goes with the tab. It is sent in the Authorization header only, so no
 * other site can make the browser send it. */

const KEY = "quantd.key";

export class Problem extends Error {
  constructor(status, body) {
    super(body?.detail ?? body?.title ?? `the daemon answered with status ${status}`);
    this.name = "Problem";
    this.status = status;
    this.code = body?.code ?? null;
    this.hint = body?.hint ?? null;
    this.param = body?.param ?? null;
    this.errors = body?.errors ?? [];
    this.hadKey = false;
  }
}

export class Unreachable extends Error {
  constructor() {
    super("the daemon does not answer");
    this.name = "Unreachable";
    this.hint = "it may be restarting; this page tries again";
  }
}

export function key() {
  return sessionStorage.getItem(KEY);
}

export function setKey(text) {
  if (text) {
    sessionStorage.setItem(KEY, text);
  } else {
    sessionStorage.removeItem(KEY);
  }
}

/* Listeners learn that a key is needed ("login", with the reason), and whether the daemon answers ("online", "offline"). */
export const signals = new EventTarget();

let online = null;

function report(answers) {
  if (online !== answers) {
    online = answers;
    signals.dispatchEvent(new Event(answers ? "online" : "offline"));
  }
}

/* Paths of the interface are absolute; the page may be below the prefix of a proxy. */
export function address(path) {
  return new URL(path.replace(/^\//, ""), document.baseURI);
}

async function problemOf(response) {
  let body = null;
  try {
    body = await response.json();
  } catch {
    /* Not of the daemon: of a proxy, which has only its status. */
  }
  return new Problem(response.status, body);
}

/* The response of a request that was answered with success (or 304); throws Problem, Unreachable, or AbortError. */
export async function send(method, path, {json, body, headers, signal, ask = true} = {}) {
  const all = new Headers(headers);
  const held = key();
  if (held) {
    all.set("Authorization", `Bearer ${held}`);
  }
  if (json !== undefined) {
    all.set("Content-Type", "application/json");
    body = JSON.stringify(json);
  }
  let response;
  try {
    response = await fetch(address(path), {method, body, headers: all, signal, credentials: "same-origin", redirect: "error"});
  } catch (error) {
    if (error.name === "AbortError") {
      throw error;
    }
    report(false);
    throw new Unreachable();
  }
  report(response.status < 502 || response.status > 504 || response.headers.has("X-Request-Id"));
  if (response.ok || response.status === 304) {
    return response;
  }
  const problem = await problemOf(response);
  if (problem.status === 401 && ask) {
    problem.hadKey = held !== null;
    signals.dispatchEvent(new CustomEvent("login", {detail: problem}));
  }
  throw problem;
}

export async function get(path, options) {
  const response = await send("GET", path, options);
  return response.json();
}

export async function post(path, json, options) {
  const response = await send("POST", path, {...options, json});
  return response.json();
}

export function remove(path, options) {
  return send("DELETE", path, options);
}

export function query(parameters) {
  const text = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) {
    if (value !== null && value !== undefined && value !== "") {
      text.set(name, value);
    }
  }
  const joined = text.toString();
  return joined ? `?${joined}` : "";
}

export function sleep(milliseconds, signal) {
  return new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", done);
      resolve();
    };
    const timer = setTimeout(done, milliseconds);
    signal?.addEventListener("abort", done);
  });
}

/* Resolves once the page is visible: hidden pages ask nothing. */
function visible(signal) {
  if (!document.hidden) {
    return Promise.resolve();
  }
  return new Promise((resolve) => {
    const check = () => {
      if (!document.hidden || signal.aborted) {
        document.removeEventListener("visibilitychange", check);
        signal.removeEventListener("abort", check);
        resolve();
      }
    };
    document.addEventListener("visibilitychange", check);
    signal.addEventListener("abort", check);
  });
}

/* Reads path again and again until the signal, asking only for what changed. path() and seconds() are evaluated each time;
 * onValue(value), onError(error). Returns a function that reads at once, whatever is known. */
export function poll(path, {signal, seconds, onValue, onError}) {
  let etag = null, asked = null, wake = null, again = false;
  const run = async () => {
    let failures = 0;
    while (!signal.aborted) {
      await visible(signal);
      const target = path();
      again = false;
      try {
        const response = await send("GET", target, {signal, headers: etag && asked === target ? {"If-None-Match": etag} : {}});
        failures = 0;
        if (response.status !== 304) {
          const value = await response.json();
          etag = response.headers.get("ETag");
          asked = target;
          if (!signal.aborted && path() === target) {
            onValue(value);
          } else {
            etag = null;
          }
        }
      } catch (error) {
        if (error.name === "AbortError" || signal.aborted) {
          return;
        }
        failures++;
        etag = null;
        onError(error);
      }
      if (!again) {
        const pause = failures > 0 ? Math.min(30, 2 ** failures) : seconds();
        await Promise.race([sleep(pause * 1000, signal), new Promise((resolve) => (wake = resolve))]);
      }
    }
  };
  run();
  return () => {
    again = true;
    etag = null;
    wake?.();
  };
}

/* Events of server-sent text, as {id, event, data}, from pieces that may end anywhere. */
export function eventParser(onEvent) {
  let rest = "";
  return (text) => {
    rest += text;
    const frames = rest.split("\n\n");
    rest = frames.pop();
    for (const frame of frames) {
      const fields = {id: null, event: "message", data: ""};
      for (const line of frame.split("\n")) {
        const colon = line.indexOf(":");
        if (colon > 0) {
          const value = line.slice(colon + 1).replace(/^ /, "");
          const name = line.slice(0, colon);
          fields[name] = name === "data" && fields.data ? `${fields.data}\n${value}` : value;
        }
      }
      if (fields.data) {
        onEvent(fields);
      }
    }
  };
}

/* Follows the events of a job to its end, over broken connections: each continues after the last event that was seen. EventSource is not
 * used because it sends no Authorization header. Resolves when the job has ended or is gone, or at the signal. */
export async function follow(job, {signal, after = 0, onEvent}) {
  let last = after, over = false, failures = 0;
  while (!signal.aborted && !over) {
    try {
      const response = await send("GET", `/v1/quantization/jobs/${job}/events`, {
        signal, headers: {Accept: "text/event-stream", "Last-Event-ID": String(last)},
      });
      const decoder = new TextDecoder();
      const parse = eventParser((fields) => {
        const event = JSON.parse(fields.data);
        last = event.seq;
        failures = 0;
        over = event.type === "status" ? ["succeeded", "failed", "cancelled", "expired"].includes(event.data.status) : over;
        onEvent(event);
      });
      const reader = response.body.getReader();
      for (let piece = await reader.read(); !piece.done; piece = await reader.read()) {
        parse(decoder.decode(piece.value, {stream: true}));
      }
    } catch (error) {
      if (signal.aborted || error.status === 404 || error.status === 401) {
        return;
      }
    }
    if (!over) {
      failures++;
      await sleep(Math.min(30000, 500 * 2 ** failures) * (0.75 + Math.random() / 2), signal);
    }
  }
}
