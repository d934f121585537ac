/* Controls made from JSON Schema: title, help, range, default, choices; and what a problem document says, shown at its control.
 *
 * An empty control is a member that is not sent, so that the daemon's default applies, which may depend on other members. */
import {el, setText} from "./dom.js";
import {count} from "./format.js";

let number = 0;

const kinds = (schema) => [schema.type].flat().filter((type) => type && type !== "null");
const word = (value) => (value === true ? "yes" : value === false ? "no" : value === null ? "automatic" : String(value));

function range(schema) {
  const shown = (value) => (value === undefined ? undefined : count(value));
  const low = shown(schema.minimum ?? schema.exclusiveMinimum), high = shown(schema.maximum ?? schema.exclusiveMaximum);
  const above = schema.exclusiveMinimum !== undefined ? "above " : "", below = schema.exclusiveMaximum !== undefined ? "below " : "";
  if (low !== undefined && high !== undefined) {
    return above || below ? `${above || "from "}${low} and ${below || "up to "}${high}` : schema.maximum >= 1e9 ? `${low} or more` : `${low} to ${high}`;
  }
  return low !== undefined ? `${low} or more` : "";
}

/* [input, parse(text)]: parse throws where the text cannot be what the schema wants. */
function inputOf(schema, label) {
  const given = "default" in schema ? `Default: ${word(schema.default)}` : "Default";
  const kind = kinds(schema)[0];
  if (schema.enum) {
    const values = schema.enum.filter((value) => value !== null);
    return [el("select", {}, el("option", {value: ""}, given), ...values.map((value) => el("option", {value: JSON.stringify(value)}, word(value)))), JSON.parse];
  }
  if (kind === "boolean") {
    return [el("select", {}, el("option", {value: ""}, given), el("option", {value: "true"}, "yes"), el("option", {value: "false"}, "no")), JSON.parse];
  }
  if (kind === "integer" || kind === "number") {
    return [el("input", {type: "text", inputmode: kind === "integer" ? "numeric" : "decimal", placeholder: "default" in schema && schema.default !== null ? String(schema.default) : "", autocomplete: "off"}), (text) => {
      const value = Number(text);
      if (!Number.isFinite(value)) {
        throw new Error(`${label} must be a number`);
      }
      return value;
    }];
  }
  if (kind === "string") {
    return [el("input", {type: "text", placeholder: schema.default ?? "", autocomplete: "off", spellcheck: "false"}), (text) => text];
  }
  if (kind === "array") {
    return [el("textarea", {rows: "2", spellcheck: "false", placeholder: "one a line"}), (text) => text.split("\n").map((line) => line.trim()).filter(Boolean)];
  }
  return [el("textarea", {rows: "2", spellcheck: "false", placeholder: "JSON"}), (text) => {
    try {
      return JSON.parse(text);
    } catch (error) {
      throw new Error(`${label} must be JSON: ${error.message}`);
    }
  }];
}

/* A control for the member that pointer names. Returns {element, pointer, read(), set(value), fault(text), said(), input}; read() gives undefined where
 * nothing was entered, and throws what is wrong with the text. */
export function control(pointer, label, schema, {onChange = () => {}, choices = null} = {}) {
  const id = `field-${++number}`;
  const [input, parse] = choices ? [choices, (text) => text] : inputOf(schema, label);
  const fault = el("span", {class: "fault", id: `${id}-fault`, role: "alert"});
  const limits = schema.enum ? "" : range(schema);
  const help = el("span", {class: "help", id: `${id}-help`}, [schema.description, limits ? `(${limits})` : null].filter(Boolean).join(" "));
  input.id = id;
  input.setAttribute("aria-describedby", `${id}-fault ${id}-help`);
  input.addEventListener("input", () => {
    show("");
    onChange();
  });

  function show(text) {
    setText(fault, text);
    if (text) {
      input.setAttribute("aria-invalid", "true");
    } else {
      input.removeAttribute("aria-invalid");
    }
  }

  return {
    pointer, input,
    element: el("div", {class: "field control"}, el("label", {for: id}, label), input, fault, help),
    read: () => (input.value.trim() === "" ? undefined : parse(input.value.trim())),
    set: (value) => {
      input.value = value === undefined || value === null ? "" : schema.enum || kinds(schema)[0] === "boolean" ? JSON.stringify(value)
        : kinds(schema)[0] === "array" ? value.join("\n") : typeof value === "object" ? JSON.stringify(value) : String(value);
    },
    fault: show,
    said: () => fault.textContent,
  };
}

/* Of the page, not of the list. */
function focusFirst(controls) {
  const [first] = [...controls].sort((a, b) => (a.input.compareDocumentPosition(b.input) & Node.DOCUMENT_POSITION_FOLLOWING ? -1 : 1));
  first?.input.focus();
}

const sentence = (error) => `${error.detail}${error.hint ? ` (${error.hint})` : ""}`;

/* {texts: control -> what is said of it, rest: the errors that name no control}. */
function placed(controls, errors) {
  const texts = new Map(), rest = [];
  for (const error of errors) {
    const found = controls.filter((one) => error.param === one.pointer || (error.param ?? "").startsWith(`${one.pointer}/`)).sort((a, b) => b.pointer.length - a.pointer.length)[0];
    if (found) {
      texts.set(found, [...(texts.get(found) ?? []), sentence(error)]);
    } else {
      rest.push(error);
    }
  }
  return {texts, rest};
}

/* What is known of a form while it is filled in, at the members that it is about: the focus stays, and so does what was said otherwise. show() takes
 * the place of what it showed before, and returns the errors that name no control. */
export function marks() {
  let shown = new Map();
  return {
    show(controls, errors) {
      const {texts, rest} = placed(controls, errors), before = shown;
      shown = new Map();
      for (const [one, text] of before) {
        if (one.said() === text && !texts.has(one)) {
          one.fault("");
        }
      }
      for (const [one, list] of texts) {
        const text = list.join(" ");
        if (one.said() === "" || one.said() === before.get(one)) {
          one.fault(text);
          shown.set(one, text);
        }
      }
      return rest;
    },
  };
}

/* Shows a refused request (null: nothing) at the controls that its errors name; what has none goes to the summary. The first fault gets the focus. */
export function faults(controls, problem, summary) {
  for (const one of controls) {
    one.fault("");
  }
  setText(summary, "");
  if (problem === null || problem.name === "AbortError") {
    return;
  }
  const errors = problem.errors?.length > 0 ? problem.errors : [{param: problem.param ?? null, detail: problem.message, hint: problem.hint ?? null}];
  const {texts, rest} = placed(controls, errors);
  for (const [one, list] of texts) {
    one.fault(list.join(" "));
    one.element.closest("details")?.setAttribute("open", "");
  }
  setText(summary, rest.map(sentence).join(" "));
  focusFirst([...texts.keys()]);
}

/* Whether every control can be read; the first that cannot gets the focus. */
export function readable(controls) {
  const bad = [];
  for (const one of controls) {
    try {
      one.read();
    } catch (error) {
      one.fault(error.message);
      one.element.closest("details")?.setAttribute("open", "");
      bad.push(one);
    }
  }
  focusFirst(bad);
  return bad.length === 0;
}
