/* The key, where the daemon needs one: tried before it is kept. */
import {get, setKey} from "../lib/api.js";
import {el, setText} from "../lib/dom.js";

/* problem: why a key is asked for, or null. done(): one was accepted. */
export function login(main, {signal, problem, done}) {
  const input = el("input", {type: "password", id: "key", name: "key", autocomplete: "off", spellcheck: "false", required: true, "aria-describedby": "key-fault"});
  const fault = el("p", {class: "fault", id: "key-fault", role: "alert"});
  const button = el("button", {class: "button primary", type: "submit"}, "Sign in");
  const form = el("form", {class: "panel login", on: {submit: (event) => {
    event.preventDefault();
    attempt();
  }}},
  el("h1", {}, "Sign in"),
  el("p", {class: "muted"}, "This daemon needs an API key. It is kept in this tab only, and sent to this daemon only."),
  el("label", {class: "field"}, "API key", input), fault, button,
  el("p", {class: "muted"}, "An operator makes one: ", el("code", {}, "quantd key create --data-dir DIR --scope write")));

  async function attempt() {
    const text = input.value.trim();
    if (!/^[\x21-\x7e]+$/.test(text)) {
      refuse("Paste the key: qd_ and 52 characters.");
      return;
    }
    button.disabled = true;
    setText(fault, "");
    setKey(text);
    try {
      await get("/v1/system", {signal, ask: false});
      done();
    } catch (error) {
      setKey(null);
      if (!signal.aborted) {
        refuse(`${error.message}${error.hint ? ` (${error.hint})` : ""}`);
      }
    }
  }

  function refuse(text) {
    button.disabled = false;
    setText(fault, text);
    input.setAttribute("aria-invalid", "true");
    input.select();
    input.focus();
  }

  main.replaceChildren(form);
  input.focus();
  /* Without a key the first request is always refused; that is not a fault of who looks. */
  if (problem && problem.hadKey) {
    refuse(`The key was refused: ${problem.message}`);
  }
}
