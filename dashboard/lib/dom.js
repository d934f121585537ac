/* Elements without HTML: everything that comes from the server is text. */

/* el("a", {class: "x", href: "#/", on: {click: f}}, "text", node, null). A property is set for value, checked, disabled, hidden and
 * the like; data: and vars: set data attributes and CSS custom properties. */
export function el(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === undefined || value === null) {
      continue;
    }
    if (name === "on") {
      for (const [type, listener] of Object.entries(value)) {
        element.addEventListener(type, listener);
      }
    } else if (name === "data") {
      Object.assign(element.dataset, value);
    } else if (name === "vars") {
      for (const [variable, text] of Object.entries(value)) {
        element.style.setProperty(variable, text);
      }
    } else if (name === "class") {
      element.className = value;
    } else if (typeof value === "boolean" || name === "value") {
      element[name] = value;
    } else {
      element.setAttribute(name, value);
    }
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

export function svg(tag, attributes, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/* Changes the text only where it differs, so that nothing is laid out or read out again. */
export function setText(element, text) {
  if (element.textContent !== text) {
    element.textContent = text;
  }
}

/* Makes the children of parent those of `items`, in their order: elements stay where their key does, so that focus and selection are
 * kept while a list is refreshed. make(item) -> element, update(element, item). */
export function reconcile(parent, items, key, make, update) {
  const known = new Map();
  for (const child of parent.children) {
    known.set(child.dataset.key, child);
  }
  let at = parent.firstElementChild;
  for (const item of items) {
    const id = key(item);
    let element = known.get(id);
    if (element) {
      known.delete(id);
    } else {
      element = make(item);
      element.dataset.key = id;
    }
    update(element, item);
    if (element === at) {
      at = at.nextElementSibling;
    } else {
      parent.insertBefore(element, at);
    }
  }
  for (const child of known.values()) {
    child.remove();
  }
}

/* Calls f at most once in a frame. */
export function framed(f) {
  let asked = false;
  return () => {
    if (!asked) {
      asked = true;
      requestAnimationFrame(() => {
        asked = false;
        f();
      });
    }
  };
}

/* What is shown where there is nothing to show: a sentence, what to do, and at will an action. */
export function empty(title, text, ...actions) {
  return el("div", {class: "empty"}, el("h2", {}, title), text ? el("p", {}, text) : null, ...actions);
}

/* Lines of the final layout, so that nothing jumps when the data is there. */
export function skeleton(lines) {
  const box = el("div", {class: "skeleton", "aria-hidden": "true"});
  for (let i = 0; i < lines; i++) {
    box.append(el("div", {class: "skeleton-line"}));
  }
  return box;
}
