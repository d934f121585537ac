/* Numbers, sizes, times and the words for states, as people read them. */
import {el} from "./dom.js";

const NONE = "–";

const counts = new Intl.NumberFormat("en");
const dates = new Intl.DateTimeFormat("en", {dateStyle: "medium", timeStyle: "medium"});
const clocks = new Intl.DateTimeFormat("en", {hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23"});

export function count(value) {
  return value === null || value === undefined ? NONE : counts.format(value);
}

export function fixed(value, digits) {
  return value === null || value === undefined ? NONE : value.toFixed(digits);
}

/* Of perplexities. */
export function perplexity(value) {
  return value === null || value === undefined ? NONE : value >= 1000 ? counts.format(Math.round(value)) : value.toFixed(3);
}

/* Of errors, which span many orders of magnitude. */
export function small(value) {
  if (value === null || value === undefined) {
    return NONE;
  }
  if (value === 0) {
    return "0";
  }
  const size = Math.abs(value);
  return size >= 0.01 && size < 1000 ? value.toPrecision(3) : value.toExponential(2).replace("e-", "e−").replace("e+", "e");
}

export function bytes(value) {
  if (value === null || value === undefined) {
    return NONE;
  }
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit++;
  }
  return `${unit === 0 ? value : value.toFixed(value < 10 ? 2 : 1)} ${units[unit]}`;
}

export function percent(fraction) {
  return fraction === null || fraction === undefined ? NONE : `${Math.floor(fraction * 100)} %`;
}

/* "12 s", "3 min 20 s", "2 h 05 min", "4 d 3 h" */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) {
    return NONE;
  }
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) {
    return `${s} s`;
  }
  if (s < 3600) {
    return `${Math.floor(s / 60)} min ${String(s % 60).padStart(2, "0")} s`;
  }
  if (s < 86400) {
    return `${Math.floor(s / 3600)} h ${String(Math.floor(s / 60) % 60).padStart(2, "0")} min`;
  }
  return `${Math.floor(s / 86400)} d ${Math.floor(s / 3600) % 24} h`;
}

/* One unit: for columns. */
export function age(seconds) {
  const s = Math.max(0, Math.floor(seconds));
  return s < 60 ? `${s} s` : s < 3600 ? `${Math.floor(s / 60)} min` : s < 86400 ? `${Math.floor(s / 3600)} h` : `${Math.floor(s / 86400)} d`;
}

export function now() {
  return Date.now() / 1000;
}

export function date(time) {
  return time === null || time === undefined ? NONE : dates.format(new Date(time * 1000));
}

export function clock(time) {
  return clocks.format(new Date(time * 1000));
}

/* <time> that shows an age and has the date as its title. */
export function since(time) {
  return el("time", {datetime: new Date(time * 1000).toISOString(), title: date(time)}, age(now() - time));
}

export const STATUSES = {
  awaiting_calibration: "Awaiting calibration",
  queued: "Queued",
  running: "Running",
  pausing: "Pausing",
  paused: "Paused",
  cancelling: "Cancelling",
  succeeded: "Succeeded",
  failed: "Failed",
  cancelled: "Cancelled",
  expired: "Expired",
};

const ENDED = new Set(["succeeded", "failed", "cancelled", "expired"]);
const WORKING = new Set(["running", "pausing", "cancelling"]);

export function ended(status) {
  return ENDED.has(status);
}

export function working(status) {
  return WORKING.has(status);
}

/* A badge: shape and word say what the colour says. */
export function badge(status) {
  return el("span", {class: `badge ${status}`}, STATUSES[status] ?? status);
}

export {NONE};
