/* The queue: jobs of the project, newest first, in pages; what changes is read again and put in place. */
import {get, poll, post, query as queryOf, remove, send, sleep} from "../lib/api.js";
import {el, empty, framed, reconcile, setText, skeleton} from "../lib/dom.js";
import {STATUSES, badge, count, duration, ended, now, percent, since, working, NONE} from "../lib/format.js";
import {confirm, failure, notice} from "../lib/notices.js";

const JOBS = "/v1/quantization/jobs";
const PAGE = 50;
const SEARCH_PAGE = 100;
const SEARCH_STEP = 2000; /* jobs that one search looks at before it asks */
const AT_ONCE = 4; /* actions of a selection */
const MOST_COMPARED = 8;
const FOLLOWED = 2; /* running jobs whose changes are awaited: a browser has few connections to a daemon */

const COLUMNS = [
  ["pick", ""], ["status", "Status"], ["name", "Name"], ["method", "Method"], ["model", "Model"], ["project", "Project"],
  ["age", "Age"], ["queue", "Place"], ["eta", "Time left"], ["progress", "Progress"],
];

export function show(main, {query, signal, title}) {
  title("Queue");
  const filter = {status: query.get("status") ?? "", method: query.get("method") ?? "", model_id: query.get("model") ?? "", text: query.get("text") ?? ""};
  const state = {
    jobs: [], more: false, pages: [query.get("after")], /* cursors of the pages up to this one */ first: 0, next: null, /* where the page starts that was asked for */
    selected: new Map(), counts: null, models: new Map(), places: new Map(), seen: new Set(), searched: 0, searching: false, error: null, loaded: false,
  };

  /* --- what is on the page */

  const summary = el("p", {class: "muted"});
  const status = el("select", {}, el("option", {value: ""}, "All"), ...Object.entries(STATUSES).map(([value, text]) => el("option", {value}, text)));
  const method = el("select", {}, el("option", {value: ""}, "All"));
  const model = el("select", {}, el("option", {value: ""}, "All"));
  const text = el("input", {type: "search", placeholder: "Name, id, model or metadata", value: filter.text, spellcheck: "false"});
  status.value = filter.status;
  for (const [select, value] of [[method, filter.method], [model, filter.model_id]]) {
    if (value) { /* until the lists are there */
      select.append(el("option", {value}, value));
      select.value = value;
    }
  }
  const all = el("input", {type: "checkbox", "aria-label": "Select every job of this page"});
  const body = el("tbody");
  const table = el("table", {class: "table jobs", "aria-label": "Jobs"},
    el("thead", {}, el("tr", {}, ...COLUMNS.map(([name, label]) => el("th", {scope: "col", class: `c-${name}`}, name === "pick" ? all : label)))), body);
  const place = el("div", {}, skeleton(12));
  const chosen = el("span");
  const cancelButton = el("button", {class: "button", type: "button"}, "Cancel");
  const deleteButton = el("button", {class: "button danger", type: "button"}, "Delete");
  const compareButton = el("button", {class: "button", type: "button"}, "Compare");
  const clearButton = el("button", {class: "button quiet", type: "button"}, "Clear selection");
  const selection = el("div", {class: "selection", role: "group", "aria-label": "Selected jobs", hidden: true}, chosen, compareButton, cancelButton, deleteButton, clearButton);
  const range = el("span", {role: "status"});
  const newer = el("button", {class: "button", type: "button"}, "← Newer");
  const older = el("button", {class: "button", type: "button"}, "Older →");
  const further = el("button", {class: "button", type: "button", hidden: true}, "Search further");
  main.append(
    el("div", {class: "head"}, el("div", {}, el("h1", {}, "Queue"), summary), el("a", {class: "button primary", href: "#/new"}, "New job")),
    el("section", {class: "panel", "aria-label": "Jobs"},
      el("form", {class: "toolbar", role: "search", on: {submit: (event) => event.preventDefault()}},
        el("label", {class: "field wide"}, "Search", text), el("label", {class: "field"}, "Status", status),
        el("label", {class: "field"}, "Method", method), el("label", {class: "field"}, "Model", model)),
      selection, place,
      el("div", {class: "footer"}, range, el("div", {class: "row"}, further, newer, older))));

  /* --- rows */

  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting) {
        state.seen.add(entry.target.dataset.key);
      } else {
        state.seen.delete(entry.target.dataset.key);
      }
    }
  });
  signal.addEventListener("abort", () => watcher.disconnect());

  function makeRow(job) {
    const cells = {};
    for (const [name] of COLUMNS) {
      cells[name] = el("td", {class: `c-${name}${["name", "model", "project", "method"].includes(name) ? " clip" : ""}`});
    }
    const pick = el("input", {type: "checkbox", on: {change: () => choose(row.job, pick.checked)}});
    const name = el("a", {href: `#/jobs/${job.id}`});
    const bar = el("progress", {max: "1"});
    const number = el("span", {class: "number"});
    cells.pick.append(pick);
    cells.name.append(name);
    const row = el("tr", {}, ...Object.values(cells));
    row.parts = {cells, pick, name, bar, number, progress: el("div", {class: "progress"}, bar, number), status: null, age: null};
    watcher.observe(row);
    return row;
  }

  function updateRow(row, job) {
    const {cells, pick, name, bar, number} = row.parts;
    row.job = job;
    setText(name, job.name || job.id);
    name.title = job.name ? `${job.name} (${job.id})` : job.id;
    pick.checked = state.selected.has(job.id);
    pick.setAttribute("aria-label", `Select ${job.name || job.id}`);
    if (row.parts.status !== job.status) {
      row.parts.status = job.status;
      cells.status.replaceChildren(badge(job.status));
    }
    cells.status.title = job.status_reason ?? "";
    setText(cells.method, job.method);
    setText(cells.model, state.models.get(job.model) ?? job.model);
    cells.model.title = cells.model.textContent;
    setText(cells.project, job.project);
    const age = since(job.created_at);
    if (row.parts.age !== age.textContent) {
      row.parts.age = age.textContent;
      cells.age.replaceChildren(age);
    }
    setText(cells.queue, job.status === "queued" ? String(state.places.get(job.id) ?? "") : "");
    setText(cells.eta, job.status === "running" ? (job.progress?.eta_seconds ?? null) === null ? NONE : duration(job.progress.eta_seconds) : "");
    const fraction = job.progress?.fraction ?? null;
    if (fraction !== null && job.status !== "succeeded" && job.status !== "queued") {
      bar.value = fraction;
      bar.className = job.status;
      bar.setAttribute("aria-label", `Progress of ${job.name || job.id}`);
      setText(number, percent(fraction));
      if (!row.parts.progress.parentNode) {
        cells.progress.replaceChildren(row.parts.progress);
      }
    } else {
      setText(cells.progress, job.status === "succeeded" && job.finished_at && job.started_at ? `took ${job.finished_at > job.started_at ? duration(job.finished_at - job.started_at) : "< 1 s"}` : "");
    }
  }

  const render = framed(() => {
    if (signal.aborted) {
      return;
    }
    renderSelection();
    renderFooter();
    renderSummary();
    if (!state.loaded && !state.error) {
      return;
    }
    if (state.jobs.length === 0) {
      place.replaceChildren(nothing());
      return;
    }
    reconcile(body, state.jobs, (job) => job.id, makeRow, updateRow);
    if (table.parentNode !== place) {
      place.replaceChildren(table);
    }
  });

  function nothing() {
    if (state.error && !state.loaded) {
      return empty("The jobs could not be read", `${state.error.message}. ${state.error.hint ?? ""}`, el("button", {class: "button", type: "button", on: {click: () => reload()}}, "Try again"));
    }
    if (state.searching) {
      return skeleton(8);
    }
    if (filter.status || filter.method || filter.model_id || filter.text) {
      return empty("No job matches", "No job of this project is as the filters say.", el("button", {class: "button", type: "button", on: {click: clearFilters}}, "Clear the filters"));
    }
    return empty("No jobs yet", "A job quantizes a registered model. Create the first one here, or from a shell:", el("a", {class: "button primary", href: "#/new"}, "New job"),
      el("code", {}, "quantctl submit --model file:MODEL --method rtn --bits 4"));
  }

  function renderSummary() {
    if (state.counts) {
      const parts = Object.entries(STATUSES).filter(([name]) => state.counts[name] > 0).map(([name, label]) => `${count(state.counts[name])} ${label.toLowerCase()}`);
      setText(summary, parts.length > 0 ? parts.join(" · ") : "Nothing is queued or running.");
    }
  }

  function total() {
    if (!state.counts || filter.method || filter.model_id) {
      return null;
    }
    return filter.status ? state.counts[filter.status] ?? 0 : Object.values(state.counts).reduce((sum, n) => sum + n, 0);
  }

  function renderFooter() {
    newer.hidden = older.hidden = Boolean(filter.text);
    newer.disabled = state.pages.length < 2;
    older.disabled = !state.more;
    further.hidden = !(filter.text && state.more && !state.searching);
    if (filter.text) {
      setText(range, `${state.searching ? "Searching: " : ""}${count(state.jobs.length)} of ${count(state.searched)} jobs match`);
    } else if (state.jobs.length > 0) {
      const of = total();
      setText(range, `${count(state.first + 1)}–${count(state.first + state.jobs.length)}${of === null ? "" : ` of ${count(Math.max(of, state.first + state.jobs.length))}`}`);
    } else {
      setText(range, "");
    }
  }

  function renderSelection() {
    const jobs = [...state.selected.values()];
    const cancellable = jobs.filter((job) => job.links.cancel).length, deletable = jobs.filter((job) => ended(job.status)).length;
    selection.hidden = jobs.length === 0;
    setText(chosen, `${count(jobs.length)} selected`);
    setText(cancelButton, `Cancel ${cancellable || ""}`.trim());
    setText(deleteButton, `Delete ${deletable || ""}`.trim());
    compareButton.disabled = jobs.length < 2 || jobs.length > MOST_COMPARED;
    compareButton.title = compareButton.disabled ? `2 to ${MOST_COMPARED} jobs can be compared` : "";
    cancelButton.disabled = cancellable === 0;
    deleteButton.disabled = deletable === 0;
    all.checked = state.jobs.length > 0 && state.jobs.every((job) => state.selected.has(job.id));
    all.indeterminate = !all.checked && jobs.length > 0;
  }

  function choose(job, on) {
    if (on) {
      state.selected.set(job.id, job);
    } else {
      state.selected.delete(job.id);
    }
    renderSelection();
  }

  /* --- reading */

  function target() {
    return JOBS + queryOf({limit: PAGE, after: state.pages.at(-1), status: filter.status, method: filter.method, model_id: filter.model_id});
  }

  function take(jobs) {
    state.jobs = jobs;
    state.loaded = true;
    state.error = null;
    for (const job of jobs) {
      if (state.selected.has(job.id)) {
        state.selected.set(job.id, job);
      }
    }
    render();
  }

  const again = poll(target, {
    signal,
    seconds: () => (document.hidden ? 30 : filter.text ? 15 : 3),
    onValue: (list) => {
      if (!filter.text) {
        state.more = list.has_more;
        state.first = state.next ?? state.first;
        state.next = null;
        take(list.data);
      }
    },
    onError: (error) => {
      if (error.status === 400 && !state.loaded) { /* a place that was typed, or is of another version */
        failure("The filters of this address", error);
        state.pages = [null];
        clearFilters();
        return;
      }
      state.error = error;
      render();
    },
  });

  const countAgain = poll(() => "/v1/system", {
    signal, seconds: () => 5, onError: () => {},
    onValue: (system) => {
      state.counts = system.jobs ?? {};
      render();
    },
  });

  function reload() {
    state.error = null;
    again();
    countAgain();
  }

  /* The daemon filters by status, method and model; text is searched here, page by page, until there are enough. */
  let searchNumber = 0;
  async function search(from) {
    const number = ++searchNumber, wanted = (from ? state.jobs.length : 0) + PAGE, words = filter.text.toLowerCase().split(/\s+/).filter(Boolean);
    let after = from, looked = 0;
    state.searching = true;
    state.error = null;
    if (!from) {
      state.jobs = [];
      state.searched = 0;
    }
    render();
    try {
      do {
        const page = await get(JOBS + queryOf({limit: SEARCH_PAGE, after, status: filter.status, method: filter.method, model_id: filter.model_id}), {signal});
        if (number !== searchNumber) {
          return;
        }
        state.jobs = state.jobs.concat(page.data.filter((job) => words.every((word) => haystack(job).includes(word))));
        state.more = page.has_more;
        after = state.cursor = page.last_id;
        looked += page.data.length;
        state.searched += page.data.length;
        state.loaded = true;
        render();
      } while (state.more && looked < SEARCH_STEP && state.jobs.length < wanted);
    } catch (error) {
      state.error = error;
    }
    if (number === searchNumber) {
      state.searching = false;
      render();
    }
  }

  function haystack(job) {
    return [job.name, job.id, job.method, state.models.get(job.model), job.model, ...Object.entries(job.metadata ?? {}).flat()].join(" ").toLowerCase();
  }

  /* Names for the ids of models, and what the filters offer. */
  async function names() {
    try {
      const [methods, models] = await Promise.all([get("/v1/methods", {signal}), get("/v1/models?limit=100", {signal})]);
      for (const one of models.data) {
        state.models.set(one.id, one.name || one.uri);
      }
      for (const [select, value, rows] of [[method, filter.method, methods.data.map((one) => [one.name, one.name])],
        [model, filter.model_id, models.data.map((one) => [one.id, one.name || one.uri])]]) {
        select.replaceChildren(el("option", {value: ""}, "All"), ...rows.map(([id, label]) => el("option", {value: id}, label)));
        if (value && select.querySelector(`option[value="${CSS.escape(value)}"]`) === null) {
          select.append(el("option", {value}, value));
        }
        select.value = value;
      }
      render();
    } catch {
      /* The list says what is wrong. */
    }
  }

  function replace(job) {
    const at = state.jobs.findIndex((one) => one.id === job.id);
    if (at >= 0) {
      state.jobs[at] = job;
      render();
    }
  }

  /* Jobs that run change every second: each visible one is asked with Prefer: wait, which answers when it changes. */
  const followed = new Set();
  async function followOne(id) {
    followed.add(id);
    let etag = null;
    try {
      while (!signal.aborted && !document.hidden && state.jobs.some((job) => job.id === id && working(job.status))) {
        const response = await send("GET", `${JOBS}/${id}`, {signal, headers: etag ? {"If-None-Match": etag, Prefer: "wait=20"} : {}});
        if (response.status === 200) {
          etag = response.headers.get("ETag");
          replace(await response.json());
        }
      }
    } catch {
      await sleep(3000, signal);
    }
    followed.delete(id);
  }

  async function watchVisible() {
    while (!signal.aborted) {
      for (const job of state.jobs) {
        if (followed.size < FOLLOWED && working(job.status) && state.seen.has(job.id) && !followed.has(job.id)) {
          followOne(job.id);
        }
      }
      await sleep(1000, signal);
    }
  }

  /* A list does not tell the place in the queue; the visible rows are asked for by their id. */
  async function watchPlaces() {
    while (!signal.aborted) {
      for (const job of state.jobs.filter((one) => one.status === "queued" && state.seen.has(one.id))) {
        try {
          const found = await get(`${JOBS}/${job.id}`, {signal});
          state.places.set(job.id, found.queue_position ?? NONE);
        } catch {
          state.places.delete(job.id);
        }
        if (signal.aborted) {
          return;
        }
      }
      render();
      const unknown = state.jobs.length === 0 || state.jobs.some((job) => job.status === "queued" && state.seen.has(job.id) && !state.places.has(job.id));
      await sleep(document.hidden ? 30000 : unknown ? 500 : 4000, signal);
    }
  }

  /* --- what the controls do */

  function keepPlace() {
    const text = queryOf({status: filter.status, method: filter.method, model: filter.model_id, text: filter.text, after: state.pages.at(-1)});
    history.replaceState(null, "", `#/${text}`);
  }

  function filtered() {
    state.pages = [null];
    state.first = 0;
    state.next = null;
    state.loaded = false;
    state.jobs = [];
    searchNumber++;
    state.searching = false;
    keepPlace();
    place.replaceChildren(skeleton(12));
    if (filter.text) {
      search(null);
    } else {
      again();
    }
    render();
  }

  function clearFilters() {
    filter.status = filter.method = filter.model_id = filter.text = "";
    status.value = method.value = model.value = text.value = "";
    filtered();
    text.focus();
  }

  for (const [control, member] of [[status, "status"], [method, "method"], [model, "model_id"]]) {
    control.addEventListener("change", () => {
      filter[member] = control.value;
      filtered();
    });
  }
  let typing = null;
  text.addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => {
      if (filter.text !== text.value.trim() && !signal.aborted) {
        filter.text = text.value.trim();
        filtered();
      }
    }, 250);
  });
  further.addEventListener("click", () => search(state.cursor));

  /* One page at a time: the next one starts from a row of the page that is shown. */
  function turn(pages, first) {
    state.pages = pages;
    state.next = first;
    keepPlace();
    again();
    scrollTo(0, 0);
  }
  older.addEventListener("click", () => {
    if (state.next === null) {
      turn([...state.pages, state.jobs.at(-1).id], state.first + state.jobs.length);
    }
  });
  newer.addEventListener("click", () => {
    if (state.next === null) {
      turn(state.pages.slice(0, -1), Math.max(0, state.first - PAGE));
    }
  });
  all.addEventListener("change", () => {
    const on = all.checked; /* choosing one sets it */
    for (const job of state.jobs) {
      choose(job, on);
    }
    render();
  });
  clearButton.addEventListener("click", () => {
    state.selected.clear();
    render();
  });

  /* Runs act(job) for each, a few at a time, and tells what came of it. */
  async function each(jobs, act, done) {
    const waiting = [...jobs], failures = [];
    let acted = 0;
    await Promise.all(Array.from({length: AT_ONCE}, async () => {
      for (let job = waiting.shift(); job && !signal.aborted; job = waiting.shift()) {
        try {
          await act(job);
          acted++;
          state.selected.delete(job.id);
        } catch (error) {
          failures.push([job, error]);
        }
      }
    }));
    if (acted > 0) {
      notice(`${count(acted)} ${acted === 1 ? "job" : "jobs"} ${done}`, "good");
    }
    if (failures.length > 0) {
      failure(failures.length === 1 ? failures[0][0].name || failures[0][0].id : `${count(failures.length)} jobs were left unchanged; the first`, failures[0][1]);
    }
    render();
    reload();
  }

  compareButton.addEventListener("click", () => {
    location.hash = `#/compare?jobs=${[...state.selected.keys()].join(",")}`;
  });
  cancelButton.addEventListener("click", async () => {
    const jobs = [...state.selected.values()].filter((job) => job.links.cancel);
    const what = jobs.length === 1 ? `“${jobs[0].name || jobs[0].id}”` : `${count(jobs.length)} jobs`;
    if (await confirm(`Cancel ${what}?`, "What is finished of a cancelled job is dropped; a retry starts over.", jobs.length === 1 ? "Cancel the job" : `Cancel ${count(jobs.length)} jobs`)) {
      await each(jobs, (job) => post(job.links.cancel, undefined, {signal}), "cancelled");
    }
  });
  deleteButton.addEventListener("click", async () => {
    const jobs = [...state.selected.values()].filter((job) => ended(job.status));
    const what = jobs.length === 1 ? `“${jobs[0].name || jobs[0].id}”` : `${count(jobs.length)} jobs`;
    if (await confirm(`Delete ${what}?`, "Their events and reports are deleted. Artifacts stay.", jobs.length === 1 ? "Delete the job" : `Delete ${count(jobs.length)} jobs`)) {
      await each(jobs, (job) => remove(job.links.self, {signal}), "deleted");
    }
  });

  names();
  watchVisible();
  watchPlaces();
  if (filter.text) {
    search(null);
  }
}
