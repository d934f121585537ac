/* The daemon: version, devices, memory, formats, limits, and the project's jobs. */
import {poll} from "../lib/api.js";
import {el, empty, setText, skeleton} from "../lib/dom.js";
import {NONE, STATUSES, badge, bytes, count, duration} from "../lib/format.js";
import {webhooksPanel} from "./system_webhooks.js";

const LIMITS = {
  max_queued: ["Queued jobs", count], host_memory_bytes: ["Memory for activations", bytes],
  calibration_line_bytes: ["Length of a calibration record", bytes], calibration_record_tokens: ["Tokens of a calibration record", count],
};

/* The links between the parts of this view. */
export function parts(here) {
  return el("nav", {class: "segmented", "aria-label": "Parts of the system"}, ...[["#/system", "Overview"], ["#/system/administration", "Administration"]].map(([href, label]) =>
    el("a", {href, "aria-current": href === here ? "page" : null}, label)));
}

/* "max_queued_bytes" -> "Max queued", with a value that fits its unit: for members that this page does not know. */
function limit(name, value) {
  const known = LIMITS[name];
  if (known) {
    return [known[0], known[1](value)];
  }
  const label = name.replace(/_(bytes|seconds)$/, "").replaceAll("_", " ");
  const text = value === null ? NONE : /_bytes$/.test(name) ? bytes(value) : /_seconds$/.test(name) ? duration(value) : typeof value === "number" ? count(value) : String(value);
  return [label[0].toUpperCase() + label.slice(1), text];
}

export function show(main, {signal, title}) {
  title("System");
  const subtitle = el("p", {class: "muted", role: "status"});
  const body = el("div", {class: "stack"}, skeleton(8));
  main.append(el("div", {class: "head"}, el("div", {}, el("h1", {}, "System"), subtitle), parts("#/system")), el("div", {class: "stack"}, body, webhooksPanel(signal)));
  let drawn = "";

  poll(() => "/v1/system", {
    signal, seconds: () => 10,
    onValue: (system) => {
      setText(subtitle, `${system.name} ${system.version}${system.draining ? ", shutting down: no new jobs are taken" : ""}`);
      const text = JSON.stringify(system);
      if (text !== drawn) {
        drawn = text;
        body.replaceChildren(...build(system));
      }
    },
    onError: (error) => {
      if (drawn === "") {
        body.replaceChildren(empty("The daemon could not be asked", `${error.message}${error.hint ? `. ${error.hint}` : ""}`));
      }
    },
  });
}

function panel(title, note, ...content) {
  return el("section", {class: "panel", "aria-label": title}, el("header", {}, el("h2", {}, title), note ? el("span", {class: "muted"}, note) : null), ...content);
}

function build(system) {
  const devices = el("ul", {class: "devices"}, ...system.devices.map((device) => el("li", {},
    el("div", {class: "row"}, el("strong", {}, device.name || device.id), el("code", {}, device.id)),
    el("p", {class: "muted"}, [device.detail, `${bytes(device.memory_bytes)} of memory`, device.threads ? `${count(device.threads)} threads` : null].filter(Boolean).join(" · ")))));
  const notes = (system.device_notes ?? "").trim();
  const jobs = Object.entries(system.jobs ?? {}).filter(([, number]) => number > 0);
  const pairs = (list) => el("dl", {class: "pairs"}, ...list.flatMap(([label, value]) => [el("dt", {}, label), el("dd", {}, value)]));
  return [
    el("div", {class: "columns"},
      panel("Devices", `${count(system.devices.length)}`, el("div", {class: "body"}, devices, notes ? el("details", {}, el("summary", {}, "Devices that are not used"), el("pre", {class: "sunken", tabindex: "0", "aria-label": "Devices that are not used"}, notes)) : null)),
      panel("Jobs of this project", null, el("div", {class: "body"}, jobs.length > 0
        ? el("dl", {class: "pairs"}, ...jobs.flatMap(([status, number]) => [el("dt", {}, badge(status)), el("dd", {}, el("a", {href: `#/?status=${status}`, "aria-label": `${count(number)} ${STATUSES[status] ?? status}`}, count(number)))]))
        : el("p", {class: "muted"}, "None yet.")))),
    el("div", {class: "columns"},
      panel("Limits", null, el("div", {class: "body"}, pairs(Object.entries(system.limits ?? {}).map(([name, value]) => limit(name, value))))),
      panel("Build", null, el("div", {class: "body"}, pairs([["Version", system.version], ...Object.entries(system.build ?? {}).map(([name, value]) => [name[0].toUpperCase() + name.slice(1), String(value ?? NONE)]),
        ["Architectures", system.architectures.join(", ")], ...("signing_key" in system ? [["Signatures", system.signing_key ? `${system.signing_key.algorithm}, by the key ${system.signing_key.hint}` : "artifacts are not signed"]] : [])])))),
    panel("Formats", `${count(system.formats.length)}`, el("div", {class: "body flush scroller", tabindex: "0", role: "region", "aria-label": "Formats"},
      el("table", {class: "table listing prose", "aria-label": "Formats"}, el("thead", {}, el("tr", {}, ...["Format", "What it carries", "Loads in"].map((label) => el("th", {scope: "col"}, label)))),
        el("tbody", {}, ...system.formats.map((format) => el("tr", {}, el("td", {class: "c-wide"}, el("strong", {}, format.title), el("br"), el("code", {}, format.name)),
          el("td", {data: {label: ""}}, format.description), el("td", {data: {label: "Loads in"}}, format.runtimes.join(", ") || NONE))))))),
  ];
}
