/* What needs a key with the scope admin, where the daemon needs keys: API keys, quotas of projects, and metrics at a glance. */
import {get} from "../lib/api.js";
import {el, empty, skeleton} from "../lib/dom.js";
import {keysPanel} from "./admin_keys.js";
import {metricsPanel} from "./admin_metrics.js";
import {projectsPanel} from "./admin_projects.js";
import {parts} from "./system.js";

export async function show(main, {signal, title}) {
  title("Administration");
  const body = el("div", {class: "stack"}, skeleton(8));
  main.append(el("div", {class: "head"}, el("div", {}, el("h1", {}, "Administration"), el("p", {class: "muted"}, "Keys, projects and metrics of the daemon.")), parts("#/system/administration")), body);
  try {
    await get("/v1/projects?limit=1", {signal}); /* one refusal instead of one for each part: the audit log has them all */
  } catch (error) {
    if (!signal.aborted) {
      body.replaceChildren(error.status === 403
        ? empty("This needs another key", `${error.message}. ${error.hint ?? ""} Sign out, and sign in with a key of the scope admin.`)
        : empty("The daemon could not be asked", error.message, el("button", {class: "button", type: "button", on: {click: () => {
          main.replaceChildren();
          show(main, {signal, title});
        }}}, "Try again")));
    }
    return;
  }
  const projects = projectsPanel(signal);
  body.replaceChildren(metricsPanel(signal), keysPanel(signal, projects.reload), projects.element);
}
