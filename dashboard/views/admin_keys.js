/* API keys: list, make (the text is shown once), revoke. */
import {post, remove} from "../lib/api.js";
import {copy} from "../lib/clipboard.js";
import {el, empty} from "../lib/dom.js";
import {control, faults, readable} from "../lib/fields.js";
import {NONE, date, now, since} from "../lib/format.js";
import {pagedList} from "../lib/list.js";
import {confirm, failure, notice} from "../lib/notices.js";

const DAY = 86400;

function state(key) {
  if (key.revoked_at !== null) {
    return el("span", {class: "badge cancelled", title: date(key.revoked_at)}, "Revoked");
  }
  if (key.expires_at !== null && key.expires_at <= now()) {
    return el("span", {class: "badge expired", title: date(key.expires_at)}, "Expired");
  }
  return el("span", {class: "badge good", title: key.expires_at === null ? "Never expires" : `Until ${date(key.expires_at)}`}, "Valid");
}

/* onMake(): a key was made, perhaps with a new project. */
export function keysPanel(signal, onMake) {
  const secret = el("div", {class: "body", hidden: true});
  const list = pagedList({
    title: "API keys", path: "/v1/api_keys", signal,
    nothing: () => empty("No API keys", "Without keys everybody who reaches the daemon may use it."),
    columns: [
      {label: "Name", class: "clip c-wide", cell: (key) => el("span", {title: key.id}, key.name || key.id)},
      {label: "State", cell: state},
      {label: "Scope", cell: (key) => key.scope},
      {label: "Project", class: "clip", cell: (key) => key.project},
      {label: "Last used", class: "c-age", cell: (key) => (key.last_used_at === null ? "never" : since(key.last_used_at))},
      {label: "Expires", class: "c-age", cell: (key) => (key.expires_at === null ? "never" : date(key.expires_at))},
      {label: "Age", class: "c-age", cell: (key) => since(key.created_at)},
      {label: "", class: "c-act", cell: (key) => (key.revoked_at === null ? el("button", {class: "button danger", type: "button", "aria-label": `Revoke ${key.name || key.id}`, on: {click: () => revoke(key)}}, "Revoke") : NONE)},
    ],
  });

  async function revoke(key) {
    if (!await confirm(`Revoke “${key.name || key.id}”?`, "Whoever uses it is refused from now on. It cannot be made valid again.", "Revoke the key")) {
      return;
    }
    try {
      await remove(`/v1/api_keys/${key.id}`, {signal});
      notice("The key was revoked", "good");
      list.reload();
    } catch (error) {
      failure("Revoke", error);
    }
  }

  const name = control("/name", "Name", {type: "string", maxLength: 120, description: "For people; need not be unique."});
  const scope = control("/scope", "Scope", {type: "string", enum: ["read", "write", "admin"], default: "write", description: "admin includes write, write includes read."});
  const project = control("/project", "Project", {type: "string", maxLength: 64, default: "default", description: "Whose objects it reaches; a new name makes a project."});
  const days = control("/expires_after_seconds", "Days until it expires", {type: "integer", minimum: 0, maximum: 3660, default: 0, description: "0: never."});
  const fields = [name, scope, project, days], summary = el("p", {class: "fault", role: "alert"});
  const button = el("button", {class: "button primary", type: "submit"}, "Make a key");
  const form = el("form", {class: "form-grid", novalidate: "", "aria-label": "New API key", on: {submit: (event) => {
    event.preventDefault();
    make();
  }}}, ...fields.map((field) => field.element), el("div", {class: "row"}, button), summary);

  async function make() {
    faults(fields, null, summary);
    if (!readable(fields)) {
      return;
    }
    const body = {name: name.read(), scope: scope.read() ?? "write", project: project.read(), expires_after_seconds: days.read() === undefined ? undefined : days.read() * DAY};
    button.disabled = true;
    try {
      const made = await post("/v1/api_keys", body, {signal});
      const text = el("code", {class: "secret"}, made.key);
      secret.replaceChildren(el("div", {class: "secret-box", role: "status"}, el("p", {}, el("strong", {}, `The key “${made.name || made.id}”. `), "Copy it now: it is not stored and cannot be shown again."),
        el("div", {class: "row"}, text, el("button", {class: "button", type: "button", "aria-label": "Copy the key", on: {click: () => copy(made.key, text)}}, "Copy"),
          el("button", {class: "button quiet", type: "button", on: {click: hide}}, "I have it"))));
      secret.hidden = false;
      form.reset();
      list.reload();
      onMake();
    } catch (error) {
      faults(fields, error, summary);
    }
    button.disabled = false;
  }

  function hide() {
    secret.replaceChildren();
    secret.hidden = true;
    button.focus();
  }

  list.element.append(secret, el("details", {}, el("summary", {}, "New API key"), el("div", {class: "body"}, form)));
  return list.element;
}
