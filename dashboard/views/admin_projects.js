/* What projects may have and what they have: a list of lib/list.js. */
import {get, send} from "../lib/api.js";
import {el, empty} from "../lib/dom.js";
import {control, faults, readable} from "../lib/fields.js";
import {bytes, count} from "../lib/format.js";
import {pagedList} from "../lib/list.js";
import {notice} from "../lib/notices.js";

const QUOTAS = [
  {member: "max_queued_jobs", label: "Jobs that wait", used: (usage) => usage.queued_jobs, text: count},
  {member: "max_running_jobs", label: "Jobs that run", used: (usage) => usage.running_jobs, text: count},
  {member: "max_stored_bytes", label: "Stored", used: (usage) => usage.stored_bytes + usage.upload_bytes + usage.reserved_bytes, text: bytes, unit: true},
  {member: "max_upload_bytes", label: "Being uploaded", used: (usage) => usage.upload_bytes, text: bytes, unit: true},
];
const GIB = 1 << 30;

function meter(project, quota) {
  const used = quota.used(project.usage), most = project.effective[quota.member];
  return el("div", {class: "use"}, el("span", {}, quota.text(used), most === null ? null : ` of ${quota.text(most)}`),
    most === null ? null : el("meter", {min: "0", max: "1", high: "0.9", optimum: "0", value: String(most > 0 ? Math.min(1, used / most) : 1), "aria-label": `${quota.label} of ${project.project}`}));
}

export function projectsPanel(signal) {
  const list = pagedList({
    title: "Projects", path: "/v1/projects", signal, note: "use and quotas",
    nothing: () => empty("No projects yet", "A project comes into being with its first key."),
    columns: [
      {label: "Project", class: "clip c-wide", cell: (project) => project.project},
      ...QUOTAS.map((quota) => ({label: quota.label, cell: (project) => meter(project, quota)})),
      {label: "", class: "c-act", cell: (project) => el("button", {class: "button", type: "button", "aria-label": `Change the quota of ${project.project}`, on: {click: () => change(project.project)}}, "Change")},
    ],
  });

  /* A dialog with what is set; nothing: the daemon's default. */
  async function change(name) {
    const path = `/v1/projects/${encodeURIComponent(name)}/quota`;
    let quota;
    try {
      quota = await get(path, {signal});
    } catch (error) {
      notice(`${name}: ${error.message}`, "error");
      return;
    }
    const fields = QUOTAS.map(({member, label, unit, text}) => {
      const effective = quota.effective[member];
      const field = control(`/${member}`, unit ? `${label}, in GiB` : label, {type: "number", minimum: 0, maximum: unit ? 1073741823 : 1000000,
        description: `Empty: the daemon's default${quota[member] === null ? ` (${effective === null ? "no limit" : text(effective)})` : ""}. 0: none.`});
      field.set(quota[member] === null ? undefined : unit ? quota[member] / GIB : quota[member]);
      return field;
    });
    const summary = el("p", {class: "fault", role: "alert"});
    const save = el("button", {class: "button primary", type: "submit"}, "Save");
    const dialog = el("dialog", {class: "dialog", "aria-labelledby": "quota-title"},
      el("form", {novalidate: "", on: {submit: async (event) => {
        event.preventDefault();
        if (!readable(fields)) {
          return;
        }
        save.disabled = true;
        const body = Object.fromEntries(QUOTAS.map(({member, unit}, i) => [member, fields[i].read() === undefined ? null : unit ? Math.round(fields[i].read() * GIB) : fields[i].read()]));
        try {
          await send("PUT", path, {json: body, signal});
          dialog.close();
          notice(`The quota of ${name} was changed`, "good");
          list.reload();
        } catch (error) {
          faults(fields, error, summary);
        }
        save.disabled = false;
      }}}, el("h2", {id: "quota-title"}, `Quota of ${name}`), ...fields.map((field) => field.element), summary,
      el("div", {class: "row end"}, el("button", {class: "button", type: "button", on: {click: () => dialog.close()}}, "Cancel"), save)));
    dialog.addEventListener("close", () => dialog.remove());
    signal.addEventListener("abort", () => dialog.close());
    document.body.append(dialog);
    dialog.showModal();
  }

  return list;
}

