/* What is stored: artifacts, models, files. */
import {remove} from "../lib/api.js";
import {el, empty} from "../lib/dom.js";
import {NONE, bytes, count, fixed, since} from "../lib/format.js";
import {pagedList} from "../lib/list.js";
import {confirm, failure, notice} from "../lib/notices.js";

export function show(main, {signal, title}) {
  title("Artifacts");
  const models = new Map();
  const button = (label, what, act) => el("button", {class: "button danger", type: "button", "aria-label": `${label} ${what}`, on: {click: act}}, label);

  /* Deletes after a question; list() is read again. */
  async function drop({what, text, action, path, list}) {
    if (!await confirm(`${action.split(" ")[0]} “${what}”?`, text, action)) {
      return;
    }
    try {
      await remove(path, {signal});
      notice(`“${what}” was deleted`, "good");
      list().reload();
    } catch (error) {
      failure(what, error);
    }
  }

  const artifacts = pagedList({
    title: "Artifacts", path: "/v1/artifacts", signal,
    nothing: () => empty("No artifacts yet", "A job that succeeds publishes one.", el("a", {class: "button", href: "#/new"}, "New job")),
    columns: [
      {label: "Name", class: "clip c-wide", cell: (one) => el("a", {href: `#/artifacts/${one.id}`, title: `${one.name} (${one.id})`}, one.name || one.id)},
      {label: "Method", class: "clip c-method", cell: (one) => one.method},
      {label: "Format", class: "clip c-format", cell: (one) => one.format},
      {label: "Model", class: "clip c-model", cell: (one) => el("span", {data: {model: one.model_id}}, models.get(one.model_id) ?? one.model_id)},
      {label: "Bits", class: "number", cell: (one) => fixed(one.bits_per_weight, 2)},
      {label: "Size", class: "number", cell: (one) => bytes(one.bytes)},
      {label: "Age", class: "c-age", cell: (one) => since(one.created_at)},
      {label: "", class: "c-act", cell: (one) => button("Delete", one.name || one.id, () => drop({what: one.name || one.id, action: "Delete the artifact", path: `/v1/artifacts/${one.id}`, list: () => artifacts,
        text: `Its ${count(one.files.length)} files (${bytes(one.bytes)}) are deleted. The report of its job stays.`}))},
    ],
  });
  const checkpoints = pagedList({
    title: "Models", path: "/v1/models", signal, note: "registered checkpoints",
    nothing: () => empty("No models yet", "A checkpoint below a model root is registered with the first job of it, or from a shell:", el("code", {}, "quantctl models register file:MODEL")),
    onPage: (list) => {
      for (const one of list) {
        models.set(one.id, one.name || one.uri);
      }
      for (const cell of artifacts.element.querySelectorAll("[data-model]")) {
        cell.textContent = models.get(cell.dataset.model) ?? cell.dataset.model;
      }
    },
    columns: [
      {label: "Name", class: "clip c-wide", cell: (one) => el("a", {href: `#/new?model=${one.id}`, title: `New job of ${one.name || one.uri} (${one.id})`}, one.name || one.uri)},
      {label: "Where", class: "clip mono c-model", cell: (one) => one.uri},
      {label: "Architecture", class: "clip c-model", cell: (one) => one.architecture ?? NONE},
      {label: "Parameters", class: "number", cell: (one) => count(one.parameters)},
      {label: "Type", class: "c-age", cell: (one) => one.dtype ?? NONE},
      {label: "Size", class: "number", cell: (one) => bytes(one.bytes)},
      {label: "Age", class: "c-age", cell: (one) => since(one.created_at)},
      {label: "", class: "c-act", cell: (one) => button("Delete", one.name || one.uri, () => drop({what: one.name || one.uri, action: "Delete the model", path: `/v1/models/${one.id}`, list: () => checkpoints,
        text: one.uri.startsWith("upload:") ? "Its uploaded bytes are deleted. Artifacts stay." : "It is only unregistered: the checkpoint's files stay where they are."}))},
    ],
  });
  const files = pagedList({
    title: "Files", path: "/v1/files", signal, note: "records for calibration and evaluation, parts of uploaded models",
    nothing: () => empty("No files yet", "Records are stored in the form of a new job, or from a shell:", el("code", {}, "quantctl upload --purpose calibration records.ndjson")),
    columns: [
      {label: "Name", class: "clip c-wide", cell: (one) => one.name ?? one.id},
      {label: "Purpose", class: "c-method", cell: (one) => one.purpose},
      {label: "SHA-256", class: "clip mono c-model", cell: (one) => one.sha256},
      {label: "Size", class: "number", cell: (one) => bytes(one.bytes)},
      {label: "Age", class: "c-age", cell: (one) => since(one.created_at)},
      {label: "", class: "c-act", cell: (one) => button("Delete", one.name ?? one.id, () => drop({what: one.name ?? one.id, action: "Delete the file", path: `/v1/files/${one.id}`, list: () => files,
        text: "Jobs that have ended are not changed."}))},
    ],
  });

  main.append(el("div", {class: "head"}, el("div", {}, el("h1", {}, "Artifacts"), el("p", {class: "muted"}, "Results, and what they were made of."))),
    el("div", {class: "stack"}, artifacts.element, checkpoints.element, files.element));
}

