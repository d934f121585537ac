/* The project's webhooks: where messages go, whether they arrive; a test message, deletion. They are made from a shell, where the secret is needed. */
import {get, post, remove, sleep} from "../lib/api.js";
import {el, empty} from "../lib/dom.js";
import {NONE, date, since} from "../lib/format.js";
import {pagedList} from "../lib/list.js";
import {confirm, failure, notice} from "../lib/notices.js";

const TEST_SECONDS = 30;

/* "quantization.job.succeeded" -> "succeeded" */
const short = (type) => type.replace(/^quantization\.job\./, "");

function state(hook) {
  return hook.disabled ? el("span", {class: "badge cancelled", title: [hook.disabled_reason, date(hook.disabled_at)].filter(Boolean).join(", ")}, "Disabled") : el("span", {class: "badge good"}, "Active");
}

export function webhooksPanel(signal) {
  const name = (hook) => hook.name || hook.url;
  const list = pagedList({
    title: "Webhooks", path: "/v1/webhooks", signal, note: "are told when jobs end",
    nothing: () => empty("No webhooks", "A webhook is told when jobs end. Make one from a shell, which shows its secret:", el("code", {}, "quantctl webhooks create URL")),
    columns: [
      {label: "Webhook", class: "clip c-wide", cell: (hook) => el("span", {title: hook.id}, hook.name ? `${hook.name}: ${hook.url}` : hook.url)},
      {label: "State", cell: state},
      {label: "Jobs", cell: (hook) => (hook.jobs === "all" ? "all of the project" : "those that name it")},
      {label: "Messages", class: "clip", cell: (hook) => (hook.events === null ? "all" : hook.events.map(short).join(", "))},
      {label: "Last message", cell: (hook) => last(hook)},
      {label: "Age", class: "c-age", cell: (hook) => since(hook.created_at)},
      {label: "", class: "c-act", cell: (hook) => [
        el("button", {class: "button", type: "button", "aria-label": `Send a test message to ${name(hook)}`, on: {click: (event) => test(hook, event.currentTarget)}}, "Test"), " ",
        el("button", {class: "button danger", type: "button", "aria-label": `Delete ${name(hook)}`, on: {click: () => drop(hook)}}, "Delete")]},
    ],
  });

  /* Read for each: a list of webhooks does not tell. */
  function last(hook) {
    const cell = el("span", {}, NONE);
    get(`/v1/webhooks/${hook.id}/deliveries?limit=1`, {signal}).then((page) => {
      const [message] = page.data;
      if (message) {
        const kind = {delivered: "good", failed: "bad", pending: "warn"}[message.status] ?? "warn";
        cell.replaceChildren(el("span", {class: `badge ${kind}`, title: message.error ?? ""}, message.status), " ", since(message.created_at));
      }
    }).catch(() => {});
    return cell;
  }

  async function test(hook, button) {
    button.disabled = true;
    try {
      let message = await post(`/v1/webhooks/${hook.id}/test`, undefined, {signal});
      for (let waited = 0; message.status === "pending" && waited < TEST_SECONDS && !signal.aborted; waited++) {
        await sleep(1000, signal);
        message = await get(`/v1/webhooks/${hook.id}/deliveries/${message.id}`, {signal});
      }
      if (message.status === "delivered") {
        notice(`The test message was delivered (status ${message.response_status})`, "good");
      } else {
        notice(`The test message was not delivered${message.error ? `: ${message.error}` : ""}`, "error");
      }
      list.reload();
    } catch (error) {
      failure("Test", error);
    }
    button.disabled = false;
  }

  async function drop(hook) {
    if (!await confirm(`Delete “${name(hook)}”?`, "It gets no more messages; those that wait for it are dropped, and its record of deliveries with them.", "Delete the webhook")) {
      return;
    }
    try {
      await remove(`/v1/webhooks/${hook.id}`, {signal});
      notice("The webhook was deleted", "good");
      list.reload();
    } catch (error) {
      failure("Delete", error);
    }
  }

  return list.element;
}
